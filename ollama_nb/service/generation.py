"""From a chat or generate request to a ``Generation``: checks before a model is loaded, options and constraint.

The order of the checks and their messages are Ollama's: clients only ever see the first error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ollama_nb import families
from ollama_nb.api.encode import go_json, go_quote
from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.options import MAX_SEED, SEED_MASK, Options, draw_seed
from ollama_nb.api.requests import Format, Inference, PromptJob
from ollama_nb.engine.json_schema import unknown_formats
from ollama_nb.engine.threads import usable_processors
from ollama_nb.errors import BadRequest, ImagesUnsupported
from ollama_nb.families.card import ParserSpec
from ollama_nb.reply.generic import TemplateReplyParser
from ollama_nb.reply.output import ReplyContext, ReplyParser
from ollama_nb.runner import wire
from ollama_nb.service import capabilities as caps
from ollama_nb.service.backend import Backend
from ollama_nb.service.requests import CLIENT
from ollama_nb.service.resolve import weights_header
from ollama_nb.service.templates import ChatFormat, chat_format

MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 16  # replies to one prompt
MAX_WARNINGS = 10  # about formats of strings
CONSTRAINTS = ("format", "grammar", "regex", "choices")  # fields of a request, of which one may be set
_SPECIAL_TOKEN = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyFormat:
    """How the text of a reply is parsed.

    The ``parser`` of a family gets ``tools``, ``think`` and the ``last`` message of the request. Without one,
    ``thinking`` holds the tags around thinking (None: the reply has no thinking) and ``tool_marker`` the text that
    begins a tool call. ``think_budget``: most tokens of thinking, None for no limit.

    ``forced``: the reply is constrained to tool calls after its thinking, and then parsed like this.
    ``describes_tools``: the prompt has the tools in a system message. ``one_call``: the reply ends after its first tool
    call. ``detailed``: the arguments of calls are reported while they are written.
    """

    thinking: tuple[str, str] | None = None
    tools: tuple[Tool, ...] = ()
    tool_marker: str | None = None
    parser: ParserSpec | None = None
    think: Think = None
    last: Message | None = None
    think_budget: int | None = None
    forced: ReplyFormat | None = None
    describes_tools: bool = False
    one_call: bool = False
    detailed: bool = False

    @property
    def preserve(self) -> tuple[str, ...]:
        """Special tokens that must stay visible in the output because the parser looks for them."""
        if self.parser is not None:
            return self.parser.preserve
        token = _SPECIAL_TOKEN.search(self.tool_marker) if self.tools and self.tool_marker else None
        return (self.thinking or ()) + ((token[0],) if token else ())

    @property
    def thinks(self) -> bool:
        """Thinking comes before the answer."""
        return self.thinking is not None if self.parser is None else self.parser.thinking and bool(self.think)

    @property
    def context(self) -> ReplyContext:
        return ReplyContext(self.tools, self.think, self.last)

    def before_call(self, before_answer: str) -> str:
        """The output before a forced call, where ``before_answer`` is that before an answer. No change without one."""
        if self.forced is None or self.parser is None:
            return before_answer
        return before_answer.removesuffix(self.parser.answer_marker)

    def begins_in_thinking(self, prompt: str) -> bool:
        """The prompt ends with the opening tag of the thinking."""
        return self.thinking is not None and prompt.rstrip().endswith(self.thinking[0])

    def new_parser(self, prompt: str) -> ReplyParser:
        """A parser for one reply to ``prompt``."""
        parser = self.parser.create(self.context) if self.parser is not None else self._new_template_parser(prompt)
        if self.detailed:
            parser.report_arguments()
        return parser

    def _new_template_parser(self, prompt: str) -> TemplateReplyParser:
        return TemplateReplyParser(
            thinking=self.thinking,
            inside_thinking=self.begins_in_thinking(prompt),
            tools=self.tools,
            tool_marker=self.tool_marker if self.tools else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A request that passed every check: what the runner is asked, and how its reply is parsed.

    ``completion`` lacks the prompt, the context size and the adapters until the model is loaded. ``reply.think`` is the
    value for templates: None means that the request does not set it.
    """

    model: Model
    gguf: GGUF
    chat_format: ChatFormat
    completion: wire.CompletionRequest
    reply: ReplyFormat = ReplyFormat()
    warnings: tuple[str, ...] = ()

    @property
    def options(self) -> Options:
        return self.completion.options

    def asking(self, **changes: Any) -> Generation:
        """A copy whose ``completion`` has the given fields."""
        return replace(self, completion=msgspec.structs.replace(self.completion, **changes))

    def for_choice(self, index: int) -> Generation:
        """The generation of one of several choices: each has a seed of its own."""
        if not index:
            return self
        seed = ((self.options.seed & SEED_MASK) + index) % (MAX_SEED + 1)
        return self.asking(options=replace(self.options, seed=seed))

    def prompt_job(self, messages: tuple[Message, ...], loaded: wire.EngineFacts) -> PromptJob:
        """The job that renders the prompt of ``messages``."""
        return PromptJob(
            kind=self.chat_format.kind,
            template=self.chat_format.template,
            renderer=self.chat_format.renderer,
            messages=messages,
            think=self.reply.think,
            bos=loaded.bos,
            eos=loaded.eos,
            add_bos=loaded.add_bos,
        )


def check_numbers(request: Inference) -> None:
    """Raise BadRequest for a number out of its range. This check comes first, even before the model's name."""
    if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", field="top_logprobs")
    if not 1 <= request.n <= MAX_CHOICES:
        raise BadRequest(f"n must be between 1 and {MAX_CHOICES}", field="n")
    if request.think_budget is not None and request.think_budget < 0:
        raise BadRequest("think_budget must be 0 or more; leave it out for no limit", field="think_budget")


async def new_generation(
    backend: Backend, request: Inference, model: Model, use: str, *, needs: Collection[str] = (), images: bool = False
) -> Generation:
    """Check thinking, then capabilities, then options. This reads the model's files but does not load its weights.

    ``use`` is ``chat`` or ``generate``, ``needs`` the further capabilities that the request needs, and ``images`` tells
    whether it has any. Raises Ollama's errors.
    """
    gguf = await weights_header(backend, model, request.model)
    go_template = backend.settings.go_template
    has = caps.capabilities(model, gguf, go_template)
    think = False if request.think_budget == 0 else request.think
    if think:
        caps.check_thinking(model, request.model, has)
    elif think is None and "thinking" in has:
        think = True
    caps.check(model, request.model, has, use, needs)
    if images:
        _refuse_images(request.model, has)
    ignored = request.ignored
    if request.think_budget is not None and "thinking" not in has:
        ignored = (*ignored, "think_budget has no effect: this model does not think")
    options, warnings = options_in_force(model, request.options, ignored, strict=request.strict)
    chosen = chat_format(model, gguf, go_template)
    if chosen.parser is not None:
        think = chosen.parser.think_levels.get(think, think)
    return Generation(
        model=model,
        gguf=gguf,
        chat_format=chosen,
        completion=wire.CompletionRequest(
            options=seeded(options),
            shift=request.shift if request.shift is not None else families.can_shift(model.config.model_family),
            truncate=request.truncate is True,
            logprobs=request.top_logprobs if request.logprobs else -1,
            format=constraint_text(request),
            background=request.background,
            client=CLIENT.get(),
        ),
        reply=ReplyFormat(
            thinking=chosen.thinking if think else None,
            tool_marker=chosen.tool_marker,
            parser=chosen.parser,
            think=think,
            think_budget=request.think_budget,
        ),
        warnings=(*warnings, *_format_warnings(request.format)),
    )


def _format_warnings(format: Format) -> tuple[str, ...]:
    """Return a warning for each ``format`` of strings in a JSON Schema that constrains nothing; never an error."""
    names = unknown_formats(format) if isinstance(format, Mapping) else []
    warnings = [
        f'format: the string format "{name[:100]}" is unknown and constrains nothing' for name in names[:MAX_WARNINGS]
    ]
    if len(names) > MAX_WARNINGS:
        warnings.append(f"format: {len(names) - MAX_WARNINGS} more string formats are unknown")
    return tuple(warnings)


def _refuse_images(text: str, has: Collection[str]) -> None:
    if "vision" not in has:
        raise ImagesUnsupported(f'"{text}" does not support vision: send the message without images')
    raise ImagesUnsupported("this version does not read images yet: send the message without them")


def options_in_force(
    model: Model, requested: Mapping[str, Any], ignored: tuple[str, ...], *, strict: bool
) -> tuple[Options, tuple[str, ...]]:
    """The model's options overridden by the request's, and a warning for each field or option that has no effect.

    Raises BadRequest for a value of the wrong type and, when ``strict``, for fields and options of the request that
    have no effect.
    """
    options, warnings = Options.layered(model.params, requested)
    if strict and (unused := (*ignored, *Options.layered(requested)[1])):
        raise BadRequest("; ".join(unused))
    processors = usable_processors()
    if options.num_thread > processors:
        options = replace(options, num_thread=processors)
        warnings = (*warnings, f'option "num_thread": this machine has {processors} processors, as many are used')
    return options, (*ignored, *warnings)


def seeded(options: Options) -> Options:
    """The same options with a definite seed: a random one is drawn here, so that the reply can report it."""
    return replace(options, seed=draw_seed()) if options.seed == -1 else options


def constraint_text(request: Inference) -> str:
    """The constraint of the request as ``wire.CompletionRequest.format`` takes it; empty without a constraint.

    Raises BadRequest for more than one constraint and for an invalid ``format``.
    """
    format = format_text(request.format)
    given = (format, request.grammar, request.regex, request.choices is not None)
    names = [name for name, is_given in zip(CONSTRAINTS, given, strict=True) if is_given]
    if len(names) > 1:
        raise BadRequest(f"give at most one of {', '.join(CONSTRAINTS)}: this request has {' and '.join(names)}")
    if request.grammar:
        return f"grammar:{request.grammar}"
    if request.regex:
        return f"regex:{request.regex}"
    if request.choices is not None:
        return f"choices:{json.dumps(request.choices, ensure_ascii=False)}"
    return format


def format_text(format: Format) -> str:
    """``json``, a JSON Schema as text, or an empty string. Raises BadRequest for anything else."""
    if format is None or format == "":
        return ""
    if format == "json":
        return "json"
    if isinstance(format, Mapping):
        return json.dumps(dict(format), ensure_ascii=False, separators=(",", ":"))
    raise BadRequest(f'invalid format: {go_quote(go_json(format))}; expected "json" or a valid JSON Schema object')
