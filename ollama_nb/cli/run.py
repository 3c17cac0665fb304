"""``ollama run``: one question, piped text, an embedding, or an interactive session."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_nb.cli.output import ReplyPrinter, print_end, print_reply, waiting
from ollama_nb.cli.progress import with_status
from ollama_nb.cli.session import ReplSession, extract_files, takes_files
from ollama_nb.cli.terminal import is_terminal
from ollama_nb.cli.transfer import pull
from ollama_nb.client.chunks import ParsedStream
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.settings import parse_duration

_LEVELS = ("low", "medium", "high", "max")
_EMBED_USAGE = 'embedding models require input text. Usage: ollama run {} "your text here"'


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The words and flags of the command line; those whose default is None may be missing."""

    model: str
    prompt: Sequence[str] = ()
    keepalive: str = ""
    verbose: bool = False
    insecure: bool = False
    nowordwrap: bool = False
    format: str = ""
    think: str | None = None
    think_budget: int | None = None
    hidethinking: bool = False
    truncate: bool | None = None
    dimensions: int = 0


def run_model(**arguments: Any) -> None:
    """Answer the prompt, or start a session when there is no prompt and both ends are a terminal."""
    options = RunOptions(**arguments)
    fields = request_fields(options)
    client = connect()
    pieces = [*_read_stdin(), *options.prompt]
    interactive = not pieces and is_terminal(sys.stdin) and is_terminal(sys.stdout)
    info = _show_or_pull(client, options)
    capabilities = info.get("capabilities") or ()
    if "think" not in fields and "thinking" in capabilities:
        fields["think"] = True
    if "embedding" in capabilities:
        _embed(client, options, " ".join(pieces), fields)
    elif "image" in capabilities:
        raise BadRequest("image generation models are not currently supported")
    elif interactive:
        from ollama_nb.cli.repl import converse  # prompt_toolkit, which only a session needs

        converse(_make_session(client, options, info, fields))
    else:
        _ask(client, options, " ".join(pieces), fields, with_files=takes_files(info))


def request_fields(options: RunOptions) -> dict[str, Any]:
    """The request fields ``think``, ``think_budget``, ``keep_alive`` and ``format``, as far as they were given."""
    fields: dict[str, Any] = {}
    if options.think is not None:
        fields["think"] = think_value(options.think)
    if options.think_budget is not None:
        fields["think_budget"] = options.think_budget
    if options.keepalive:
        parse_duration(options.keepalive)
        fields["keep_alive"] = options.keepalive
    if options.format:
        fields["format"] = "json" if options.format == "json" else _schema(options.format)
    return fields


def think_value(text: str) -> bool | str:
    """The value of ``--think``. Raises BadRequest."""
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
        raise BadRequest(f"invalid value for --format: neither json nor a JSON Schema ({error})") from None


def _read_stdin() -> list[str]:
    """The text on standard input, unless that is a terminal or empty."""
    if is_terminal(sys.stdin):
        return []
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return [text] if text else []


def _show_or_pull(client: Client, options: RunOptions) -> dict[str, Any]:
    try:
        return client.show(options.model)
    except NotFound:
        pull(client, options.model, **({"insecure": True} if options.insecure else {}))
        return client.show(options.model)


def _ask(client: Client, options: RunOptions, prompt: str, fields: dict[str, Any], *, with_files: bool) -> None:
    """Ask one question. An interrupt cancels the request and is not a failure."""
    images: list[str] = []
    if with_files:
        prompt, images = extract_files(prompt)
    if images:
        fields["images"] = images
    try:
        if not prompt and not images:
            with waiting():
                client.generate(options.model, stream=False, **fields)
            return
        printer = ReplyPrinter(wordwrap=not options.nowordwrap, hide_thinking=options.hidethinking)
        with waiting() as spinner, with_status(lambda: client.generate(options.model, prompt, **fields)) as lines:
            done = print_reply(ParsedStream(lines), printer, spinner)
        sys.stdout.write("\n\n")
        sys.stdout.flush()
    except KeyboardInterrupt:
        return
    print_end(done, verbose=options.verbose)


def _make_session(
    client: Client, options: RunOptions, info: Mapping[str, Any], fields: Mapping[str, Any]
) -> ReplSession:
    session = ReplSession(
        client,
        options.model,
        format=fields.get("format"),
        think=fields.get("think"),
        think_chosen=options.think is not None,
        think_budget=options.think_budget,
        keep_alive=options.keepalive,
        verbose=options.verbose,
        wordwrap=not options.nowordwrap,
        hide_thinking=options.hidethinking,
    )
    session.adopt(options.model, info)
    return session


def _embed(client: Client, options: RunOptions, text: str, fields: Mapping[str, Any]) -> None:
    if not text:
        raise BadRequest(_EMBED_USAGE.format(options.model))
    given: dict[str, Any] = {}
    if options.truncate is not None:
        given["truncate"] = options.truncate
    if options.dimensions > 0:
        given["dimensions"] = options.dimensions
    if "keep_alive" in fields:
        given["keep_alive"] = fields["keep_alive"]
    reply = client.embed(options.model, text, **given)
    for warning in reply.get("warnings") or ():
        print(f"warning: {warning}", file=sys.stderr)
    vectors = reply.get("embeddings")
    if not vectors:
        raise OllamaError("no embeddings returned")
    print(json.dumps(vectors[0], separators=(",", ":")))
