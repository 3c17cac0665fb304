"""Requests that a model answers, after their JSON was read and before any work was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollama_nb.api.messages import Message, Think, Tool

Truncate = bool | Literal["messages"]
"""What may be left out of a prompt that does not fit into the context.

True: old messages, then tokens in the middle of what remains, as Ollama does. ``"messages"`` (chat only): whole old
messages. False: nothing. What still does not fit raises ContextOverflow.
"""

Format = str | Mapping[str, Any] | None
"""``"json"``, a JSON Schema, or None for free text."""

TemplateKind = Literal["go", "jinja", "renderer"]
"""What makes a prompt: a Go template, a GGUF's Jinja chat template, or a renderer of ours for a family of models."""

GO: TemplateKind = "go"
JINJA: TemplateKind = "jinja"
RENDERER: TemplateKind = "renderer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """What all requests have in common that need a model loaded.

    ``options`` are the request's own, unlayered. ``keep_alive`` is seconds, inf for ever, None for "leave as is".
    ``ignored``: a warning for each field of the request that means nothing here; ``strict`` makes it, and each unknown
    option, an error.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: float | None = None
    request_id: str = ""
    ignored: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference(ModelRequest):
    """What chat and generate have in common. ``top_logprobs`` counts only with ``logprobs``.

    At most one of ``format``, ``grammar`` (GBNF), ``regex`` (the whole answer matches) and ``choices`` (the answer is
    one of them). ``run_record``: tell how to repeat the run.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Inference):
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()

    @property
    def is_empty(self) -> bool:
        """There is nothing to answer: the request only loads or unloads the model."""
        return not self.messages

    @property
    def unloads(self) -> bool:
        """The request only takes the model out of memory."""
        return self.is_empty and self.keep_alive == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(Inference):
    """``context`` None means absent; an empty tuple means that the client sent ``[]``."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: tuple[int, ...] | None = None
    raw: bool = False
    images: tuple[bytes, ...] = ()

    @property
    def is_empty(self) -> bool:
        """There is nothing to answer: the request only loads or unloads the model."""
        return not self.prompt

    @property
    def unloads(self) -> bool:
        """The request only takes the model out of memory."""
        return self.is_empty and self.keep_alive == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest(ModelRequest):
    """``inputs`` None: load only. ``dimensions`` 0: as the model gives them."""

    inputs: tuple[str, ...] | None = None
    truncate: bool = True
    dimensions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest(ModelRequest):
    """``top_n`` None: all of them."""

    query: str = ""
    documents: tuple[str, ...] = ()
    top_n: int | None = None
    return_documents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """``prompt`` as it stands, or ``messages`` as a chat would be rendered. ``prompt`` None: not sent."""

    model: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    think: Think = None
    add_special: bool = True
    parse_special: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """``files``, ``adapters`` and ``draft_files`` map a relative path to a blob digest (``sha256:…``).

    ``ignored``: a warning for each field of the request that means nothing here; ``strict`` makes it, and each unknown
    parameter, an error.
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
    """``as_`` is the local name. ``streams`` are parts at a time, ``max_rate`` bytes a second; 0: as we like."""

    model: str
    as_: str = ""
    insecure: bool = False
    streams: int = 0
    max_rate: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """``max_rate``: bytes a second, 0 for no limit."""

    model: str
    insecure: bool = False
    max_rate: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptJob:
    """Everything that a prompt is rendered from; crosses to the render process as it is.

    ``renderer`` names one of ours, where the ``kind`` is that. With a ``suffix`` (Go templates only) the gap between
    ``prompt`` and it is to be filled in, and there are no messages. One prompt comes back per entry of ``drops``: the
    number of oldest messages left out (system messages among them are kept in front; the last message always stays).
    ``add_bos``: the tokenizer writes ``bos`` by itself.
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
