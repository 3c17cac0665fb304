"""Gemma 4: thoughts in a channel, calls as ``call:name{key:value}``, strings between marks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.reply.families.gemma_arguments import ArgumentReader, NotArguments
from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, HIDDEN, THINKING, Call, Exit, Fork, Region, RegionReader, Text
from ollama_nb.reply.schema import Schemas

_CHANNEL, _END_CHANNEL = "<|channel>", "<channel|>"
_CALL, _END_CALL = "<|tool_call>", "<tool_call|>"
_RESPONSE = "<|tool_response>"
_MARK = '<|"|>'
_NAME_OF_CHANNEL = "thought\n"
_WORDS = {"true": True, "false": False, "null": None}


def _reader(turn: Turn, *, can_think: bool) -> RegionReader:
    """Behind a call the model may repeat closing marks: they are dropped. So are thoughts that nobody wants."""
    thinks = can_think and turn.thinks(by_default=False)
    regions: dict[str, Region] = {
        "content": Text(CONTENT, {_CHANNEL: Exit("channel", after=False), _CALL: Exit("call")}),
        "channel": Fork({_NAME_OF_CHANNEL: Exit("thinking", after=False)}, "thinking", "none", _END_CHANNEL),
        "thinking": Text(THINKING if thinks else HIDDEN, {_END_CHANNEL: Exit("content")}, _END_CHANNEL),
        "call": Call(
            partial(_call, Schemas(turn.tools)), {_END_CALL: Exit("noise"), _CALL: Exit("call", closes=False)}
        ),
        "noise": Fork({_END_CALL: Exit("noise"), _RESPONSE: Exit("noise")}, "content", "dropped"),
    }
    answers_tool = turn.last is not None and turn.last.role == "tool"
    return RegionReader(regions, "thinking" if thinks and answers_tool else "content")


def _call(schemas: Schemas, body: str, closed: bool) -> Sequence[Found | Malformed]:
    called, braced, arguments = body.partition("{")
    name = called.strip().removeprefix("call:").strip()
    if not called.strip().startswith("call:") or not braced or not name:
        return [Malformed(body, "the tool call is not of the form call:name{…}")]
    known = schemas.arguments(name)
    texts = [key for key in known if "string" in map(str.lower, schemas.types(name, key))]
    try:
        return [Found(name, ArgumentReader(braced + arguments, _MARK, _WORDS, texts, known).read())]
    except NotArguments as error:
        return [Malformed(body, f"the arguments for {name} cannot be read: {error}")]


_TAGS = (_CHANNEL, _END_CHANNEL, _CALL, _END_CALL, _RESPONSE, _MARK)
GEMMA4 = Family(reader=partial(_reader, can_think=True), thinking=True, preserve=_TAGS)
GEMMA4_NO_THINKING = Family(reader=partial(_reader, can_think=False), preserve=_TAGS)
