"""Qwen3-Coder: ChatML, tools and calls in XML. No thinking."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial

from ollama_nb.api.encode import go_json
from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.families.qwen3 import END_TOOL, TOOL, qwen_parser
from ollama_nb.reply.arguments import Schemas, tool_name
from ollama_nb.reply.call_grammar import CallGrammar, JsonValue, Part, calls, members, plain_name, series, tagged_value
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CallParser, RegionParser
from ollama_nb.template.chatml import CALL_FORMAT, END, START, continues, tool_results, turn, xml_call
from ollama_nb.template.formatting import KeyOrderedDict, function_of, go_value, types

_SYSTEM = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    del think  # the family has no thinking
    systems = (message.content for message in messages if message.role == "system" and message.content)
    system = next(systems, _SYSTEM if tools else "")
    talk = [message for message in messages if message.role != "system"]
    return _header(system, tools) + "".join(_turn(talk, at) for at in range(len(talk))) + _next(talk)


def _next(talk: Sequence[Message]) -> str:
    return f"{START}assistant\n" if talk and not (continues(talk)) else ""


def _header(system: str, tools: Sequence[Tool]) -> str:
    if not system:
        return ""
    if not tools:
        return turn("system", system)
    listed = "".join(map(_tool, tools))
    intro = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
    return turn("system", f"{system}\n\n{intro}{listed}\n</tools>\n\n{CALL_FORMAT}")


def _tool(tool: Tool) -> str:
    function = function_of(tool)
    described = f"\n<description>{function.description}</description>" if function.description else ""
    properties = "".join(_parameter(name, schema) for name, schema in function.properties.items())
    others = _others(function.parameters, ("type", "properties"))
    return (
        f"\n<function>\n<name>{function.name}</name>{described}"
        f"\n<parameters>{properties}{others}\n</parameters>\n</function>"
    )


def _parameter(name: str, schema: KeyOrderedDict) -> str:
    kinds = types(schema)
    kind = kinds[0] if len(kinds) == 1 else go_json(kinds)
    typed = f"\n<type>{kind}</type>" if kinds else ""
    described = f"\n<description>{schema['description']}</description>" if "description" in schema else ""
    others = _others(schema, ("type", "description"))
    return f"\n<parameter>\n<name>{name}</name>{typed}{described}{others}\n</parameter>"


def _others(schema: KeyOrderedDict, written: Collection[str]) -> str:
    """Render every other key as an element. Ollama's order of these changes from call to call."""
    return "".join(
        f"\n<{key}>{go_json(value, sort_keys=True) if isinstance(value, (dict, list)) else go_value(value)}</{key}>"
        for key, value in schema.items()
        if key not in written and value is not None
    )


def _turn(talk: Sequence[Message], at: int) -> str:
    message = talk[at]
    if message.role == "tool":
        return tool_results(talk, at, message.content)
    if message.role != "assistant":
        return turn(message.role, message.content)
    if not message.tool_calls:
        return f"{START}assistant\n{message.content}" + ("" if at == len(talk) - 1 else END)
    content = f"{message.content}\n" if message.content else ""
    calls = "".join("\n" + xml_call(call) for call in message.tool_calls)
    return turn("assistant", content + calls)


# Reply parser

_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"


def _create_parser(context: ReplyContext) -> RegionParser:
    return qwen_parser(xml_call_parser(context), thinking=False)


def xml_call_parser(context: ReplyContext) -> CallParser:
    return partial(_parse_xml_calls, Schemas(context.tools))


def _parse_xml_calls(schemas: Schemas, body: str, closed: bool) -> Sequence[str | ParsedCall | MalformedCall]:
    """Parse one or more ``<function=name><parameter=key>value</parameter>…</function>``.

    Models leave out closing tags: a parameter also ends before the next one and at the end of its function, and a
    function at the end of a call that is closed or whose last parameter is.
    """
    items: list[str | ParsedCall | MalformedCall] = []
    at = 0
    while (start := body.find(_FUNCTION, at)) >= 0:
        end = body.find(_END_FUNCTION, start)
        if end < 0 and not closed and not body.rstrip().endswith(_END_PARAMETER):
            return [*items, MalformedCall(body[start:], "the tool call has no </function>")]
        end = len(body) if end < 0 else end
        items += filter(None, (body[at:start].strip(),))
        items.append(_parse_function(schemas, body[start + len(_FUNCTION) : end]))
        at = end + len(_END_FUNCTION)
    if not items:
        return [MalformedCall(body, "the tool call has no <function=…>")]
    return [*items, *filter(None, (body[at:].strip(),))]


def _parse_function(schemas: Schemas, text: str) -> ParsedCall | MalformedCall:
    name, opened, rest = text.partition(">")
    name = name.strip()
    if not opened or not name:
        return MalformedCall(f"{_FUNCTION}{text}{_END_FUNCTION}", "the tool call has no tool name")
    try:
        return ParsedCall(name, {key: schemas.typed(name, key, value) for key, value in _parse_parameters(rest)})
    except ValueError as error:
        return MalformedCall(f"{_FUNCTION}{text}{_END_FUNCTION}", str(error))


def _parse_parameters(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while (start := text.find(_PARAMETER, at)) >= 0:
        named = text.find(">", start)
        if named < 0:
            raise ValueError("a parameter of the tool call has no name")
        if text[at:start].strip():
            break
        end = _VALUE_END.search(text, named + 1)
        stop, at = (end.start(), end.end()) if end else (len(text), len(text))
        yield text[start + len(_PARAMETER) : named].strip(), text[named + 1 : stop]
    if text[at:].strip():
        raise ValueError("text between the parameters of the tool call")


_VALUE_END = re.compile(f"{_END_PARAMETER}|(?={_PARAMETER})")
_ENDS = (_PARAMETER, _END_PARAMETER, _END_FUNCTION, TOOL, END_TOOL)


def xml_call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    return CallGrammar(calls(context.tools, _xml_call, parallel=parallel, separator="\n"))


def _xml_call(tool: Tool) -> Part:
    name = plain_name(tool_name(tool))
    return series(f"{TOOL}\n{_FUNCTION}", name, ">\n", members(tool, _xml_parameter), f"{_END_FUNCTION}\n{END_TOOL}")


def _xml_parameter(name: str, value: JsonValue) -> Part:
    text = tagged_value(value, f"\n{_END_PARAMETER}", _ENDS)
    return series(_PARAMETER, plain_name(name, "argument"), ">\n", text, "\n")


FAMILY = Family(
    renderers={"qwen3-coder": render},
    parsers={
        "qwen3-coder": ParserSpec(create=_create_parser, preserve=(TOOL, END_TOOL), call_grammar=xml_call_grammar)
    },
)
