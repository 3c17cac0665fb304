"""Requests to the service: the parsed bodies of the REST API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollama_nb.api.messages import ANY_TOOL_OR_NONE, Message, Think, Tool, ToolChoice

Truncate = bool | Literal["messages"]
"""What may be left out of a prompt that does not fit into the context.

True: old messages, then tokens in the middle of what remains, as Ollama does. ``"messages"`` (chat only): whole old
messages. False: nothing. What still does not fit raises ContextOverflow.
"""

Format = str | Mapping[str, Any] | None
"""``"json"``, a JSON Schema, or None for free text."""

TemplateKind = Literal["go", "jinja", "renderer"]
"""What renders a prompt: a Go template, a GGUF file's Jinja template, or the built-in renderer of a model family."""

GO: TemplateKind = "go"
JINJA: TemplateKind = "jinja"
RENDERER: TemplateKind = "renderer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """The common fields of all requests that need a loaded model.

    ``options`` are the request's own, without the defaults of the model. ``keep_alive`` is in seconds: infinity for
    forever, None for no change. ``ignored`` has a warning for each field without effect; with ``strict`` such fields
    and unknown options are errors.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: float | None = None
    request_id: str = ""
    ignored: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference(ModelRequest):
    """The common fields of chat and generate.

    At most one of ``format``, ``grammar`` (GBNF), ``regex`` (matches the whole reply) and ``choices`` (the reply is one
    of them) is set. ``top_logprobs`` has no effect without ``logprobs``. With ``run_record`` the reply holds what is
    needed to repeat it, and the name of the ``user`` on whose behalf the client asks.

    ``n`` replies (choices) to one prompt, which is read once; choice ``i`` uses the seed plus ``i``. ``think_budget``:
    most tokens of thinking, after which the answer is forced to begin (0: no thinking, None: no limit). ``background``
    requests only run while no other request does. ``detailed``: also yield PromptRead and ToolCallDelta events.
    """

    format: Format = None
    grammar: str = ""
    regex: str = ""
    choices: tuple[str, ...] | None = None
    think: Think = None
    logprobs: bool = False
    top_logprobs: int = 0
    truncate: Truncate = True
    shift: bool | None = None
    render_only: bool = False
    run_record: bool = False
    n: int = 1
    think_budget: int | None = None
    user: str = ""
    background: bool = False
    detailed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Inference):
    """``parallel_tool_calls`` False: the reply ends after its first tool call."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ANY_TOOL_OR_NONE
    parallel_tool_calls: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether the request only loads or unloads the model and asks for no reply."""
        return not self.messages

    @property
    def unloads(self) -> bool:
        """Whether the request only unloads the model."""
        return self.is_empty and self.keep_alive == 0


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a project, as context for a gap in another file."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Infill:
    """A gap between two texts that the model is to fill. ``files``: other texts of the project, the nearest last."""

    prefix: str
    suffix: str
    files: tuple[SourceFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(Inference):
    """``context`` is None if the client did not send it, and empty if it sent ``[]``.

    ``tokens``: the prompt as token ids, read as they are; ``prompt`` is empty then. ``infill``: a gap to fill with the
    model's own tokens for that purpose, in place of a prompt.
    """

    prompt: str = ""
    tokens: tuple[int, ...] = ()
    suffix: str = ""
    infill: Infill | None = None
    system: str = ""
    template: str = ""
    context: tuple[int, ...] | None = None
    raw: bool = False
    images: tuple[bytes, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the request only loads or unloads the model and asks for no reply."""
        return not self.prompt and not self.tokens and self.infill is None

    @property
    def unloads(self) -> bool:
        """Whether the request only unloads the model."""
        return self.is_empty and self.keep_alive == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest(ModelRequest):
    """``inputs`` are texts or token ids; None only loads the model. ``dimensions`` 0 keeps the model's number.

    ``truncate`` None cuts texts that are too long, except in a strict request; True cuts them there too.
    ``background`` requests are computed in small pieces, each once no other request runs.
    """

    inputs: tuple[str | tuple[int, ...], ...] | None = None
    truncate: bool | None = None
    dimensions: int = 0
    background: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest(ModelRequest):
    """``top_n`` None returns all documents. ``truncate`` as in an EmbedRequest."""

    query: str = ""
    documents: tuple[str, ...] = ()
    top_n: int | None = None
    return_documents: bool = False
    truncate: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """A text (``prompt``) or a conversation (``messages``), which is rendered as for a chat."""

    model: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    think: Think = None
    add_special: bool = True
    parse_special: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowRequest:
    """``system`` and ``options`` replace the model's in the Modelfile that is shown."""

    model: str
    verbose: bool = False
    system: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """``files``, ``adapters`` and ``draft_files`` map a relative path to a blob digest (``sha256:…``).

    ``ignored`` has a warning for each field without effect; with ``strict`` such fields and unknown parameters are
    errors.
    """

    model: str
    from_: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    draft_files: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    licenses: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    quantize: str = ""
    draft_quantize: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    strict: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """``as_`` is the local name. ``streams`` parallel connections, ``max_rate`` bytes per second; 0 is the default."""

    model: str
    as_: str = ""
    insecure: bool = False
    streams: int = 0
    max_rate: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """``max_rate`` is in bytes per second, 0 for no limit."""

    model: str
    insecure: bool = False
    max_rate: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptJob:
    """Everything that a prompt is rendered from; sent to the render process unchanged.

    ``renderer`` names a built-in renderer and is set for the kind ``renderer`` only. With a ``suffix`` (Go templates
    only) the prompt asks the model to fill the gap between ``prompt`` and ``suffix``, and there are no messages. The
    result has one prompt for each entry of ``drops``, which is the number of oldest messages to leave out: system
    messages among them stay at the front, and the last message always stays. ``add_bos``: the tokenizer adds ``bos``.
    """

    kind: TemplateKind
    template: str
    renderer: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    think: Think = None
    prompt: str = ""
    suffix: str = ""
    bos: str = ""
    eos: str = ""
    add_bos: bool = False
    drops: tuple[int, ...] = (0,)
