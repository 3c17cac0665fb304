"""What a model can do, by its files and its templates. Tags and show call the same function, so they always agree."""

from __future__ import annotations

import logging
from collections.abc import Collection

from ollama_nb import families
from ollama_nb.api.models import GGUF, Model
from ollama_nb.errors import (
    BadRequest,
    CompletionUnsupported,
    InsertUnsupported,
    ThinkingUnsupported,
    ToolsUnsupported,
    Unsupported,
)
from ollama_nb.service.templates import ChatFormat, chat_format
from ollama_nb.template.facts import Facts, facts

ORDER = ("completion", "embedding", "tools", "insert", "thinking", "vision", "audio", "image")

_PULL_AGAIN_HINT = ". Pull the model again to get the latest version with full thinking support"
_UNSUPPORTED: dict[str, type[Unsupported]] = {"tools": ToolsUnsupported, "insert": InsertUnsupported}

_log = logging.getLogger("ollama_nb.service")


def capabilities(model: Model, gguf: GGUF | None, go_template: bool | None) -> tuple[str, ...]:
    """The capabilities of a model in a fixed order; unknown ones from its config come last."""
    found = set(model.config.capabilities) | _from_template(model, gguf, go_template) | _from_weights(gguf)
    if model.projectors:
        found.add("vision")
    known = tuple(word for word in ORDER if word in found)
    return known + tuple(sorted(found.difference(ORDER)))


def check_thinking(model: Model, text: str, has: Collection[str]) -> None:
    """Raise ThinkingUnsupported unless the model can think."""
    if "thinking" not in has:
        old = any(family.hint_to_pull for family in families.of_model(model))
        raise ThinkingUnsupported(f'"{text}" does not support thinking' + (_PULL_AGAIN_HINT if old else ""))


def check(model: Model, text: str, has: Collection[str], use: str, needs: Collection[str] = ()) -> None:
    """Raise Unsupported unless the model can do ``use`` (``chat`` or ``generate``) and has all of ``needs``."""
    if "completion" not in has:
        raise CompletionUnsupported(f'"{text}" does not support {use}')
    missing = [word for word in needs if word not in has]
    if missing:
        kind = _UNSUPPORTED.get(missing[0], Unsupported)
        raise kind(f"{model.name.full} does not support " + "\n".join(missing))


def _from_template(model: Model, gguf: GGUF | None, go_template: bool | None) -> set[str]:
    try:
        chosen = chat_format(model, gguf, go_template)
        layer = facts(model.template) if model.template is not None else None
    except BadRequest as error:
        # Such a model cannot generate, but it can be listed, shown and deleted.
        _log.warning("template of %s: %s", model.name.short, error.message)
        return set()
    return _of_format(chosen, layer).union(*(family.capabilities for family in families.of_model(model)))


def _of_format(chosen: ChatFormat, layer: Facts | None) -> set[str]:
    """The capabilities that the chat format gives. A suffix always uses the Go template ``layer``."""
    tools, thinking = chosen.tool_marker is not None, chosen.thinking is not None
    if chosen.renderer or chosen.parser is not None:
        tools = layer is not None and layer.tools
    if chosen.parser is not None:
        tools, thinking = tools or chosen.parser.tools, thinking or chosen.parser.thinking
    words = {"tools": tools, "insert": layer is not None and layer.insert, "thinking": thinking}
    return {word for word, has in words.items() if has}


def _from_weights(gguf: GGUF | None) -> set[str]:
    if gguf is None:
        return set()
    words = {"embedding" if gguf.arch("pooling_type") is not None else "completion"}
    return words | {word for word in ("vision", "audio") if gguf.arch(f"{word}.block_count") is not None}
