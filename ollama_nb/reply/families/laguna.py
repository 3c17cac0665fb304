"""Laguna and Poolside: ``<think>`` blocks anywhere, calls with tagged arguments or as JSON, with tags or bare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.reply.families.tagged_arguments import END_KEY, END_VALUE, KEY, VALUE, NotTagged, read_tagged
from ollama_nb.reply.family import Family, Turn
from ollama_nb.reply.objects import as_object, read_object
from ollama_nb.reply.output import Found, Malformed, Output
from ollama_nb.reply.regions import CONTENT, HIDDEN, THINKING, Call, Exit, Fork, Region, RegionReader, Step, Text
from ollama_nb.reply.schema import Schemas

_THINK, _END_THINK, _TOOL, _END_TOOL = "<think>", "</think>", "<tool_call>", "</tool_call>"
_USER, _END_USER = "<user>", "</user>"
_OTHER_NAMES = {"read_file": "read", "write_file": "write", "edit_file": "edit", "web_fetch": "webfetch"}


def _reader(turn: Turn, *, goes_on: bool) -> RegionReader:
    """``goes_on``: a trailing assistant message is continued, so that its thinking is over."""
    schemas = Schemas(turn.tools)
    thinks = turn.thinks(by_default=False)
    exits = {_THINK: Exit("thinking", before=False), _TOOL: Exit("call")}
    if turn.tools:
        exits |= {_USER: Exit("user"), "{": Exit("maybe call", after=False)}
    regions: dict[str, Region] = {
        "echo": Fork({_THINK: Exit("thinking")}, "thinking", "dropped", "\n</think>\n"),
        "thinking": Text(
            THINKING if thinks else HIDDEN, {_END_THINK: Exit("start"), _TOOL: Exit("call")}, "\n</think>\n"
        ),
        "start": Fork({_END_THINK: Exit("start")}, "content", "dropped"),
        "content": Text(CONTENT, exits),
        "call": Call(partial(_call, schemas), {_END_TOOL: Exit("content"), _TOOL: Exit("call", closes=False)}),
        "user": Call(partial(_known_call, schemas), {_END_USER: Exit("content")}),
        "maybe call": _MaybeCall(),
        "object": Call(partial(_known_call, schemas), {}, whole=True, by_object="content"),
    }
    prefilled = goes_on and turn.last is not None and turn.last.role == "assistant"
    return RegionReader(regions, "echo" if thinks and not prefilled else "start")


class _MaybeCall:
    """Behind a brace in the text: an object whose first key is one of a call's is read as a call."""

    to_answer = ""
    _KEYS = ('"name"', '"arguments"')
    _MOST_SPACE = 64

    def __init__(self) -> None:
        self._space = ""

    def enter(self, step: Step) -> None:
        self._space = step.space

    def read(self, text: str, at: int, final: bool, out: Output) -> Step:
        head = text[at : at + self._MOST_SPACE].lstrip()
        found = next((key for key in self._KEYS if head.startswith(key)), None)
        if found is not None:
            return Step(at, "object", marker="{", space=self._space)
        room = len(text) - at < self._MOST_SPACE and not final
        if room and any(key.startswith(head) for key in self._KEYS):
            return Step(at)
        out.content(self._space + "{")
        return Step(at, "content")


def _call(schemas: Schemas, body: str, closed: bool) -> Sequence[Found | Malformed]:
    """Without its closing tag, only a tool that was offered is called: half a text is easily taken for a name."""
    item = _read_call(schemas, body, closed)
    if isinstance(item, Found) and not closed and item.name not in schemas:
        return [Malformed(body, f"incomplete tool call: tool '{item.name}' is not declared")]
    return [item]


def _read_call(schemas: Schemas, body: str, closed: bool) -> Found | Malformed:
    text = body.strip()
    name, braced, rest = text.partition("{")
    if not name:
        return _json_call(schemas, text)
    if braced and KEY not in name:
        arguments = read_object(braced + rest)
        name = _declared(schemas, name.strip())
        if arguments is None:
            return Malformed(body, f"the arguments for {name} are no JSON object")
        return Found(name, arguments)
    try:
        name, pairs = read_tagged(text, strict=not closed)
    except NotTagged as error:
        return Malformed(body, str(error))
    name = _declared(schemas, name)
    return Found(name, {key: schemas.typed(name, key, value) for key, value in pairs})


def _known_call(schemas: Schemas, body: str, closed: bool) -> Sequence[Found | Malformed]:
    """Where nothing but the text itself says that it is a call, the tool must have been offered."""
    items = _call(schemas, body.strip().removeprefix(_TOOL).removesuffix(_END_TOOL), closed)
    if all(isinstance(item, Found) and item.name in schemas for item in items):
        return items
    return [Malformed(body)]


def _json_call(schemas: Schemas, text: str) -> Found | Malformed:
    value = read_object(text)
    if value is None:
        return Malformed(text, "the tool call is not valid JSON")
    name, arguments = value.get("name"), as_object(value.get("arguments"))
    if not isinstance(name, str) or not name.strip() or arguments is None:
        return Malformed(text, "the tool call is no object with name and arguments")
    return Found(_declared(schemas, name), arguments)


def _declared(schemas: Schemas, name: str) -> str:
    """The model's own names for some tools stand for the ones that were offered."""
    other = _OTHER_NAMES.get(name)
    return other if name not in schemas and other is not None and other in schemas else name


_TAGS = (_THINK, _END_THINK, _TOOL, _END_TOOL, _USER, _END_USER, KEY, END_KEY, VALUE, END_VALUE)
LAGUNA = Family(reader=partial(_reader, goes_on=True), thinking=True, preserve=_TAGS)
POOLSIDE = Family(reader=partial(_reader, goes_on=False), thinking=True, preserve=_TAGS)
