"""How the families of models write their replies, by the names that models give for their parser."""

from __future__ import annotations

from ollama_nb.errors import BadRequest
from ollama_nb.reply.families.cohere import COHERE
from ollama_nb.reply.families.deepseek import COGITO, DEEPSEEK3
from ollama_nb.reply.families.functiongemma import FUNCTIONGEMMA
from ollama_nb.reply.families.gemma4 import GEMMA4, GEMMA4_NO_THINKING
from ollama_nb.reply.families.glimmer import GLIMMER
from ollama_nb.reply.families.glm import GLM47, GLM_OCR
from ollama_nb.reply.families.harmony import HARMONY
from ollama_nb.reply.families.laguna import LAGUNA, POOLSIDE
from ollama_nb.reply.families.lfm2 import LFM2, LFM2_THINKING
from ollama_nb.reply.families.ministral import MINISTRAL
from ollama_nb.reply.families.olmo import OLMO3, OLMO3_THINK
from ollama_nb.reply.families.qwen import (
    QWEN3,
    QWEN3_CODER,
    QWEN3_THINKING,
    QWEN3_VL,
    QWEN3_VL_THINKING,
    THINKING_CODER,
)
from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.regions import CONTENT, RegionReader, Text


def _verbatim(turn: Turn) -> RegionReader:
    return RegionReader({"content": Text(CONTENT, {})}, "content")


_FAMILIES = {
    "cogito": COGITO,
    "cohere": COHERE,
    "deepseek3": DEEPSEEK3,
    "functiongemma": FUNCTIONGEMMA,
    "gemma4": GEMMA4,
    "gemma4-no-thinking": GEMMA4_NO_THINKING,
    "glimmer": GLIMMER,
    "glm-4.7": GLM47,
    "glm-ocr": GLM_OCR,
    "harmony": HARMONY,
    "laguna": LAGUNA,
    "lfm2": LFM2,
    "lfm2-thinking": LFM2_THINKING,
    "ministral": MINISTRAL,
    "nemotron-3-nano": THINKING_CODER,
    "nemotron-3.5-nano": THINKING_CODER,
    "olmo3": OLMO3,
    "olmo3-think": OLMO3_THINK,
    "ornith": THINKING_CODER,
    "passthrough": Family(reader=_verbatim, tools=False),
    "poolside-v1": POOLSIDE,
    "qwen3": QWEN3,
    "qwen3-coder": QWEN3_CODER,
    "qwen3-thinking": QWEN3_THINKING,
    "qwen3-vl-instruct": QWEN3_VL,
    "qwen3-vl-thinking": QWEN3_VL_THINKING,
    "qwen3.5": THINKING_CODER,
}
NAMES = tuple(_FAMILIES)


def family(name: str) -> Family:
    """The family of that name. Raises BadRequest."""
    found = _FAMILIES.get(name)
    if found is None:
        raise BadRequest(f'unknown parser "{name}"')
    return found
