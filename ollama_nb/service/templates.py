"""Which template or renderer makes a model's prompts, and how its replies are parsed."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_nb import families
from ollama_nb.api.chat import GO, JINJA, RENDERER, TemplateKind
from ollama_nb.api.models import GGUF, Model
from ollama_nb.errors import TemplateError
from ollama_nb.families.card import ParserSpec
from ollama_nb.template.facts import facts, jinja_facts, jinja_preferred

THINK_TAGS = ("<think>", "</think>")

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
    family: ParserSpec | None = None


def chat_format(model: Model, gguf: GGUF | None, go_template: bool | None) -> ChatFormat:
    """Choose the template. ``go_template`` is OLLAMA_GO_TEMPLATE. Raises TemplateError for a Go template that is none,
    BadRequest for a renderer or parser that nobody knows.

    A renderer or a parser that the config names rules. Else the Go layer does, unless the GGUF's own Jinja template can
    do more without losing tool results.
    """
    if model.config.renderer or families.parser_name(model):
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
    if renderer:
        families.check_renderer(renderer)
    if parser:
        families.parser(parser)


def chat_template(gguf: GGUF | None) -> str:
    """The Jinja chat template inside a GGUF, or nothing."""
    text = gguf.metadata.get("tokenizer.chat_template") if gguf is not None else None
    return text if isinstance(text, str) else ""


def _named_format(model: Model) -> ChatFormat:
    renderer, parser = families.renderer_name(model), families.parser_name(model)
    check_names(model.config.renderer, parser)
    template = model.template or _BARE
    go = facts(template)
    return ChatFormat(
        kind=RENDERER if renderer else GO,
        template=template,
        thinking=go.thinking,
        tool_marker=go.tool_marker or "{",
        renderer=renderer,
        family=families.parser(parser) if parser else None,
    )


def _jinja_format(text: str) -> ChatFormat:
    known = jinja_facts(text)
    return ChatFormat(JINJA, text, THINK_TAGS if known.thinking else None, known.tool_marker)


def _prefers_jinja(go_text: str, jinja_text: str) -> bool:
    return jinja_preferred(facts(go_text), jinja_facts(jinja_text))
