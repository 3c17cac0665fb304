"""Which template or renderer makes a model's prompts, and how its replies are parsed."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_nb.api.chat import GO, JINJA, RENDERER, TemplateKind
from ollama_nb.api.models import GGUF, Model
from ollama_nb.errors import BadRequest, TemplateError
from ollama_nb.reply import families
from ollama_nb.reply.family import Family
from ollama_nb.template import renderers
from ollama_nb.template.facts import facts, jinja_facts, jinja_preferred

THINK_TAGS = ("<think>", "</think>")
GPT_OSS = ("gptoss", "gpt-oss")

_GEMMA4 = "gemma4"
_SCALES = {"K": 1e3, "M": 1e6, "B": 1e9}
_BARE = "{{ .Prompt }}"
"""The template of a model that has none and names a renderer or a parser."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model's prompts are made and its replies read.

    ``template`` is empty when the model brings none: generate then sends the bare prompt, chat uses ChatML.
    ``family`` reads the replies of models that name a parser; ``thinking`` and ``tool_marker`` serve all others.
    """

    kind: TemplateKind
    template: str = ""
    thinking: tuple[str, str] | None = None
    tool_marker: str | None = None
    renderer: str = ""
    family: Family | None = None
    harmony: bool = False


def chat_format(model: Model, gguf: GGUF | None, go_template: bool | None) -> ChatFormat:
    """Choose the template. ``go_template`` is OLLAMA_GO_TEMPLATE. Raises TemplateError for a Go template that is none,
    BadRequest for a renderer or parser that nobody knows.

    A renderer or a parser that the config names rules. Else the Go layer does, unless the GGUF's own Jinja template can
    do more without losing tool results.
    """
    if model.config.renderer or parser_name(model):
        return _named_format(model)
    jinja = chat_template(gguf)
    if model.template is None:
        return _jinja_format(jinja) if jinja else ChatFormat(JINJA)
    if jinja and go_template is not True and (go_template is False or _prefers_jinja(model.template, jinja)):
        return _jinja_format(jinja)
    go = facts(model.template)
    return ChatFormat(GO, model.template, go.thinking, go.tool_marker)


def check_template(text: str) -> None:
    """Raise BadRequest unless ``text`` is a Go template (or empty)."""
    try:
        facts(text)
    except TemplateError as error:
        raise TemplateError(f"template error: {error.message}") from None


def check_names(renderer: str, parser: str) -> None:
    """Raise BadRequest unless both are empty or known."""
    if renderer and renderer not in renderers.NAMES:
        raise BadRequest(f'unknown renderer "{renderer}"')
    if parser:
        families.family(parser)


def parser_name(model: Model) -> str:
    """The parser that the config names; that of gpt-oss models is known by their template."""
    if model.config.parser:
        return model.config.parser
    return "harmony" if _speaks_harmony(model) else ""


def renderer_name(model: Model) -> str:
    """The renderer that the config names; for Gemma 4 the one for the model's size."""
    if model.config.renderer != _GEMMA4:
        return model.config.renderer
    name = model.name.short.lower()
    if any(size in name for size in ("e2b", "e4b")):
        return _GEMMA4 + "-small"
    if any(size in name for size in ("12b", "26b", "31b")):
        return _GEMMA4 + "-large"
    return _GEMMA4 + ("-large" if _parameters(model.config.model_type) >= 12e9 else "-small")


def chat_template(gguf: GGUF | None) -> str:
    """The Jinja chat template inside a GGUF, or nothing."""
    text = gguf.metadata.get("tokenizer.chat_template") if gguf is not None else None
    return text if isinstance(text, str) else ""


def _parameters(text: str) -> float:
    """A parameter count as a config writes it (``4.3B``); 0 for anything else."""
    try:
        return float(text[:-1]) * _SCALES[text[-1:].upper()]
    except (KeyError, ValueError):
        return 0.0


def _speaks_harmony(model: Model) -> bool:
    template = model.template or ""
    return model.config.model_family in GPT_OSS and "<|start|>" in template and "<|end|>" in template


def _named_format(model: Model) -> ChatFormat:
    renderer, parser = renderer_name(model), parser_name(model)
    check_names(model.config.renderer, parser)
    template = model.template or _BARE
    go = facts(template)
    return ChatFormat(
        kind=RENDERER if renderer else GO,
        template=template,
        thinking=go.thinking,
        tool_marker=go.tool_marker or "{",
        renderer=renderer,
        family=families.family(parser) if parser else None,
        harmony=parser == "harmony",
    )


def _jinja_format(text: str) -> ChatFormat:
    known = jinja_facts(text)
    return ChatFormat(JINJA, text, THINK_TAGS if known.thinking else None, known.tool_marker)


def _prefers_jinja(go_text: str, jinja_text: str) -> bool:
    return jinja_preferred(facts(go_text), jinja_facts(jinja_text))
