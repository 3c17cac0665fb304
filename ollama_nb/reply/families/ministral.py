"""Ministral: ``[TOOL_CALLS]name[ARGS]{…}``, and ``[THINK]…[/THINK]`` blocks within the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.objects import read_object
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, THINKING, Call, Exit, Region, RegionReader, Text
from ollama_nb.reply.schema import Schemas

_CALLS, _ARGUMENTS, _THINK, _END_THINK = "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"


def _reader(turn: Turn) -> RegionReader:
    regions: dict[str, Region] = {
        "content": Text(CONTENT, {_CALLS: Exit("call"), _THINK: Exit("thinking", after=False)}),
        "thinking": Text(THINKING, {_END_THINK: Exit("content", before=False)}, _END_THINK),
        "call": Call(partial(_call, Schemas(turn.tools)), {_CALLS: Exit("call", closes=False)}, by_object="content"),
    }
    return RegionReader(regions, "content")


def _call(schemas: Schemas, body: str, closed: bool) -> Sequence[Found | Malformed]:
    name, marked, arguments = body.partition(_ARGUMENTS)
    name = name.strip()
    if not marked:
        return [Malformed(body, f"the tool call has no {_ARGUMENTS}")]
    if name not in schemas:
        return [Malformed(body, f"tool '{name}' not found")]
    found = read_object(arguments)
    return [Malformed(body, f"the arguments for {name} are no JSON object") if found is None else Found(name, found)]


MINISTRAL = Family(reader=_reader, preserve=(_CALLS, _THINK, _END_THINK, _ARGUMENTS))
