"""FunctionGemma: ``<start_function_call>call:name{key:value}<end_function_call>``, strings in ``<escape>`` marks."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.reply.families.gemma_arguments import ArgumentReader, NotArguments
from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, Call, Exit, Region, RegionReader, Text

_CALL, _END_CALL = "<start_function_call>", "<end_function_call>"
_MARK = "<escape>"
_WORDS = {"true": True, "false": False}


def _reader(turn: Turn) -> RegionReader:
    verbatim = Exit("content", before=False, after=False)
    regions: dict[str, Region] = {
        "content": Text(CONTENT, {_CALL: verbatim._replace(to="call")}),
        "call": Call(_call, {_END_CALL: verbatim, _CALL: verbatim._replace(to="call", closes=False)}),
    }
    return RegionReader(regions, "content")


def _call(body: str, closed: bool) -> Sequence[Found | Malformed]:
    before, called, rest = body.partition("call:")
    name, braced, arguments = rest.partition("{")
    name = name.strip()
    if before.strip() or not called or not braced or not name:
        return [Malformed(body, "the tool call is not of the form call:name{…}")]
    try:
        return [Found(name, ArgumentReader(braced + arguments, _MARK, _WORDS).read())]
    except NotArguments as error:
        return [Malformed(body, f"the arguments for {name} cannot be read: {error}")]


FUNCTIONGEMMA = Family(reader=_reader, preserve=(_CALL, _END_CALL))
