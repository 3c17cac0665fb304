"""Cohere's Command A and North models: a reply in blocks of thinking, text and actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.objects import as_object, objects_in, read_json, read_object
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, HIDDEN, THINKING, Call, Exit, Fork, Region, RegionReader, Text

_THINK, _END_THINK = "<|START_THINKING|>", "<|END_THINKING|>"
_TEXT, _END_TEXT = "<|START_TEXT|>", "<|END_TEXT|>"
_RESPONSE, _END_RESPONSE = "<|START_RESPONSE|>", "<|END_RESPONSE|>"
_ACTION, _END_ACTION = "<|START_ACTION|>", "<|END_ACTION|>"
_END_TURN = "<|END_OF_TURN_TOKEN|>"


def _reader(turn: Turn) -> RegionReader:
    """Text between blocks is content too."""
    thinks = turn.thinks(by_default=True)
    text = Exit("text", before=False, after=False)
    end = text._replace(to="between")
    starts = {_TEXT: text, _RESPONSE: text, _ACTION: Exit("action"), _THINK: Exit("thinking")}
    ends = {_END_TEXT: end, _END_RESPONSE: end, _END_TURN: end}
    regions: dict[str, Region] = {
        "thinking": Text(THINKING if thinks else HIDDEN, {_END_THINK: end._replace(before=True)}, _END_THINK + _TEXT),
        "between": Fork({**starts, _END_TURN: end}, "stray", "dropped", _TEXT),
        "stray": Text(CONTENT, starts | ends),
        "text": Text(CONTENT, {**ends, _ACTION: Exit("action")}),
        "action": Call(_actions, {_END_ACTION: end, _ACTION: Exit("action", closes=False)}),
    }
    start = "text" if turn.continues else "thinking" if thinks else "between"
    return RegionReader(regions, start)


def _actions(body: str, closed: bool) -> Sequence[Found | Malformed]:
    """``[{"tool_name": …, "parameters": {…}}, …]``; where the list is broken, its objects are read one by one."""
    value = read_json(body)
    if isinstance(value, list):
        return [_action(item, str(item)) for item in value]
    objects = objects_in(body)
    if not objects:
        return [Malformed(body, "the action holds no JSON object")]
    return [_action(read_object(text), text) for text in objects]


def _action(value: Any, text: str) -> Found | Malformed:
    name = value.get("tool_name") if isinstance(value, Mapping) else None
    arguments = as_object(value.get("parameters")) if name else None
    if not isinstance(name, str) or not name or arguments is None:
        return Malformed(text, "the action is no object with tool_name and parameters")
    return Found(name, arguments)


COHERE = Family(
    reader=_reader,
    thinking=True,
    preserve=(_THINK, _END_THINK, _TEXT, _END_TEXT, _ACTION, _END_ACTION, _RESPONSE, _END_RESPONSE),
)
