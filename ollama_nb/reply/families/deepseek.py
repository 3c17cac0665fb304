"""DeepSeek 3 and Cogito: thinking up to ``</think>``, then text, a section of calls, and tool outputs made up."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.objects import read_object
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, HIDDEN, THINKING, Call, Exit, Reading, Region, RegionReader, Text

_END_THINK = "</think>"
_CALLS, _END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_OUTPUTS, _END_OUTPUTS = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
_OUTPUT, _END_OUTPUT = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
_FENCED = re.compile(r"\n```json\n(.*?)\n```", re.DOTALL)


def _regions(reading: Reading) -> dict[str, Region]:
    """Text that strays into the section of calls is content."""
    return {
        "thinking": Text(THINKING, {_END_THINK: Exit("content")}, _END_THINK),
        "calls": Text(CONTENT, {_CALL: Exit("call"), _END_CALLS: Exit("content")}),
        "call": Call(
            reading, {_END_CALL: Exit("calls"), _CALL: Exit("call", closes=False), _END_CALLS: Exit("content")}
        ),
    }


def _deepseek(turn: Turn) -> RegionReader:
    """Tool outputs that the model made up are shown without their tags."""
    verbatim = Exit("output", before=False, after=False)
    regions = _regions(_plain_call) | {
        "content": Text(CONTENT, {_CALLS: Exit("calls"), _OUTPUT: verbatim}),
        "output": Text(CONTENT, {_END_OUTPUT: verbatim._replace(to="content")}),
    }
    thinks = turn.thinks(by_default=False) and not turn.continues
    return RegionReader(regions, "thinking" if thinks else "content")


def _cogito(turn: Turn) -> RegionReader:
    """It does not think when it has tools, and tool outputs that it made up are left out."""
    regions = _regions(_fenced_call) | {
        "content": Text(CONTENT, {_CALLS: Exit("calls"), _OUTPUTS: Exit("outputs")}),
        "outputs": Text(HIDDEN, {_END_OUTPUTS: Exit("content")}),
    }
    thinks = turn.thinks(by_default=False) and not turn.continues and not turn.tools
    return RegionReader(regions, "thinking" if thinks else "content")


def _plain_call(body: str, closed: bool) -> Sequence[Found | Malformed]:
    """``name<｜tool▁sep｜>{…}``"""
    name, separated, arguments = body.partition(_SEPARATOR)
    return _call(body, name if separated else "", arguments)


def _fenced_call(body: str, closed: bool) -> Sequence[Found | Malformed]:
    """``function<｜tool▁sep｜>name`` and the arguments in a JSON code block."""
    named = body.partition(_SEPARATOR)[2]
    match = _FENCED.search(named)
    if match is None:
        return [Malformed(body, "the tool call has no JSON code block")]
    return _call(body, named[: match.start()], match[1])


def _call(body: str, name: str, arguments: str) -> Sequence[Found | Malformed]:
    name, found = name.strip(), read_object(arguments.strip())
    if not name:
        return [Malformed(body, "the tool call names no tool")]
    return [Malformed(body, f"the arguments for {name} are no JSON object") if found is None else Found(name, found)]


_TAGS = (_END_THINK, _CALLS, _END_CALLS, _CALL, _END_CALL, _SEPARATOR, _OUTPUT, _END_OUTPUT)
DEEPSEEK3 = Family(reader=_deepseek, thinking=True, preserve=_TAGS)
COGITO = Family(reader=_cogito, thinking=True, preserve=(*_TAGS, _OUTPUTS, _END_OUTPUTS))
