"""The Qwen family: ``<think>`` first, calls between ``<tool_call>`` tags, as JSON or as XML-like functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.objects import as_object, read_object
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, THINKING, Call, Exit, Fork, Reading, Region, RegionReader, Text
from ollama_nb.reply.schema import Schemas

THINK, END_THINK = "<think>", "</think>"
TOOL, END_TOOL = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"


def qwen_reader(reading: Reading, *, thinking: bool, echo: bool = True) -> RegionReader:
    """``echo``: some models repeat the opening tag that the prompt ended with; one of them is dropped."""
    regions: dict[str, Region] = {
        "echo": Fork({THINK: Exit("thinking")}, "thinking", to_answer="\n</think>\n\n"),
        "thinking": Text(THINKING, {END_THINK: Exit("content"), TOOL: Exit("call")}, "\n</think>\n\n"),
        "content": Text(CONTENT, {TOOL: Exit("call")}),
        "call": Call(reading, {END_TOOL: Exit("content"), TOOL: Exit("call", closes=False)}),
    }
    start = ("echo" if echo else "thinking") if thinking else "content"
    return RegionReader(regions, start)


def json_call(body: str, closed: bool) -> Sequence[Found | Malformed]:
    """``{"name": …, "arguments": {…}}``."""
    value = read_object(body)
    if value is None:
        return [Malformed(body, "the tool call is not valid JSON")]
    name, arguments = value.get("name"), as_object(value.get("arguments"))
    if not isinstance(name, str) or not name:
        return [Malformed(body, "the tool call names no tool")]
    if arguments is None:
        return [Malformed(body, f"the arguments for {name} are no JSON object")]
    return [Found(name, arguments)]


def xml_calls(schemas: Schemas, body: str, closed: bool) -> Sequence[str | Found | Malformed]:
    """``<function=name><parameter=key>value</parameter>…</function>``, one or more."""
    items: list[str | Found | Malformed] = []
    at = 0
    while (start := body.find(_FUNCTION, at)) >= 0:
        end = body.find(_END_FUNCTION, start)
        if end < 0:
            return [*items, Malformed(body[start:], "the tool call has no </function>")]
        items += filter(None, (body[at:start].strip(),))
        items.append(_function(schemas, body[start + len(_FUNCTION) : end]))
        at = end + len(_END_FUNCTION)
    if not items:
        return [Malformed(body, "the tool call has no <function=…>")]
    return [*items, *filter(None, (body[at:].strip(),))]


def _function(schemas: Schemas, text: str) -> Found | Malformed:
    name, opened, rest = text.partition(">")
    name = name.strip()
    if not opened or not name:
        return Malformed(f"{_FUNCTION}{text}{_END_FUNCTION}", "the tool call names no tool")
    try:
        return Found(name, {key: schemas.typed(name, key, value) for key, value in _parameters(rest)})
    except ValueError as error:
        return Malformed(f"{_FUNCTION}{text}{_END_FUNCTION}", str(error))


def _parameters(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while (start := text.find(_PARAMETER, at)) >= 0:
        named = text.find(">", start)
        end = text.find(_END_PARAMETER, named)
        if named < 0 or end < 0:
            raise ValueError("a parameter of the tool call does not end")
        value = text[named + 1 : end]
        if _PARAMETER in value:
            raise ValueError("a parameter of the tool call does not end")
        if text[at:start].strip():
            break
        yield text[start + len(_PARAMETER) : named].strip(), value
        at = end + len(_END_PARAMETER)
    if text[at:].strip():
        raise ValueError("text between the parameters of the tool call")


def coder_reading(turn: Turn) -> Reading:
    return partial(xml_calls, Schemas(turn.tools))


def _qwen3(turn: Turn) -> RegionReader:
    return qwen_reader(json_call, thinking=False)


def _qwen3_thinking(turn: Turn) -> RegionReader:
    return qwen_reader(json_call, thinking=turn.thinks(by_default=True))


def _vl_thinking(turn: Turn) -> RegionReader:
    return qwen_reader(json_call, thinking=not turn.continues, echo=False)


def _coder(turn: Turn) -> RegionReader:
    return qwen_reader(coder_reading(turn), thinking=False)


def _thinking_coder(turn: Turn) -> RegionReader:
    return qwen_reader(coder_reading(turn), thinking=turn.thinks(by_default=True) and not turn.continues)


_TAGS = (THINK, END_THINK, TOOL, END_TOOL)
QWEN3 = Family(reader=_qwen3, preserve=_TAGS)
QWEN3_THINKING = Family(reader=_qwen3_thinking, thinking=True, preserve=_TAGS)
QWEN3_VL = Family(reader=_qwen3, preserve=_TAGS[1:])
QWEN3_VL_THINKING = Family(reader=_vl_thinking, thinking=True, preserve=_TAGS[1:])
QWEN3_CODER = Family(reader=_coder, preserve=_TAGS[2:])
THINKING_CODER = Family(reader=_thinking_coder, thinking=True, preserve=_TAGS)
"""Qwen 3.5, and Nemotron 3 Nano, which was trained to write the same."""
