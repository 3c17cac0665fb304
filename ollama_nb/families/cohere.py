"""Cohere's Command A and North: turn tokens, tools and results in JSON, replies in thinking, text and action blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.argument_stream import json_head
from ollama_nb.reply.arguments import as_object, objects_in, parse_json, parse_object
from ollama_nb.reply.call_grammar import CallGrammar, JsonValue, Verbatim, calls, json_call, series
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import (
    CONTENT,
    HIDDEN,
    THINKING,
    CallRegion,
    Exit,
    ForkRegion,
    Region,
    RegionParser,
    TextRegion,
)
from ollama_nb.template.formatting import ArgumentDict, function_of, spaced

_TURN = "<|START_OF_TURN_TOKEN|>"
_END = "<|END_OF_TURN_TOKEN|>"
_ANSWER = f"{_TURN}<|CHATBOT_TOKEN|>"
_RESULT = """
    {{
        "tool_call_id": "{id}",
        "results": {{

            \n            "0": {result}

        }},
        "is_error": null
    }}"""


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system, talk = "", messages
    if messages and messages[0].role == "system":
        system, talk = messages[0].content, messages[1:]
    calls = _CallNumbers()
    out = [_text("SYSTEM", (f"{system}\n\n\n\n" if system else "") + _tools(tools))]
    for at, message in enumerate(talk):
        if message.role in ("system", "user"):
            out.append(_text(message.role.upper(), message.content))
        elif message.role in ("assistant", "chatbot"):
            out.append(_answer(message, calls, last=at == len(talk) - 1))
        elif message.role == "tool":
            out.append(_result(talk, at, calls))
    if not (talk and talk[-1].role in ("assistant", "chatbot") and not talk[-1].tool_calls):
        out.append(f"{_ANSWER}<|START_THINKING|>" + ("" if think is None or think else "<|END_THINKING|>"))
    return "".join(out)


def _text(role: str, text: str) -> str:
    return f"{_TURN}<|{role}_TOKEN|><|START_TEXT|>{text}<|END_TEXT|>{_END}"


def _tools(tools: Sequence[Tool]) -> str:
    listed = ",\n\n".join(f"\n    {_tool(tool)}" for tool in tools)
    return f"# Available Tools\n```json\n[\n{listed}\n\n\n]\n```"


def _tool(tool: Tool) -> str:
    function = function_of(tool)
    name, described, parameters = map(spaced, (function.name, function.description, function.parameters))
    return f'{{"name": {name}, "description": {described}, "parameters": {parameters}, "responses": null}}'


class _CallNumbers:
    """Numbers the calls of a conversation from 0. The number of a result is found by the id of its call."""

    def __init__(self) -> None:
        self._next = 0
        self._by_id: dict[str, str] = {}

    def new(self, id_: str) -> str:
        number = str(self._next)
        self._next += 1
        if id_:
            self._by_id.setdefault(id_, number)
        return number

    def of_result(self, id_: str) -> str:
        return self._by_id.get(id_, id_)


def _answer(message: Message, calls: _CallNumbers, *, last: bool) -> str:
    """Render a turn of the assistant. The ``last`` one of a conversation stays open."""
    thought = f"<|START_THINKING|>{message.thinking}<|END_THINKING|>" if message.thinking else ""
    if not message.tool_calls:
        return f"{_ANSWER}{thought}<|START_TEXT|>{message.content}" + ("" if last else f"<|END_TEXT|>{_END}")
    listed = ",".join(
        f'\n\n    {{"tool_call_id": "{calls.new(call.id)}", "tool_name": "{call.name}", '
        f'"parameters": {spaced(ArgumentDict(call.arguments))}}}'
        for call in message.tool_calls
    )
    margin = "\n            \n                "  # the models were trained with this white space
    return f"{_ANSWER}{margin}{thought}<|START_ACTION|>[{listed}\n\n]<|END_ACTION|>{_END}"


def _result(talk: Sequence[Message], at: int, calls: _CallNumbers) -> str:
    """Render the result of a tool. Consecutive results share one list."""
    message = talk[at]
    opened = "," if at and talk[at - 1].role == "tool" else f"{_TURN}<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>["
    more = at + 1 < len(talk) and talk[at + 1].role == "tool"
    entry = _RESULT.format(id=calls.of_result(message.tool_call_id), result=spaced({"content": message.content}))
    return opened + entry + ("" if more else f"\n\n]<|END_TOOL_RESULT|>{_END}")


# Reply parser

_THINK, _END_THINK = "<|START_THINKING|>", "<|END_THINKING|>"
_TEXT, _END_TEXT = "<|START_TEXT|>", "<|END_TEXT|>"
_RESPONSE, _END_RESPONSE = "<|START_RESPONSE|>", "<|END_RESPONSE|>"
_ACTION, _END_ACTION = "<|START_ACTION|>", "<|END_ACTION|>"
_HEAD = json_head("tool_name", "parameters", r'[\s,\[\]}]*\{\s*(?:"tool_call_id"\s*:\s*"[^"\\]*"\s*,\s*)?')
_END_TURN = "<|END_OF_TURN_TOKEN|>"


def _create_parser(context: ReplyContext) -> RegionParser:
    """Text between the blocks is content."""
    thinks = context.thinks(by_default=True)
    text = Exit("text", before=False, after=False)
    end = text._replace(to="between")
    starts = {_TEXT: text, _RESPONSE: text, _ACTION: Exit("action"), _THINK: Exit("thinking")}
    ends = {_END_TEXT: end, _END_RESPONSE: end, _END_TURN: end}
    regions: dict[str, Region] = {
        "thinking": TextRegion(
            THINKING if thinks else HIDDEN,
            {_END_THINK: end._replace(before=True)},
            _END_THINK + _TEXT,
            thinking_end=_END_THINK,
        ),
        "between": ForkRegion({**starts, _END_TURN: end}, "stray", "dropped", _TEXT),
        "stray": TextRegion(CONTENT, starts | ends),
        "text": TextRegion(CONTENT, {**ends, _ACTION: Exit("action")}),
        "action": CallRegion(_actions, {_END_ACTION: end, _ACTION: Exit("action", closes=False)}, head=_HEAD),
    }
    start = "text" if context.continues else "thinking" if thinks else "between"
    return RegionParser(regions, start)


def _actions(body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse ``[{"tool_name": …, "parameters": {…}}, …]``. In a malformed list, parse the objects one by one."""
    value = parse_json(body)
    if isinstance(value, list):
        return [_action(item, str(item)) for item in value]
    objects = objects_in(body)
    if not objects:
        return [MalformedCall(body, "the action contains no JSON object")]
    return [_action(parse_object(text), text) for text in objects]


def _action(value: Any, text: str) -> ParsedCall | MalformedCall:
    name = value.get("tool_name") if isinstance(value, Mapping) else None
    arguments = as_object(value.get("parameters")) if name else None
    if not isinstance(name, str) or not name or arguments is None:
        return MalformedCall(text, "the action is not an object with tool_name and parameters")
    return ParsedCall(name, arguments)


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    number = JsonValue('{"type": "string", "pattern": "^[0-9]{1,2}$"}', "")
    some = calls(
        context.tools,
        lambda tool: series(
            Verbatim('\n\n    {"tool_call_id": '),
            number,
            Verbatim(", "),
            json_call(tool, "tool_name", "parameters", ""),
        ),
        parallel=parallel,
        separator=",",
    )
    grammar = series(f"{_ACTION}[", some, f"\n\n]{_END_ACTION}")
    return CallGrammar(grammar, quoted=True, unquotable=(_ACTION, _END_ACTION))


FAMILY = Family(
    renderers={"cohere": render},
    parsers={
        "cohere": ParserSpec(
            create=_create_parser,
            thinking=True,
            preserve=(_THINK, _END_THINK, _TEXT, _END_TEXT, _ACTION, _END_ACTION, _RESPONSE, _END_RESPONSE),
            call_grammar=_call_grammar,
            answer_marker=_TEXT,
        )
    },
)
