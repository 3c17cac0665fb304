"""``run``, ``generate`` and ``chat``: a text goes to a model, its answer comes in as it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ollama_nb.api.options import KINDS, Options
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import typed
from ollama_nb.notebook.display import Interrupted, follow, screen_for
from ollama_nb.notebook.parse import Line, Option
from ollama_nb.notebook.reply import Answer, Reply
from ollama_nb.notebook.session import Chat, Session

ASK = (
    Option("--output", "NAME", "keep the answer in this variable, too", short="-o"),
    Option("--system", "TEXT", "the system message"),
    Option("--think", "LEVEL", "let the model think first: true, false, low, medium, high or max", optional=True),
    Option("--hidethinking", help="think, but do not show it"),
    Option("--format", "FORMAT", "`json` or a JSON Schema that the answer keeps to"),
    Option("--keepalive", "TIME", "how long the model stays loaded, such as 10m"),
    Option("--option", "NAME=VALUE", "any model option; may be repeated"),
)
CHAT = (
    *ASK,
    Option("--name", "NAME", "name of the conversation; each has its own history", short="-n"),
    Option("--reset", help="forget the conversation first"),
)
MODEL_OPTIONS = tuple(Option(f"--{name.replace('_', '-')}", "VALUE", f"model option {name}") for name in KINDS)

_THINK: dict[str, bool | str] = {"": True, "true": True, "false": False}
_LEVELS = ("low", "medium", "high", "max")


def run(session: Session, line: Line, cell: str | None) -> Answer:
    """One question, one answer, nothing remembered."""
    model, prompt = line.words[0], _text(line, cell)
    if not prompt:
        raise BadRequest(f"no prompt: `%ollama run {model} your question`")
    # A single prompt that does not fit is an error here, never cut silently.
    request = {**_request(line), "prompt": prompt, "truncate": False}
    if (system := line.get("--system")) is not None:
        request["system"] = system
    client = session.connect()
    return _ask(session, line, lambda: client.generate(model, stream=True, **request))


def chat(session: Session, line: Line, cell: str | None) -> Answer | None:
    """One message of a conversation that goes on from cell to cell."""
    model, text = line.words[0], _text(line, cell)
    conversation = session.chat(model, line.get("--name") or "")
    if line.has("--reset"):
        conversation.system, conversation.messages = "", []
    if (system := line.get("--system")) is not None:
        conversation.system = system
    if not text:
        if line.has("--reset") or line.has("--system"):
            return None
        raise BadRequest(f"no message: write it below `%%ollama chat {model}`")
    messages, request, client = conversation.with_message(text), _request(line), session.connect()
    return _ask(
        session,
        line,
        lambda: client.chat(model, messages, stream=True, **request),
        conversation=conversation,
        said=text,
    )


def _ask(
    session: Session,
    line: Line,
    start: Callable[[], Iterator[Mapping[str, Any]]],
    *,
    conversation: Chat | None = None,
    said: str = "",
) -> Answer:
    """Stream an answer. What came before an interrupt is kept, too: in its variables and in the conversation."""
    output = line.get("--output")
    if output is not None and not output.isidentifier():
        raise BadRequest(f'"{output}" cannot be the name of a variable')
    reply = Reply(line.words[0], show_thinking=not line.has("--hidethinking"))

    def keep() -> Answer:
        answer = Answer(reply)
        for name in ("_ollama", output):
            if name:
                session.keep(name, answer)
        if conversation is not None:
            conversation.add(said, reply.text, reply.thinking)
        return answer

    try:
        follow(start, reply, screen_for(session.shell))
    except Interrupted:
        if not reply.text:
            raise
        keep()
        raise Interrupted("Interrupted. What came until then is in `_ollama`.") from None
    return keep()


def _text(line: Line, cell: str | None) -> str:
    """The text to send, exactly as it was written (IPython ends every cell with a line break of its own)."""
    if cell is None:
        return line.text or ""
    if line.text is not None:
        raise BadRequest(
            f"the message is the text of the cell, so `{line.text}` on its first line is too much; "
            "a value with blanks needs quotes"
        )
    return cell.removesuffix("\n")


def _request(line: Line) -> dict[str, Any]:
    """The fields that chat and generate have in common; what was not asked for is left out."""
    request: dict[str, Any] = {}
    if options := model_options(line):
        request["options"] = options
    if (think := line.get("--think")) is not None:
        if think not in _THINK and think not in _LEVELS:
            raise BadRequest(f'invalid value for --think: "{think}" (must be true, false, low, medium, high, or max)')
        request["think"] = _THINK.get(think, think)
    if (form := line.get("--format")) is not None:
        request["format"] = form if form == "json" else _schema(form)
    if (keep_alive := line.get("--keepalive")) is not None:
        request["keep_alive"] = keep_alive
    return request


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"--format is neither `json` nor a JSON Schema: {error}") from None


def model_options(line: Line) -> dict[str, Any]:
    """Options by their own names (``--temperature 0``) and by ``--option NAME=VALUE``, typed.

    Raises BadRequest for a name that is none (with the nearest one) or a value of the wrong type.
    """
    given = [(name, value) for name in KINDS for value in line.options.get(f"--{name.replace('_', '-')}", ())]
    for pair in line.options.get("--option", ()):
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadRequest(f"--option needs NAME=VALUE, not `{pair}`")
        given.append((name, value))
    options: dict[str, Any] = {}
    for name, value in given:
        if name not in KINDS:
            raise BadRequest(Options.layered({name: value})[1][0])
        read = typed(name, value)
        options[name] = options.get(name, []) + read if isinstance(read, list) else read
    Options.layered(options)  # refuses what is out of range
    return options
