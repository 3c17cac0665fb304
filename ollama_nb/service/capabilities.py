"""What a model can do, and by which template its prompts are made.

Tags and show ask the same function, so they never disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from ollama_nb.api.models import GGUF, Model
from ollama_nb.errors import BadRequest, TemplateError
from ollama_nb.template.facts import facts, jinja_facts, jinja_preferred

GO, JINJA = "go", "jinja"
ORDER = ("completion", "embedding", "tools", "insert", "thinking", "vision", "audio", "image")

THINK_TAGS = ("<think>", "</think>")
_RENEW_HINT = ". Pull the model again to get the latest version with full thinking support"

_log = logging.getLogger("ollama_nb.service")


@dataclass(frozen=True, slots=True)
class Prompting:
    """How a model's prompts are made and its replies read.

    ``template`` is empty when the model brings none: generate then sends the bare prompt, chat uses ChatML.
    """

    path: str
    template: str = ""
    thinking: tuple[str, str] | None = None
    tool_marker: str | None = None


def prompting(model: Model, gguf: GGUF | None, go_template: bool | None) -> Prompting:
    """Choose the template. ``go_template`` is OLLAMA_GO_TEMPLATE. Raises TemplateError for a Go template that is none.

    The Go layer rules, unless the GGUF's own Jinja template can do more without losing tool results.
    """
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
        raise BadRequest(f'"{text}" does not support thinking' + (_RENEW_HINT if old else ""))


def check(model: Model, text: str, has: Collection[str], use: str, extra: Collection[str] = ()) -> None:
    """Raise Ollama's error unless a model can do ``use`` (``chat`` or ``generate``) and all of ``extra``."""
    if "completion" not in has:
        raise BadRequest(f'"{text}" does not support {use}')
    missing = [word for word in extra if word not in has]
    if missing:
        raise BadRequest(f"{model.name.full} does not support " + "\n".join(missing))


def check_template(text: str) -> None:
    """Raise BadRequest unless ``text`` is a Go template (or empty)."""
    try:
        facts(text)
    except TemplateError as error:
        raise BadRequest(f"template error: {error.message}") from None


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
        # Suffix calls use the Go template even when chats do not.
        insert = model.template is not None and facts(model.template).insert
    except TemplateError as error:
        # Such a model cannot answer, but it can be listed, shown and removed.
        _log.warning("template of %s: %s", model.name.short, error.message)
        return set()
    words = {"tools": chosen.tool_marker is not None, "insert": insert, "thinking": chosen.thinking is not None}
    return {word for word, has in words.items() if has}


def _from_weights(gguf: GGUF | None) -> set[str]:
    if gguf is None:
        return set()
    words = {"embedding" if gguf.arch("pooling_type") is not None else "completion"}
    return words | {word for word in ("vision", "audio") if gguf.arch(f"{word}.block_count") is not None}
