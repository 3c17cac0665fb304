"""Prompts of model families by name: the wire formats that a model's config asks for instead of a template.

Rule: one file a family, loaded when first asked for; what comes out is one prompt, and nothing here keeps a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.errors import TemplateError

_FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "qwen3-coder": "qwen_coder",
    }
)
"""Renderer name → the module whose ``RENDERERS`` holds it."""

NAMES = frozenset(_FAMILIES)


def render(name: str, messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    """The prompt for the model's next turn; a last message of the assistant is gone on with where the family can.

    Images become ``[img-N]``, N counting over all messages, in families that see. Raises TemplateError for an unknown
    name and for a conversation that the family refuses.
    """
    if name not in _FAMILIES:
        raise TemplateError(f'unknown renderer "{name}"')
    prompt: str = import_module(f"{__name__}.{_FAMILIES[name]}").RENDERERS[name](messages, tools, think)
    return prompt
