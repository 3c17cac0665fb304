"""LFM2: thinks when it wants to, and writes calls like Python between special tokens, sometimes without them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.reply.families.python_calls import python_calls
from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, THINKING, Call, Exit, Fork, Region, RegionReader, Text
from ollama_nb.reply.schema import Schemas

_THINK, _END_THINK = "<think>", "</think>"
_CALLS, _END_CALLS = "<|tool_call_start|>", "<|tool_call_end|>"


def _reader(turn: Turn, *, can_think: bool) -> RegionReader:
    """An answer that begins with a known tool's name and ``(`` may be a call without its marks."""
    names = Schemas(turn.tools).names()
    bare = {f"{bracket}{name}(": Exit("bare", after=False) for name in names for bracket in ("", "[")}
    regions: dict[str, Region] = {
        "start": Fork({_THINK: Exit("thinking")}, "answer", "dropped"),
        "thinking": Text(THINKING, {_END_THINK: Exit("answer")}, "\n</think>\n\n"),
        "answer": Fork(bare, "content"),
        "bare": Call(partial(_bare_calls, names), {_CALLS: Exit("calls", closes=False)}, whole=True),
        "content": Text(CONTENT, {_CALLS: Exit("calls")}),
        "calls": Call(python_calls, {_END_CALLS: Exit("content"), _CALLS: Exit("calls", closes=False)}),
    }
    thinks = can_think and turn.thinks(by_default=False) and not turn.continues
    return RegionReader(regions, "start" if thinks else "content" if turn.continues else "answer")


def _bare_calls(names: Sequence[str], body: str, closed: bool) -> Sequence[Found | Malformed]:
    items = python_calls(body, closed)
    if all(isinstance(item, Found) and item.name in names for item in items):
        return items
    return [Malformed(body)]


_TAGS = (_THINK, _END_THINK, _CALLS, _END_CALLS)
LFM2 = Family(reader=partial(_reader, can_think=False), preserve=_TAGS)
LFM2_THINKING = Family(reader=partial(_reader, can_think=True), thinking=True, preserve=_TAGS)
