"""``%ollama run``, ``generate`` and ``chat``: send a text to a model and stream its answer into the cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from ollama_nb.client.conversation import ChatTurn, user_message
from ollama_nb.errors import BadRequest
from ollama_nb.notebook import inputs, widgets
from ollama_nb.notebook.display import CellAnswer, Interrupted, ReplyPage, follow, is_notebook
from ollama_nb.notebook.line import Line, Option, shared_options
from ollama_nb.notebook.reply import ReplyState
from ollama_nb.notebook.session import MagicsSession

if TYPE_CHECKING:
    from ollama_nb.client.shape import AnswerShape
    from ollama_nb.client.tools import Tools

OUTPUT = (Option("--output", "NAME", "also store the answer in this variable", short="-o"),)
REQUEST = (
    Option("--system", "TEXT", "system message"),
    *shared_options("run", "--think", "--think-budget", "--hidethinking", "--keepalive", "--verbose"),
    Option("--n", "N", "number of answers, from 1 to 16"),
    Option("--option", "NAME=VALUE", "any model option; may be repeated"),
)
RUN = (
    *OUTPUT,
    Option("--format", "FORMAT", "`json`, a JSON Schema, or a variable with a schema or a type (a Pydantic model, …)"),
    Option("--image", "NAME", "an image: a variable (PIL, Matplotlib, bytes) or a path; may be repeated"),
    *REQUEST,
)
CHAT = (
    *RUN,
    Option("--name", "NAME", "name of the conversation; each name has its own history", short="-n"),
    Option("--reset", help="clear the conversation first"),
    Option("--tools", "NAMES", "Python functions that the model may call, such as `f,g`; they run without asking"),
    Option("--tool-choice", "WORD", "`auto`, `required`, `none`, or the name of the function that the model must call"),
)

_THINK: dict[str, bool | str] = {"": True, "true": True, "false": False}
_THINK_LEVELS = ("low", "medium", "high", "max")
INTERRUPTED = "Interrupted. The answer so far is in `_ollama`."
_WIDGET_OPTIONS = ("temperature", "num_ctx")
_WIDGET_THINK = {"": "on", "true": "on", "false": "off", "max": "high"}


@dataclass(frozen=True, slots=True)
class Question:
    """A request without its text: ``fields`` of the request, and how to parse the answer (``shape``)."""

    model: str
    fields: dict[str, Any]
    system: str | None = None
    images: list[str] = field(default_factory=list)
    shape: AnswerShape[Any] | None = None
    tools: Tools | None = None

    def with_system(self, system: str) -> Question:
        return replace(self, system=system)

    @property
    def system_text(self) -> str:
        """The system message, followed by the names and types of the fields that the answer must have."""
        if self.shape is None:
            return self.system or ""
        from ollama_nb.client.shape import add_field_list  # with msgspec, which `%load_ext` need not load

        return add_field_list(self.system, self.shape) or ""


def run(session: MagicsSession, line: Line, cell: str | None) -> Any:
    """Ask one question without history. A line without a prompt opens the chat widget."""
    model, prompt = line.words[0], text_of(line, cell)
    if not prompt and cell is None and line.text is None:
        return open_chat(session, line)
    if not prompt:
        raise BadRequest(f"no prompt: `%ollama run {model} your question`")
    return ask(session, line, prompt, parse_question(session, line))


def ask(session: MagicsSession, line: Line, prompt: str, question: Question) -> Any:
    """Send a prompt to ``/api/generate``. One that does not fit into the context is an error; it is never cut."""
    request = {**question.fields, "prompt": prompt, "truncate": False}
    if question.system is not None or question.shape is not None:
        request["system"] = question.system_text
    if question.images:
        request["images"] = question.images
    client = session.connect()
    return stream_answer(session, line, question, lambda: client.generate(question.model, stream=True, **request))


def chat(session: MagicsSession, line: Line, cell: str | None) -> Any:
    """Send one message of a conversation that continues from cell to cell."""
    model, text = line.words[0], text_of(line, cell)
    question = parse_question(session, line)
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
    system = replace(question, system=conversation.system).system_text
    client, turns = session.connect(), list[ChatTurn]()

    def start() -> ChatTurn:
        turn = conversation.start(client, model, message, fields=question.fields, system=system, tools=question.tools)
        turns.append(turn)
        return turn

    return stream_answer(session, line, question, start, remember=lambda: turns[0].commit())


def stream_answer(
    session: MagicsSession,
    line: Line,
    question: Question,
    start: Callable[[], Iterator[Any]],
    *,
    remember: Callable[[], None] = lambda: None,
) -> Any:
    """Show an answer while it streams in. Returns it, or the value of the requested type.

    An interrupted answer is kept as well: in its variables, and by ``remember`` in the conversation.
    """
    output = output_variable(line)
    session.last_model = question.model
    reply = ReplyState(
        question.model,
        show_thinking=not line.has("--hidethinking"),
        verbose=line.has("--verbose"),
        n=question.fields.get("n", 1),
    )

    def keep() -> CellAnswer:
        answer = CellAnswer(reply)
        session.keep(("_ollama", output), answer)
        remember()
        return answer

    try:
        follow(start, ReplyPage(reply), session.screen())
    except Interrupted:
        if not reply.text and not reply.steps:
            raise
        keep()
        raise Interrupted(INTERRUPTED) from None
    answer = keep()
    if question.shape is None:
        return answer
    from ollama_nb.client.shape import parse_value  # with msgspec, which `%load_ext` need not load

    typed = parse_value(question.shape, answer)
    session.keep((output,), typed)
    return typed


def output_variable(line: Line) -> str | None:
    """The name after ``-o``. Raises BadRequest unless it can be a variable."""
    output = line.get("--output")
    if output is not None and (not output.isidentifier() or iskeyword(output)):
        raise BadRequest(f'"{output}" cannot be the name of a variable')
    return output


def text_of(line: Line, cell: str | None) -> str:
    """The text to send, exactly as typed, without the line break that IPython adds at the end of a cell."""
    if cell is None:
        return line.text or ""
    if line.text is not None:
        raise BadRequest(
            f"the text of the cell is the message: leave out `{line.text}` on its first line; "
            "a value with spaces needs quotes"
        )
    return cell.removesuffix("\n")


def parse_question(session: MagicsSession, line: Line) -> Question:
    """The question that the line's options and the defaults describe. Fields that neither sets are left out."""
    defaults = session.defaults
    fields: dict[str, Any] = {}
    if options := inputs.model_options(line, defaults.options):
        fields["options"] = options
    think = line.get("--think")
    if think is None:
        think = defaults.think or None
    if think is not None:
        if think not in _THINK and think not in _THINK_LEVELS:
            raise BadRequest(f'invalid value for --think: "{think}" (must be true, false, low, medium, high, or max)')
        fields["think"] = _THINK.get(think, think)
    for flag, name in (("--n", "n"), ("--think-budget", "think_budget")):
        if (number := line.get(flag)) is not None:
            fields[name] = _whole(flag, number)
    shape = None
    if (wanted := line.get("--format")) is not None:
        fields["format"], shape = inputs.answer_format(wanted, session.variables)
    tools = inputs.tools(line.options.get("--tools", ()), line.get("--tool-choice"), session.variables)
    if tools and "format" in fields:
        raise BadRequest("an answer with a format cannot call tools: leave out `--format` or `--tools`")
    if keep_alive := line.get("--keepalive") or defaults.keep_alive:
        fields["keep_alive"] = keep_alive
    given = line.get("--system")
    system = (defaults.system or None) if given is None else given
    if shape is not None and fields.get("n", 1) != 1:
        raise BadRequest("a type as `--format` gives one value: leave out `--n`")
    images = inputs.images(line.options.get("--image", ()), session.variables)
    return Question(line.words[0], fields, system, images, shape, tools)


def _whole(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadRequest(f'invalid value for {flag}: "{text}" is not an integer') from None


def open_chat(session: MagicsSession, line: Line) -> Any:
    """Open the chat widget with the settings of the line."""
    model = line.words[0]
    if not is_notebook(session.shell):
        raise BadRequest(f"no prompt: `%ollama run {model} your question` (the chat widget needs a notebook)")
    options = inputs.model_options(line, {})
    other = [name for name in options if name not in _WIDGET_OPTIONS]
    if other := other + [flag[2:] for flag in ("--n", "--think-budget") if line.has(flag)]:
        raise BadRequest(f"the chat widget has no setting for `--{other[0].replace('_', '-')}`")
    defaults = session.defaults
    think = line.get("--think")
    think = defaults.think or "auto" if think is None else think
    settings = {name: value for name, value in {**defaults.options, **options}.items() if name in _WIDGET_OPTIONS}
    wanted = line.get("--format")
    return widgets.Chat(
        model,
        system=line.get("--system") or defaults.system,
        think=_WIDGET_THINK.get(think, think),
        format="" if wanted is None else inputs.answer_format(wanted, session.variables)[0],
        find_server=session.connect,
        **settings,
    )
