"""`ollama run`: one question, piped text, an embedding, or the way into a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb.cli import attach
from ollama_nb.cli.answer import Printer, show_answer, tell_end, waiting
from ollama_nb.cli.talk import Talk
from ollama_nb.cli.terminal import is_terminal
from ollama_nb.cli.transfer import pull, with_status
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.settings import parse_duration

_LEVELS = ("low", "medium", "high", "max")
_EMBED_USAGE = 'embedding models require input text. Usage: ollama run {} "your text here"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The flags and words of the command line. ``think`` None: not said; ``truncate`` None: not said."""

    model: str
    pieces: tuple[str, ...] = ()
    keepalive: str = ""
    verbose: bool = False
    insecure: bool = False
    wordwrap: bool = True
    format: str = ""
    think: str | None = None
    hidethinking: bool = False
    truncate: bool | None = None
    dimensions: int = 0


def run_model(wish: Wish, converse: Callable[[Talk], None]) -> None:
    """Answer, or ``converse`` when there is no prompt and both ends are a terminal."""
    fields = request_fields(wish)
    client = connect()
    pieces = [*_piped(), *wish.pieces]
    interactive = not pieces and is_terminal(sys.stdin) and is_terminal(sys.stdout)
    info = _show_or_pull(client, wish)
    capabilities = info.get("capabilities") or ()
    if "think" not in fields and "thinking" in capabilities:
        fields["think"] = True
    if "embedding" in capabilities:
        _embed(client, wish, " ".join(pieces), fields)
    elif "image" in capabilities:
        raise BadRequest("image generation models are not currently supported")
    elif interactive:
        converse(_talk(client, wish, info, fields))
    else:
        _ask(client, wish, " ".join(pieces), fields, takes_files=attach.takes_files(info))


def request_fields(wish: Wish) -> dict[str, Any]:
    """``think``, ``keep_alive`` and ``format`` as requests say them; what was not asked for is left out."""
    fields: dict[str, Any] = {}
    if wish.think is not None:
        fields["think"] = think_value(wish.think)
    if wish.keepalive:
        parse_duration(wish.keepalive)
        fields["keep_alive"] = wish.keepalive
    if wish.format:
        fields["format"] = "json" if wish.format == "json" else _schema(wish.format)
    return fields


def think_value(text: str) -> bool | str:
    if text in ("", "true"):
        return True
    if text == "false":
        return False
    if text in _LEVELS:
        return text
    raise BadRequest(f'invalid value for --think: "{text}" (must be true, false, high, medium, low, or max)')


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRequest(f"invalid value for --format: neither json nor a JSON schema ({error})") from None


def _piped() -> list[str]:
    """What standard input holds, if it is no terminal; nothing at all is still a prompt: the empty one."""
    if is_terminal(sys.stdin):
        return []
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return [text] if text else []


def _show_or_pull(client: Client, wish: Wish) -> dict[str, Any]:
    try:
        return client.show(wish.model)
    except NotFound:
        pull(client, wish.model, **({"insecure": True} if wish.insecure else {}))
        return client.show(wish.model)


def _ask(client: Client, wish: Wish, prompt: str, fields: dict[str, Any], *, takes_files: bool) -> None:
    """One question. Interrupting it cancels the request and is no failure."""
    images: list[str] = []
    if takes_files:
        prompt, images = attach.extract(prompt)
    if images:
        fields["images"] = images
    try:
        if not prompt and not images:
            with waiting():
                client.generate(wish.model, stream=False, **fields)
            return
        printer = Printer(wordwrap=wish.wordwrap, hide_thinking=wish.hidethinking)
        with waiting() as spinner, with_status(lambda: client.generate(wish.model, prompt, **fields)) as lines:
            reply = show_answer(lines, printer, spinner)
        sys.stdout.write("\n\n")
        sys.stdout.flush()
    except KeyboardInterrupt:
        return
    tell_end(reply.final, verbose=wish.verbose)


def _talk(client: Client, wish: Wish, info: Mapping[str, Any], fields: Mapping[str, Any]) -> Talk:
    talk = Talk(
        client,
        wish.model,
        format=fields.get("format"),
        think=fields.get("think"),
        think_chosen=wish.think is not None,
        keep_alive=wish.keepalive,
        verbose=wish.verbose,
        wordwrap=wish.wordwrap,
        hide_thinking=wish.hidethinking,
    )
    talk.adopt(wish.model, info)
    return talk


def _embed(client: Client, wish: Wish, text: str, fields: Mapping[str, Any]) -> None:
    if not text:
        raise BadRequest(_EMBED_USAGE.format(wish.model))
    more: dict[str, Any] = {}
    if wish.truncate is not None:
        more["truncate"] = wish.truncate
    if wish.dimensions > 0:
        more["dimensions"] = wish.dimensions
    if "keep_alive" in fields:
        more["keep_alive"] = fields["keep_alive"]
    vectors = client.embed(wish.model, text, **more).get("embeddings")
    if not vectors:
        raise OllamaError("no embeddings returned")
    print(json.dumps(vectors[0], separators=(",", ":")))
