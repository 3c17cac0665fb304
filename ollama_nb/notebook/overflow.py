"""A conversation that outgrows its context: old messages may go, visibly; a message that does not fit alone may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb.client.client import Client
from ollama_nb.client.http import Stream
from ollama_nb.client.question import told
from ollama_nb.errors import ContextOverflow, NotFound


def chat(client: Client, model: str, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> Stream:
    """Start a chat. Raises ContextOverflow when the last message, with the system message, is too long alone."""
    try:
        with told():
            return client.chat(model, messages, stream=True, truncate=False, **fields)
    except ContextOverflow:
        _check_last(client, model, messages, fields)
    return client.chat(model, messages, stream=True, **fields)


def _check_last(client: Client, model: str, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> None:
    """The model was loaded by the refused request, so its context is known. Servers that count no tokens decide."""
    think = {name: value for name, value in fields.items() if name == "think"}
    last = [message for message in messages[:-1] if message["role"] == "system"] + [messages[-1]]
    try:
        needed = len(client.tokenize(model, messages=last, **think)["tokens"])
    except NotFound:
        return
    running = client.ps()["models"]
    name = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
    room = next((entry.get("context_length", 0) for entry in running if entry["name"].lower() == name.lower()), 0)
    if room and needed >= room:
        raise ContextOverflow(f"the message is too long: it has {needed} tokens, and the context has room for {room}.")
