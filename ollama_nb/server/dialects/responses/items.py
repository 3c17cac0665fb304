"""Items of the Responses API: from JSON to a normal form that is stored, and from that form to messages.

In the normal form every item has ``type`` and ``id``, and the content of a message is a list of parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ollama_nb.api.encode import go_quote
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.responses.store import Item, item_id
from ollama_nb.server.dialects.values import read_image, warn_if_empty

CUSTOM_ARGUMENT = "input"  # the only argument of the function as which a custom tool is offered
_SYSTEM_ROLES = ("system", "developer")
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "web_search_call": "ws",
    "item_reference": "ref",
}
"""Types of items that are read → the beginning of their ids."""


_OF_MESSAGES = frozenset({"phase", "name"})
_OF_CALLS = frozenset({"caller", "created_by"})
_OF_PARTS = frozenset({"annotations", "logprobs", "cache_control", "detail", "prompt_cache_breakpoint"})
"""Fields of items and parts that clients send and that have no effect: above all those of earlier replies."""


def new_item_id(type: str, response_id: str, kind: str, index: int) -> str:
    return item_id(_PREFIXES[type], response_id, kind, index)


def read_input(body: Fields, response_id: str) -> tuple[Item, ...]:
    """The field ``input``: a text, which is a user message, or a list of items. Raises BadRequest."""
    value = body.raw("input")
    if isinstance(value, str):
        text = {"type": "input_text", "text": value}
        item = {"type": "message", "role": "user", "status": "completed", "content": [text]}
        return ({"id": new_item_id("message", response_id, "i", 0), **item},)
    items = body.items("input", "responses.Input")
    return tuple(
        _item(body.below(f"input[{at}]", item, "responses.Item"), at, response_id) for at, item in enumerate(items)
    )


def _item(item: Fields, at: int, response_id: str) -> Item:
    kind = item.text("type") or ("message" if "role" in item or "content" in item else "")
    read = _READERS.get(kind)
    if read is None:
        raise BadRequest(f"input[{at}]: unknown input item type: {go_quote(kind)}", field=f"input[{at}].type")
    found = {"id": item.text("id") or new_item_id(kind, response_id, "i", at), "type": kind}
    return {**found, **read(item, f"input[{at}]")}


def _message(item: Fields, where: str) -> dict[str, Any]:
    role = item.text("role") or "user"
    part = "output_text" if role == "assistant" else "input_text"
    content = _parts(item, "content", where, part)
    item.accept(_OF_MESSAGES)
    warn_if_empty(item, has_content=any(found != _text_part(part, "") for found in content))
    return {"role": role, "status": item.text("status") or "completed", "content": content}


def _reasoning(item: Fields, where: str) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": part.text("text")} for part in item.structs("summary", "Summary")]
    content = [{"type": "reasoning_text", "text": part.text("text")} for part in item.structs("content", "Content")]
    item.accept({"status"})
    encrypted = item.text("encrypted_content")
    return {"summary": summary, "content": content, **({"encrypted_content": encrypted} if encrypted else {})}


def _function_call(item: Fields, where: str) -> dict[str, Any]:
    arguments = item.text("arguments")
    if _arguments(arguments) is None:
        raise BadRequest(f"{where}: arguments is not the JSON text of an object", field=f"{where}.arguments")
    return {**_call(item), "arguments": arguments}


def _custom_call(item: Fields, where: str) -> dict[str, Any]:
    return {**_call(item), "input": item.text("input")}


def _call(item: Fields) -> dict[str, Any]:
    item.accept(_OF_CALLS)
    namespace = item.text("namespace")
    found = {"call_id": item.text("call_id"), "name": item.text("name"), "status": item.text("status") or "completed"}
    return {**found, **({"namespace": namespace} if namespace else {})}


def _call_output(item: Fields, where: str) -> dict[str, Any]:
    output = item.raw("output")
    if not isinstance(output, str):
        output = _parts(item, "output", where, "input_text")
    item.accept(_OF_CALLS)
    return {"call_id": item.text("call_id"), "output": output, "status": item.text("status") or "completed"}


def _web_search(item: Fields, where: str) -> dict[str, Any]:
    return {"status": item.text("status") or "completed", "action": item.object("action")}


def _reference(item: Fields, where: str) -> dict[str, Any]:
    item.accept_all()
    return {}


_READERS: dict[str, Callable[[Fields, str], dict[str, Any]]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "custom_tool_call": _custom_call,
    "function_call_output": _call_output,
    "custom_tool_call_output": _call_output,
    "web_search_call": _web_search,
    "item_reference": _reference,
}


def _parts(item: Fields, name: str, where: str, text_type: str) -> list[dict[str, Any]]:
    value = item.raw(name)
    if isinstance(value, str):
        return [_text_part(text_type, value)]
    parts = [
        _part(part, f"{where}.{name}[{at}]") for at, part in enumerate(item.structs(name, "responses.ContentPart"))
    ]
    return [part for part in parts if part]


def _part(part: Fields, where: str) -> dict[str, Any]:
    """A part of a message's content; empty for an image in OpenAI's cloud, which is ignored as in Ollama."""
    part.accept(_OF_PARTS)
    match part.text("type"):
        case "input_text" | "output_text" as kind:
            return _text_part(kind, part.text("text"))
        case "refusal":
            return _text_part("output_text", part.text("refusal"))
        case "input_image":
            part.accept({"file_id"})
            url = part.text("image_url")
            if not url:
                return {}
            read_image(url, f"{where}.image_url")
            return {"type": "input_image", "image_url": url, "detail": part.text("detail") or "auto"}
        case "input_file":
            raise BadRequest("file inputs are not currently supported", field=where)
        case kind:
            raise BadRequest(f"unknown content type: {kind[:64]}", field=f"{where}.type")


def _text_part(kind: str, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}


def conversation(instructions: str, items: Iterable[Item]) -> tuple[Message, ...]:
    """The messages of a conversation.

    The instructions and the system and developer messages at the beginning are one system message, because many
    templates accept one only, and only as the first message. Texts, thinking and calls of the assistant without
    another item between them are one message.
    """
    system = [instructions] if instructions else []
    messages: list[Message] = []
    names: dict[str, str] = {}
    thinking = ""
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            thinking += _thinking(item)
        elif kind in ("function_call", "custom_tool_call"):
            if item.get("status", "completed") == "completed":
                call = _tool_call(item)
                names[call.id] = call.name
                _say(messages, Message("assistant", thinking=thinking, tool_calls=(call,)))
                thinking = ""
        elif kind in ("function_call_output", "custom_tool_call_output"):
            text, images = _content(item["output"])
            name = names.get(item["call_id"], "")
            messages.append(Message("tool", text, images=images, tool_name=name, tool_call_id=item["call_id"]))
            thinking = ""
        elif kind == "message":
            text, images = _content(item["content"])
            if item["role"] == "assistant":
                _say(messages, Message("assistant", text, thinking, images))
            elif item["role"] not in _SYSTEM_ROLES:
                messages.append(Message(item["role"], text, images=images))
            elif messages:
                messages.append(Message("system", text))
            else:
                system.append(text)
            thinking = ""
    first = (Message("system", "\n\n".join(system)),) if system else ()
    return (*first, *messages)


def _say(messages: list[Message], more: Message) -> None:
    """Add text, calls or thinking of the assistant."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant":
        messages.append(more)
        return
    calls = tuple(replace(call, index=at) for at, call in enumerate((*last.tool_calls, *more.tool_calls)))
    messages[-1] = replace(
        last,
        content="\n".join(filter(None, (last.content, more.content))),
        thinking="\n".join(filter(None, (last.thinking, more.thinking))),
        images=last.images + more.images,
        tool_calls=calls,
    )


def _content(value: str | Sequence[Item]) -> tuple[str, tuple[bytes, ...]]:
    """The text and the images of a content or an output."""
    if isinstance(value, str):
        return value, ()
    images = tuple(read_image(part["image_url"], "input") for part in value if part["type"] == "input_image")
    return "".join(part.get("text", "") for part in value), images


def _thinking(item: Item) -> str:
    """The text of a reasoning item: its content, else what Ollama calls its encrypted content, else its summary."""
    content = "".join(part["text"] for part in item.get("content") or ())
    return content or item.get("encrypted_content") or "\n".join(part["text"] for part in item.get("summary") or ())


def _tool_call(item: Item) -> ToolCall:
    custom = item["type"] == "custom_tool_call"
    arguments = {CUSTOM_ARGUMENT: item["input"]} if custom else _arguments(item["arguments"]) or {}
    namespace = item.get("namespace")
    name = f"{namespace}.{item['name']}" if namespace else item["name"]
    return ToolCall(name, arguments, item["call_id"])


def _arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a call; None if the text is not a JSON object. An empty text means no arguments."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
