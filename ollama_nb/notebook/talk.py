"""``run``, ``generate`` and ``chat``: a text goes to a model, its answer comes in as it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from ollama_nb.client.conversation import ChatTurn, user_message
from ollama_nb.errors import BadRequest
from ollama_nb.notebook import inputs
from ollama_nb.notebook.display import CellAnswer, Interrupted, ReplyPage, follow
from ollama_nb.notebook.opening import open_chat
from ollama_nb.notebook.parse import Line, Option
from ollama_nb.notebook.reply import ReplyState
from ollama_nb.notebook.session import Session

if TYPE_CHECKING:
    from ollama_nb.client.shape import AnswerShape
    from ollama_nb.client.tools import Tools

ANSWER = (Option("--output", "NAME", "keep the answer in this variable, too", short="-o"),)
HOW = (
    Option("--system", "TEXT", "the system message"),
    Option("--think", "LEVEL", "let the model think first: true, false, low, medium, high or max", optional=True),
    Option("--hidethinking", help="think, but do not show it"),
    Option("--keepalive", "TIME", "how long the model stays loaded, such as 10m"),
    Option("--verbose", help="show times and speeds beneath the answer"),
    Option("--option", "NAME=VALUE", "any model option; may be repeated"),
)
SHOWN = (Option("--image", "NAME", "an image: a variable (PIL, Matplotlib, bytes) or a path; may be repeated"),)
ASK = (
    *ANSWER,
    Option("--format", "FORMAT", "`json`, a JSON Schema, or a variable with either or a type (a Pydantic model, …)"),
    *SHOWN,
    *HOW,
)
CHAT = (
    *ASK,
    Option("--name", "NAME", "name of the conversation; each has its own history", short="-n"),
    Option("--reset", help="forget the conversation first"),
    Option("--tools", "NAMES", "Python functions that the model may call, such as `f,g`; they run when it does"),
)

_THINK: dict[str, bool | str] = {"": True, "true": True, "false": False}
_LEVELS = ("low", "medium", "high", "max")


@dataclass(frozen=True, slots=True)
class Question:
    """A question but for its text: ``fields`` of the request, and what the answer must be."""

    model: str
    fields: dict[str, Any]
    system: str | None = None
    images: list[str] = field(default_factory=list)
    shape: AnswerShape[Any] | None = None
    tools: Tools | None = None

    def with_system(self, system: str) -> Question:
        return replace(self, system=system)

    @property
    def told(self) -> str:
        """The system message, with the names and types of the fields that the answer must have."""
        if self.shape is None:
            return self.system or ""
        return str(import_module("ollama_nb.client.shape").add_field_list(self.system, self.shape) or "")


def run(session: Session, line: Line, cell: str | None) -> Any:
    """One question, one answer, nothing remembered. Without a prompt, a line opens the chat widget."""
    model, prompt = line.words[0], text_of(line, cell)
    if not prompt and cell is None and line.text is None:
        return open_chat(session, line)
    if not prompt:
        raise BadRequest(f"no prompt: `%ollama run {model} your question`")
    return ask(session, line, prompt, read(session, line))


def ask(session: Session, line: Line, prompt: str, question: Question) -> Any:
    """A prompt goes to ``generate``; one that does not fit into the context is an error, never cut silently."""
    request = {**question.fields, "prompt": prompt, "truncate": False}
    if question.system is not None or question.shape is not None:
        request["system"] = question.told
    if question.images:
        request["images"] = question.images
    client = session.connect()
    return answered(session, line, question, lambda: client.generate(question.model, stream=True, **request))


def chat(session: Session, line: Line, cell: str | None) -> Any:
    """One message of a conversation that goes on from cell to cell."""
    model, text = line.words[0], text_of(line, cell)
    question = read(session, line)
    conversation = session.chat(model, line.get("--name") or "")
    if line.has("--reset"):
        conversation.system, conversation.messages = "", []
    if line.has("--system") or (question.system and not conversation.messages and not conversation.system):
        conversation.system = question.system or ""
    if not text:
        if line.has("--reset") or line.has("--system"):
            return None
        raise BadRequest(f"no message: write it below `%%ollama chat {model}`")
    message = user_message(text, question.images)
    system = Question(model, {}, conversation.system, shape=question.shape).told
    client, turns = session.connect(), list[ChatTurn]()

    def start() -> ChatTurn:
        turn = conversation.start(client, model, message, fields=question.fields, system=system, tools=question.tools)
        turns.append(turn)
        return turn

    return answered(session, line, question, start, heard=lambda reply: turns[0].commit())


def answered(
    session: Session,
    line: Line,
    question: Question,
    start: Callable[[], Iterator[Any]],
    *,
    heard: Callable[[ReplyState], None] = lambda reply: None,
) -> Any:
    """Stream an answer; it, or the value of the type that was asked for.

    What came before an interrupt is kept, too: in its variables, and in the conversation by ``heard``.
    """
    output = variable(line)
    session.last_model = question.model
    reply = ReplyState(question.model, show_thinking=not line.has("--hidethinking"), verbose=line.has("--verbose"))

    def keep() -> CellAnswer:
        answer = CellAnswer(reply)
        session.keep(("_ollama", output), answer)
        heard(reply)
        return answer

    try:
        follow(start, ReplyPage(reply), session.screen())
    except Interrupted:
        if not reply.text and not reply.steps:
            raise
        keep()
        raise Interrupted("Interrupted. What came until then is in `_ollama`.") from None
    answer = keep()
    if question.shape is None:
        return answer
    value = import_module("ollama_nb.client.shape").parse_value(question.shape, answer)
    session.keep((output,), value)
    return value


def variable(line: Line) -> str | None:
    """The name after ``-o``. Raises BadRequest for one that no variable can have."""
    output = line.get("--output")
    if output is not None and (not output.isidentifier() or iskeyword(output)):
        raise BadRequest(f'"{output}" cannot be the name of a variable')
    return output


def text_of(line: Line, cell: str | None) -> str:
    """The text to send, exactly as it was written (IPython ends every cell with a line break of its own)."""
    if cell is None:
        return line.text or ""
    if line.text is not None:
        raise BadRequest(
            f"the message is the text of the cell, so `{line.text}` on its first line is too much; "
            "a value with blanks needs quotes"
        )
    return cell.removesuffix("\n")


def read(session: Session, line: Line) -> Question:
    """What the line's options and the notebook's defaults say; what neither says is left out."""
    defaults = session.defaults
    fields: dict[str, Any] = {}
    if options := inputs.model_options(line, defaults.options):
        fields["options"] = options
    think = line.get("--think")
    if think is None:
        think = defaults.think or None
    if think is not None:
        if think not in _THINK and think not in _LEVELS:
            raise BadRequest(f'invalid value for --think: "{think}" (must be true, false, low, medium, high, or max)')
        fields["think"] = _THINK.get(think, think)
    shape = None
    if (form := line.get("--format")) is not None:
        fields["format"], shape = inputs.form(form, session.variables)
    if tools := inputs.tools(line.options.get("--tools", ()), session.variables):
        if "format" in fields:
            raise BadRequest("an answer that has a format calls no tools: leave out `--format` or `--tools`")
        fields["tools"] = tools.wire
    if keep_alive := line.get("--keepalive") or defaults.keep_alive:
        fields["keep_alive"] = keep_alive
    system = line.get("--system")
    shown = inputs.images(line.options.get("--image", ()), session.variables)
    told = (defaults.system or None) if system is None else system
    return Question(line.words[0], fields, told, shown, shape, tools)
