"""Which template or renderer makes a model's prompts, and how its replies are parsed."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_nb import families
from ollama_nb.api.messages import Message
from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.requests import GO, JINJA, RENDERER, PromptJob, TemplateKind
from ollama_nb.errors import TemplateError
from ollama_nb.families.card import ParserSpec
from ollama_nb.service.backend import Backend
from ollama_nb.template.facts import THINK_TAGS, facts, jinja_facts, jinja_preferred

_BARE = "{{ .Prompt }}"
"""Used for a model without a template that names a renderer or a parser."""


_TURNS = (Message("user", "Hello"), Message("assistant", "Hello!"), Message("user", "How are you?"))
SHORT_CONVERSATIONS = (_TURNS, (Message("system", "Answer briefly."), *_TURNS))
"""Of which a template must be able to render one. It may require a system message, or reject it."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model's prompts are rendered and its replies parsed.

    ``template`` is empty when the model has no template: generate then sends the prompt as it is, chat uses ChatML.
    ``parser`` is for models that name a parser; ``thinking`` and ``tool_marker`` are for the others.
    """

    kind: TemplateKind
    template: str = ""
    thinking: tuple[str, str] | None = None
    tool_marker: str | None = None
    renderer: str = ""
    parser: ParserSpec | None = None


def chat_format(model: Model, gguf: GGUF | None, go_template: bool | None) -> ChatFormat:
    """Choose the renderer or template of a model. ``go_template`` is the setting OLLAMA_GO_TEMPLATE.

    A renderer or parser named in the config comes first, then the Go template of the manifest, unless the Jinja
    template in the GGUF supports more and also supports tool results. Raises TemplateError for an invalid Go template,
    BadRequest for an unknown renderer or parser.
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
    """Raise TemplateError unless ``text`` is empty or a valid Go template."""
    try:
        facts(text)
    except TemplateError as error:
        raise TemplateError(f"template error: {error.message}") from None


async def check_rendering(backend: Backend, text: str) -> None:
    """Raise TemplateError if a Go template can render no short conversation, for example within its time."""
    for messages in SHORT_CONVERSATIONS:
        try:
            await backend.renderer.render(PromptJob(kind=GO, template=text, messages=messages))
        except TemplateError as error:
            failure = error
        else:
            return
    raise TemplateError(f"template error: it renders no conversation: {failure.message}")


def check_names(renderer: str, parser: str) -> None:
    """Raise BadRequest unless both are empty or known."""
    if renderer:
        families.check_renderer(renderer)
    if parser:
        families.parser(parser)


def chat_template(gguf: GGUF | None) -> str:
    """The Jinja chat template inside a GGUF; empty if it is missing."""
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
        parser=families.parser(parser) if parser else None,
    )


def _jinja_format(text: str) -> ChatFormat:
    known = jinja_facts(text)
    return ChatFormat(JINJA, text, THINK_TAGS if known.thinking else None, known.tool_marker)


def _prefers_jinja(go_text: str, jinja_text: str) -> bool:
    return jinja_preferred(facts(go_text), jinja_facts(jinja_text))
