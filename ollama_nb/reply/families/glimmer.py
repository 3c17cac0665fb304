"""Glimmer: messages with a recipient in their header; a tool's name there means that the text is a call to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.output import Found, Malformed
from ollama_nb.reply.regions import CONTENT, HIDDEN, THINKING, Call, Exit, Fork, Header, Region, RegionReader, Text
from ollama_nb.reply.schema import Schemas, typed

_START, _MESSAGE, _END, _END_TURN = "<|start|>", "<|message|>", "<|eom|>", "<|eot|>"
_ASSISTANT = _START + "assistant"
_CALLS, _END_CALLS = "<atem:function_calls>", "</atem:function_calls>"
_INVOKE, _END_INVOKE = '<atem:invoke name="', "</atem:invoke>"
_PARAMETER, _END_PARAMETER = '<atem:parameter name="', "</atem:parameter>"
_HEADER = re.compile(r"\s*(?:to=(\S*))?\s*")


def _reader(turn: Turn) -> RegionReader:
    """A message ends with its end mark, or where the next one's header follows without one."""
    schemas = Schemas(turn.tools)
    thinks = turn.thinks(by_default=True)
    recipients = ("self", "user", *schemas.names())
    verbatim = Exit("header", before=False, after=False)
    ends = {_END: verbatim, _END_TURN: verbatim} | {
        header + _MESSAGE: verbatim._replace(to=region, closes=False)
        for header, region in _headers(recipients, schemas)
    }
    tail = {marker: exit._replace(before=True) for marker, exit in ends.items()}
    called = {_END_CALLS: Exit("tail")}
    regions: dict[str, Region] = {
        "header": Header(_MESSAGE, partial(_route, schemas), _plausible, "content", " to=user" + _MESSAGE),
        "thinking": Text(THINKING if thinks else HIDDEN, ends, f"{_END}{_ASSISTANT} to=user{_MESSAGE}"),
        "message": Fork({_CALLS: Exit("call")}, "content") if turn.tools else Text(CONTENT, ends),
        "content": Text(CONTENT, ends),
        "tool": Fork({_CALLS: Exit("call")}, "odd"),
        "odd": Call(_odd, ends),
        "call": Call(partial(_call, schemas), called),
        "tail": Text(CONTENT, tail),
    }
    return RegionReader(regions, "header")


def _headers(recipients: Sequence[str], schemas: Schemas) -> Iterator[tuple[str, str]]:
    yield _ASSISTANT, "message"
    for name in recipients:
        yield f"{_ASSISTANT} to={name}", _region_for(schemas, name)


def _plausible(text: str) -> bool:
    text = text.removeprefix(_ASSISTANT).lstrip()
    return _ASSISTANT.startswith(text[: len(_ASSISTANT)]) or "to=".startswith(text[:3])


def _route(schemas: Schemas, header: str) -> tuple[str, str]:
    header = header.removeprefix(_ASSISTANT)
    match = _HEADER.fullmatch(header)
    if match is None:
        return "message", header
    return _region_for(schemas, match[1] or ""), ""


def _region_for(schemas: Schemas, recipient: str) -> str:
    if recipient == "self":
        return "thinking"
    return "tool" if _declared(schemas, recipient) in schemas else "message"


def _declared(schemas: Schemas, name: str) -> str:
    """A tool is also reachable in the namespace of its own name: ``read.read`` is ``read``."""
    space, dotted, rest = name.partition(".")
    return rest if name not in schemas and dotted and space == rest.partition(".")[0] else name


def _odd(body: str, closed: bool) -> Sequence[Malformed]:
    return [Malformed(body, f"the message to a tool has no {_CALLS}")] if body.strip() else []


def _call(schemas: Schemas, body: str, closed: bool) -> Sequence[Found | Malformed]:
    inner = body.strip()
    if not inner.startswith(_INVOKE) or not inner.endswith(_END_INVOKE):
        return [Malformed(body, "the tool call has no <atem:invoke name=…>")]
    name, parameters = _cut_name(inner[len(_INVOKE) : -len(_END_INVOKE)])
    name = _declared(schemas, name)
    if name not in schemas:
        return [Malformed(body, f"tool '{name}' not found")]
    try:
        return [Found(name, _arguments(schemas, name, parameters))]
    except ValueError as error:
        return [Malformed(body, str(error))]


def _cut_name(text: str) -> tuple[str, str]:
    """The name, and what follows its ``">``; a message mark that slipped into it is left out."""
    name, closed, rest = text.partition('">')
    mark, _, after = text.partition(_MESSAGE)
    if after.startswith(_PARAMETER) and len(mark) < len(name):
        return mark, after
    return (name.replace(_MESSAGE, ""), rest) if closed else ("", "")


def _arguments(schemas: Schemas, tool: str, text: str) -> Mapping[str, object]:
    found: dict[str, object] = {}
    at = 0
    text = text.strip("\n")
    while at < len(text):
        named = text.find('">', at)
        end = text.find(_END_PARAMETER, named)
        if not text.startswith(_PARAMETER, at) or named < 0 or end < 0:
            raise ValueError("a parameter of the tool call cannot be read")
        key = text[at + len(_PARAMETER) : named]
        found[key] = typed(text[named + 2 : end], schemas.types(tool, key))
        at = end + len(_END_PARAMETER)
        while text[at : at + 1].isspace():
            at += 1
    return found


GLIMMER = Family(reader=_reader, thinking=True, preserve=(_START, _MESSAGE, _END, _END_TURN))
