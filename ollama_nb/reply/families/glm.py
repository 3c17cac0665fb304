"""GLM 4.7 and GLM-OCR: ``<think>`` first, calls between ``<tool_call>`` tags with tagged arguments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.reply.families.tagged_arguments import END_KEY, END_VALUE, KEY, VALUE, NotTagged, read_tagged
from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, THINKING, Call, Exit, Fork, Region, RegionReader, Text
from ollama_nb.reply.schema import Schemas

_THINK, _END_THINK, _TOOL, _END_TOOL = "<think>", "</think>", "<tool_call>", "</tool_call>"


def _reader(turn: Turn, *, starts_thinking: bool) -> RegionReader:
    regions: dict[str, Region] = {
        "start": Fork({_THINK: Exit("thinking")}, "content"),
        "thinking": Text(THINKING, {_END_THINK: Exit("content")}, _END_THINK),
        "content": Text(CONTENT, {_TOOL: Exit("call")}),
        "call": Call(
            partial(_call, Schemas(turn.tools)), {_END_TOOL: Exit("content"), _TOOL: Exit("call", closes=False)}
        ),
    }
    return RegionReader(regions, "thinking" if starts_thinking else "start")


def _call(schemas: Schemas, body: str, closed: bool) -> Sequence[Found | Malformed]:
    """A call whose closing tag is missing must be complete: half a call, repaired, could do harm."""
    try:
        name, pairs = read_tagged(body, strict=not closed)
    except NotTagged as error:
        return [Malformed(body, str(error))]
    if not closed and name not in schemas:
        return [Malformed(body, f"incomplete GLM tool call: tool '{name}' is not declared")]
    missing = None if closed else schemas.missing(name, (key for key, _ in pairs))
    if missing is not None:
        return [Malformed(body, f"incomplete GLM tool call: required argument '{missing}' is missing")]
    return [Found(name, {key: schemas.typed(name, key, value) for key, value in pairs})]


def _glm(turn: Turn) -> RegionReader:
    return _reader(turn, starts_thinking=turn.thinks(by_default=True))


_TAGS = (_THINK, _END_THINK, _TOOL, _END_TOOL, KEY, END_KEY, VALUE, END_VALUE)
GLM47 = Family(reader=_glm, thinking=True, preserve=_TAGS)
GLM_OCR = Family(reader=partial(_reader, starts_thinking=False), preserve=_TAGS)
