"""OLMo 3: ``<function_calls>`` with calls written like Python; its thinking variant only thinks."""

from __future__ import annotations

from ollama_nb.reply.families.python_calls import python_calls
from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.regions import CONTENT, THINKING, Call, Exit, Region, RegionReader, Text

_CALLS, _END_CALLS, _END_THINK = "<function_calls>", "</function_calls>", "</think>"
_VERBATIM = Exit("content", before=False, after=False)


def _olmo3(turn: Turn) -> RegionReader:
    regions: dict[str, Region] = {
        "content": Text(CONTENT, {_CALLS: _VERBATIM._replace(to="calls")}),
        "calls": Call(python_calls, {_END_CALLS: _VERBATIM, _CALLS: _VERBATIM._replace(to="calls", closes=False)}),
    }
    return RegionReader(regions, "content")


def _olmo3_think(turn: Turn) -> RegionReader:
    regions: dict[str, Region] = {
        "thinking": Text(THINKING, {_END_THINK: Exit("content")}, "\n</think>\n\n"),
        "content": Text(CONTENT, {}),
    }
    return RegionReader(regions, "content" if turn.continues else "thinking")


OLMO3 = Family(reader=_olmo3, preserve=(_CALLS, _END_CALLS))
OLMO3_THINK = Family(reader=_olmo3_think, tools=False, thinking=True, preserve=(_END_THINK,))
