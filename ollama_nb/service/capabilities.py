"""What a model can do, by which template or renderer its prompts are made, and how its replies are read.

Tags and show ask the same function, so they never disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from ollama_nb.api.chat import GO, JINJA, RENDERER, TemplateKind
from ollama_nb.api.models import GGUF, Model
from ollama_nb.errors import (
    BadRequest,
    CompletionUnsupported,
    InsertUnsupported,
    TemplateError,
    ThinkingUnsupported,
    ToolsUnsupported,
    Unsupported,
)
from ollama_nb.reply import families
from ollama_nb.reply.family import Family
from ollama_nb.template import renderers
from ollama_nb.template.facts import Facts, facts, jinja_facts, jinja_preferred

ORDER = ("completion", "embedding", "tools", "insert", "thinking", "vision", "audio", "image")

THINK_TAGS = ("<think>", "</think>")
_RENEW_HINT = ". Pull the model again to get the latest version with full thinking support"

_UNSUPPORTED: dict[str, type[Unsupported]] = {"tools": ToolsUnsupported, "insert": InsertUnsupported}

_log = logging.getLogger("ollama_nb.service")


@dataclass(frozen=True, slots=True)
class Prompting:
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


def prompting(model: Model, gguf: GGUF | None, go_template: bool | None) -> Prompting:
    """Choose the template. ``go_template`` is OLLAMA_GO_TEMPLATE. Raises TemplateError for a Go template that is none,
    BadRequest for a renderer or parser that nobody knows.

    A renderer or a parser that the config names rules. Else the Go layer does, unless the GGUF's own Jinja template can
    do more without losing tool results.
    """
    if model.config.renderer or parser_name(model):
        return _named_prompting(model)
    jinja = chat_template(gguf)
    if model.template is None:
        return _jinja_prompting(jinja) if jinja else Prompting(JINJA)
    if jinja and go_template is not True and (go_template is False or _prefers_jinja(model.template, jinja)):
        return _jinja_prompting(jinja)
    go = facts(model.template)
    return Prompting(GO, model.template, go.thinking, go.tool_marker)


def capabilities(model: Model, gguf: GGUF | None, go_template: bool | None) -> tuple[str, ...]:
    """The capability words of a model, in a fixed order, unknown ones of its config at the end."""
    found = set(model.config.capabilities) | _from_template(model, gguf, go_template) | _from_weights(gguf)
    if model.projectors:
        found.add("vision")
    known = tuple(word for word in ORDER if word in found)
    return known + tuple(sorted(found.difference(ORDER)))


def check_thinking(model: Model, text: str, has: Collection[str]) -> None:
    """Raise Ollama's error for a request that wants thinking of a model that cannot."""
    if "thinking" not in has:
        old = model.config.model_family == "qwen3" or model.name.model == "deepseek-r1"
        raise ThinkingUnsupported(f'"{text}" does not support thinking' + (_RENEW_HINT if old else ""))


def check(model: Model, text: str, has: Collection[str], use: str, extra: Collection[str] = ()) -> None:
    """Raise Ollama's error unless a model can do ``use`` (``chat`` or ``generate``) and all of ``extra``."""
    if "completion" not in has:
        raise CompletionUnsupported(f'"{text}" does not support {use}')
    missing = [word for word in extra if word not in has]
    if missing:
        kind = _UNSUPPORTED.get(missing[0], Unsupported)
        raise kind(f"{model.name.full} does not support " + "\n".join(missing))


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


_GEMMA4 = "gemma4"
_GPT_OSS = ("gptoss", "gpt-oss")
_SCALES = {"K": 1e3, "M": 1e6, "B": 1e9}


def _parameters(text: str) -> float:
    """A parameter count as a config writes it (``4.3B``); 0 for anything else."""
    try:
        return float(text[:-1]) * _SCALES[text[-1:].upper()]
    except (KeyError, ValueError):
        return 0.0


def _speaks_harmony(model: Model) -> bool:
    template = model.template or ""
    return model.config.model_family in _GPT_OSS and "<|start|>" in template and "<|end|>" in template


def _named_prompting(model: Model) -> Prompting:
    renderer, parser = renderer_name(model), parser_name(model)
    check_names(model.config.renderer, parser)
    template = model.template or _BARE
    go = facts(template)
    return Prompting(
        kind=RENDERER if renderer else GO,
        template=template,
        thinking=go.thinking,
        tool_marker=go.tool_marker or "{",
        renderer=renderer,
        family=families.family(parser) if parser else None,
        harmony=parser == "harmony",
    )


_BARE = "{{ .Prompt }}"
"""Stands in for the template of a model that has none and names a renderer or a parser."""


def chat_template(gguf: GGUF | None) -> str:
    """The Jinja chat template inside a GGUF, or nothing."""
    text = gguf.metadata.get("tokenizer.chat_template") if gguf is not None else None
    return text if isinstance(text, str) else ""


def _prefers_jinja(go_text: str, jinja_text: str) -> bool:
    return jinja_preferred(facts(go_text), jinja_facts(jinja_text))


def _jinja_prompting(text: str) -> Prompting:
    known = jinja_facts(text)
    return Prompting(JINJA, text, THINK_TAGS if known.thinking else None, known.tool_marker)


def _from_template(model: Model, gguf: GGUF | None, go_template: bool | None) -> set[str]:
    try:
        chosen = prompting(model, gguf, go_template)
        layer = facts(model.template) if model.template is not None else None
    except BadRequest as error:
        # Such a model cannot answer, but it can be listed, shown and removed.
        _log.warning("template of %s: %s", model.name.short, error.message)
        return set()
    return _words(chosen, layer) | ({"thinking"} if model.config.model_family in _GPT_OSS else set())


def _words(chosen: Prompting, layer: Facts | None) -> set[str]:
    """Suffix calls use the Go template even when chats do not."""
    tools, thinking = chosen.tool_marker is not None, chosen.thinking is not None
    if chosen.renderer or chosen.family is not None:
        tools = layer is not None and layer.tools
    if chosen.family is not None:
        tools, thinking = tools or chosen.family.tools, thinking or chosen.family.thinking
    words = {"tools": tools, "insert": layer is not None and layer.insert, "thinking": thinking}
    return {word for word, has in words.items() if has}


def _from_weights(gguf: GGUF | None) -> set[str]:
    if gguf is None:
        return set()
    words = {"embedding" if gguf.arch("pooling_type") is not None else "completion"}
    return words | {word for word in ("vision", "audio") if gguf.arch(f"{word}.block_count") is not None}
