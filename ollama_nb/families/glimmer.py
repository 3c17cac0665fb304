"""Glimmer: messages with a recipient in their header, tools in namespaces, reasoning as a strength.

A message to a tool is a call of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.arguments import Schemas, tool_name, typed
from ollama_nb.reply.call_grammar import CallGrammar, JsonValue, Part, calls, members, plain_name, series, tagged_value
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import (
    CONTENT,
    HIDDEN,
    THINKING,
    CallRegion,
    Exit,
    ForkRegion,
    HeaderRegion,
    Region,
    RegionParser,
    TextRegion,
)
from ollama_nb.template.formatting import function_of, go_value, mark_images, plain

_BOS = "<|begin_of_text|>"
_END_MESSAGE = "<|eom|>"
_END_TURN = "<|eot|>"
_SYSTEM = "You are a helpful AI assistant.\nKnowledge cutoff: 2026-01-04."
_TOOLS = """\
In this environment you have access to a set of tools you can use to answer the user's question.

You can invoke a function by writing a "<atem:function_calls>" block like the following:
<atem:function_calls>
<atem:invoke name="$FUNCTION_NAME">
<atem:parameter name="$PARAMETER_NAME">$PARAMETER_VALUE</atem:parameter>
...
</atem:invoke>
</atem:function_calls>

String and scalar parameters should be specified as is, while lists and objects should use JSON format. \
Note that spaces for string values are not stripped. The output is not expected to be valid XML and is parsed with \
regular expressions.
Here are the functions available in JSONSchema format:
// Tool metadata
"""
_CALL_EXAMPLE = """

Here's an example of how to call a function in the tool set:
(If the tool namespace is not specified, invoke the function directly as `example_function_name` rather than \
`example_tool_name.example_function_name`)

to=example_tool_name.example_function_name

<atem:function_calls>
<atem:invoke name="example_tool_name.example_function_name">
<atem:parameter name="example_parameter_1">value_1</atem:parameter>
<atem:parameter name="example_parameter_2">This is the value for the second parameter
that can span
"multiple" lines
</atem:parameter>
</atem:invoke>
</atem:function_calls>"""
_STRENGTH = ("Reasoning strength", "Reasoning Strength", "reasoning strength", "REASONING STRENGTH")
_EFFORT = ("Reasoning effort", "Reasoning Effort", "reasoning effort", "REASONING EFFORT")


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    contents = mark_images(messages)
    called = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    out = [_BOS]
    if not any(message.role == "system" for message in messages):
        out.append(_system(f"{_SYSTEM}\nCurrent date: {date.today().isoformat()}.", tools, think, own=False))
    for at, message in enumerate(messages):
        if message.role == "system":
            out.append(_system(contents[at], tools, think, own=True))
        elif message.role == "user":
            out.append(_message("user", contents[at]))
        elif message.role == "tool":
            name = message.tool_name or called.get(message.tool_call_id, message.tool_call_id)
            out.append(_message(f"tool {name}", f'<tool_output name="{name}">\n{contents[at]}\n</tool_output>'))
        elif message.role == "assistant":
            ends = at + 1 == len(messages) or messages[at + 1].role != "assistant"
            out.append(_answer(message, contents[at], _END_TURN if ends else _END_MESSAGE))
    return "".join(out) + "<|start|>assistant"


def _message(header: str, content: str, end: str = _END_TURN) -> str:
    return f"<|start|>{header}<|message|>{content}{end}"


# System and tools


def _system(text: str, tools: Sequence[Tool], think: Think, *, own: bool) -> str:
    """Render a system message. ``own``: the text is the caller's and may contain the reasoning strength."""
    if own:
        for theirs, ours in zip(_EFFORT, _STRENGTH, strict=True):
            text = text.replace(theirs, ours)
    parts = [text]
    if not own or "reasoning strength" not in text.lower():
        parts.append(f"Reasoning strength: {_strength(think)}.")
    if tools:
        parts.append(_definitions(tools))
    recipients = ['"self"', *(f'"{namespace}.*"' for namespace in _namespaces(tools)), '"user"']
    parts.append(f"# Valid recipients: {', '.join(recipients)}.")
    return _message("system", "\n\n".join(parts))


def _strength(think: Think) -> str:
    if isinstance(think, str):
        return think
    return "none" if think is False else "high"


def _namespaces(tools: Sequence[Tool]) -> list[str]:
    """Return the parts of the tool names before the first dot, without duplicates."""
    return list(dict.fromkeys(function_of(tool).name.partition(".")[0] for tool in tools))


def _definitions(tools: Sequence[Tool]) -> str:
    metadata = "".join(f'{{"name": {plain(name)}, "description": ""}}\n' for name in _namespaces(tools))
    schemas = "".join(f"\n{_schema(tool)}" for tool in tools)
    return f"{_TOOLS}{metadata}// Function schemas{schemas}{_CALL_EXAMPLE}"


def _schema(tool: Tool) -> str:
    function = function_of(tool)
    name, described, parameters = map(plain, (function.name, function.description, function.parameters))
    return f'{{"name": {name}, "description": {described}, "parameters": {parameters}}}'


# Turns


def _answer(message: Message, content: str, end: str) -> str:
    """Render thinking, then calls or content. Each call is a message; ``end`` follows the last one."""
    out = _message("assistant to=self", message.thinking, _END_MESSAGE) if message.thinking else ""
    if message.tool_calls:
        *others, last = (_call(call) for call in message.tool_calls)
        return out + "".join(call + _END_MESSAGE for call in others) + last + end
    if content or not message.thinking:
        out += _message("assistant to=user", content)
    return out


def _call(call: ToolCall) -> str:
    parameters = "".join(
        f'<atem:parameter name="{name}">{_argument(value)}</atem:parameter>\n' for name, value in call.arguments.items()
    )
    invoked = f'<atem:invoke name="{call.name}">\n{parameters}</atem:invoke>'
    block = f"<atem:function_calls>\n{invoked}\n</atem:function_calls>"
    return _message(f"assistant to={call.name}", block, end="")


def _argument(value: Any) -> str:
    if value is None or isinstance(value, (dict, list)):
        return plain(value)
    return go_value(value)


# Reply parser

_START, _MESSAGE, _END = "<|start|>", "<|message|>", "<|eom|>"
_ASSISTANT = _START + "assistant"
_TO_USER = f" to=user{_MESSAGE}"
_CALLS, _END_CALLS = "<atem:function_calls>", "</atem:function_calls>"
_INVOKE, _END_INVOKE = '<atem:invoke name="', "</atem:invoke>"
_PARAMETER, _END_PARAMETER = '<atem:parameter name="', "</atem:parameter>"
_HEADER = re.compile(r"\s*(?:to=(\S*))?\s*")


def _create_parser(context: ReplyContext) -> RegionParser:
    """A message ends at its end token, or where the next header follows without one."""
    schemas = Schemas(context.tools)
    thinks = context.thinks(by_default=True)
    recipients = ("self", "user", *schemas.names())
    verbatim = Exit("next header", before=False, after=False)
    ends = {_END: verbatim, _END_TURN: verbatim} | {
        header + _MESSAGE: verbatim._replace(to=region, closes=False)
        for header, region in _headers(recipients, schemas)
    }
    tail = {marker: exit._replace(before=True) for marker, exit in ends.items()}
    called = {_END_CALLS: Exit("tail")}
    regions: dict[str, Region] = {
        "header": HeaderRegion(_MESSAGE, partial(_route, schemas), _plausible, "content", _TO_USER),
        "next header": HeaderRegion(_MESSAGE, partial(_route, schemas), _plausible, "content", _ASSISTANT + _TO_USER),
        "thinking": TextRegion(
            THINKING if thinks else HIDDEN,
            ends,
            _END + _ASSISTANT + _TO_USER,
            thinking_end=_END + _ASSISTANT,
        ),
        "message": ForkRegion({_CALLS: Exit("call")}, "content") if context.tools else TextRegion(CONTENT, ends),
        "content": TextRegion(CONTENT, ends),
        "tool": ForkRegion({_CALLS: Exit("call")}, "odd"),
        "odd": CallRegion(_odd, ends),
        "call": CallRegion(partial(_parse_call, schemas), called),
        "tail": TextRegion(CONTENT, tail),
    }
    return RegionParser(regions, "header")


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
    """Resolve a tool in the namespace of its own name: ``read.read`` is ``read``."""
    space, dotted, rest = name.partition(".")
    return rest if name not in schemas and dotted and space == rest.partition(".")[0] else name


def _odd(body: str, closed: bool) -> Sequence[MalformedCall]:
    return [MalformedCall(body, f"the message to a tool has no {_CALLS}")] if body.strip() else []


def _parse_call(schemas: Schemas, body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    inner = body.strip()
    if not inner.startswith(_INVOKE) or not inner.endswith(_END_INVOKE):
        return [MalformedCall(body, "the tool call has no <atem:invoke name=…>")]
    name, parameters = _cut_name(inner[len(_INVOKE) : -len(_END_INVOKE)])
    name = _declared(schemas, name)
    if name not in schemas:
        return [MalformedCall(body, f"tool '{name}' not found")]
    try:
        return [ParsedCall(name, _arguments(schemas, name, parameters))]
    except ValueError as error:
        return [MalformedCall(body, str(error))]


def _cut_name(text: str) -> tuple[str, str]:
    """Return the name and the text after its ``">``. A message token inside the name is dropped."""
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
            raise ValueError("a parameter of the tool call cannot be parsed")
        key = text[at + len(_PARAMETER) : named]
        found[key] = typed(text[named + 2 : end], schemas.types(tool, key))
        at = end + len(_END_PARAMETER)
        while text[at : at + 1].isspace():
            at += 1
    return found


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    """The prompt ends inside a header; each further call is a message of its own."""
    header = f"{_END}{_ASSISTANT}" if context.continues else ""
    some = calls(context.tools, _call_message, parallel=parallel, separator=f"{_END}{_ASSISTANT}")
    return CallGrammar(series(header, some))


def _call_message(tool: Tool) -> Part:
    name = plain_name(tool_name(tool), pattern=r'(?!self$|user$)[^\s<>"]+')
    invoked = series(_INVOKE, name, '">\n', members(tool, _parameter), _END_INVOKE)
    return series(" to=", name, f"{_MESSAGE}{_CALLS}\n", invoked, f"\n{_END_CALLS}")


def _parameter(name: str, value: JsonValue) -> Part:
    text = tagged_value(value, _END_PARAMETER, (_END_PARAMETER, _END_CALLS, _MESSAGE))
    return series(_PARAMETER, plain_name(name, "argument"), '">', text, "\n")


FAMILY = Family(
    renderers={"glimmer": render},
    bos=_BOS,
    parsers={
        "glimmer": ParserSpec(
            create=_create_parser,
            thinking=True,
            preserve=(_START, _MESSAGE, _END, _END_TURN),
            call_grammar=_call_grammar,
            answer_marker=_TO_USER,
        )
    },
)
