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
        "qwen3-vl-instruct": "qwen_vl",
        "qwen3-vl-thinking": "qwen_vl",
        "qwen3.5": "qwen35",
        "qwen3.8": "qwen35",
        "ornith": "qwen35",
        "cogito": "cogito",
        "deepseek3.1": "deepseek",
        "olmo3": "olmo",
        "olmo3.1": "olmo",
        "olmo3-think": "olmo",
        "olmo3-32b-think": "olmo",
        "nemotron-3-nano": "nemotron",
        "nemotron-3.5-nano": "nemotron",
        "gemma4": "gemma4",
        "gemma4-small": "gemma4",
        "gemma4-large": "gemma4",
        "functiongemma": "functiongemma",
        "glm-4.7": "glm",
        "glm-ocr": "glm",
        "lfm2": "lfm2",
        "lfm2-thinking": "lfm2",
        "laguna": "laguna",
        "poolside-v1": "laguna",
        "cohere": "cohere",
        "glimmer": "glimmer",
    }
)
"""Renderer name → the module whose ``RENDERERS`` holds it; ``BOS``, if it has that, is what its prompts begin with."""

NAMES = frozenset(_FAMILIES)


def render(name: str, messages: Sequence[Message], tools: Sequence[Tool], think: Think, bos: str = "") -> str:
    """The prompt for the model's next turn; a last message of the assistant is gone on with where the family can.

    Images become ``[img-N]``, N counting over all messages, in families that see. ``bos``: what the model's tokenizer
    puts in front by itself; it takes the place of the family's own, so that the tokenizer knows it and leaves one.
    Raises TemplateError for an unknown name and for a conversation that the family refuses.
    """
    if name not in _FAMILIES:
        raise TemplateError(f'unknown renderer "{name}"')
    family = import_module(f"{__name__}.{_FAMILIES[name]}")
    prompt: str = family.RENDERERS[name](messages, tools, think)
    own = getattr(family, "BOS", "")
    return bos + prompt.removeprefix(own) if bos and own else prompt
