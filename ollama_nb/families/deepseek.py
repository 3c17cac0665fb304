"""DeepSeek 3 and 3.1: their own special tokens, tools as headings, thinking on request, up to ``</think>``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.argument_stream import plain_name as plain_name_of
from ollama_nb.reply.arguments import parse_object, tool_name
from ollama_nb.reply.call_grammar import CallGrammar, Part, calls, json_arguments, plain_name, series
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CONTENT, THINKING, CallParser, CallRegion, Exit, Region, RegionParser, TextRegion
from ollama_nb.template.formatting import ArgumentDict, compact, function_of

_BOS = "<｜begin▁of▁sentence｜>"
_EOS = "<｜end▁of▁sentence｜>"
_CALL_FORMAT = """
IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>\
{{additional_tool_calls}}<｜tool▁calls▁end｜>

Where:

- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces
"""


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    talk = [message for message in messages if message.role in ("user", "assistant", "tool")]
    question = max((at for at, message in enumerate(talk) if message.role == "user"), default=-1)
    turns = [_turn(talk, at, thinking=bool(think) and at > question) for at in range(len(talk))]
    out = _BOS + system + _tools(tools) + "".join(turns)
    if talk and talk[-1].role == "user":
        out += "<｜Assistant｜>" + ("<think>" if think else "</think>")
    return out


def _tools(tools: Sequence[Tool]) -> str:
    listed = ""
    for tool in tools:
        function = function_of(tool)
        parameters = compact(function.parameters)
        listed += f"\n### {function.name}\nDescription: {function.description}\n\nParameters: {parameters}\n"
    return f"\n\n## Tools\nYou have access to the following tools:\n{listed}{_CALL_FORMAT}" if tools else ""


def _turn(talk: Sequence[Message], at: int, *, thinking: bool) -> str:
    """Render one turn. ``thinking``: keep its thinking, because it follows the last question and thinking is on."""
    message = talk[at]
    before = talk[at - 1].role if at else ""
    if message.role == "user":
        return f"<｜User｜>{message.content}"
    if message.role == "tool":
        return f"<｜tool▁output▁begin｜>{message.content}<｜tool▁output▁end｜>"
    if message.tool_calls:
        opening = "<｜Assistant｜></think>" if before == "user" else ""
        calls = "".join(map(_write_call, message.tool_calls))
        return f"{opening}{message.content}<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>{_EOS}"
    opening = ""
    if before == "user":
        opening = "<｜Assistant｜>" + ("<think>" if message.thinking and thinking else "</think>")
    content = message.content
    if before != "tool" and "</think>" in content:
        content = content.partition("</think>")[2]
    return opening + content + _EOS


def _write_call(call: ToolCall) -> str:
    return f"<｜tool▁call▁begin｜>{call.name}<｜tool▁sep｜>{compact(ArgumentDict(call.arguments))}<｜tool▁call▁end｜>"


# Reply parser

_END_THINK = "</think>"
CALLS, _END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
_OUTPUT, _END_OUTPUT = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"


def call_regions(parse_call: CallParser, head: str) -> dict[str, Region]:
    """Return the regions that Cogito shares. Text between the calls is content. ``head``: see ``CallRegion``."""
    return {
        "thinking": TextRegion(THINKING, {_END_THINK: Exit("content")}, _END_THINK),
        "calls": TextRegion(CONTENT, {_CALL: Exit("call"), _END_CALLS: Exit("content")}),
        "call": CallRegion(
            parse_call,
            {_END_CALL: Exit("calls"), _CALL: Exit("call", closes=False), _END_CALLS: Exit("content")},
            head=re.compile(head),
            name_of=plain_name_of,
        ),
    }


def _create_parser(context: ReplyContext) -> RegionParser:
    """Tool outputs that the model makes up are content, without their tags."""
    verbatim = Exit("output", before=False, after=False)
    regions = call_regions(_plain_call, rf"(?P<name>[^<\n]*?){SEPARATOR}\s*(?=\{{)") | {
        "content": TextRegion(CONTENT, {CALLS: Exit("calls"), _OUTPUT: verbatim}),
        "output": TextRegion(CONTENT, {_END_OUTPUT: verbatim._replace(to="content")}),
    }
    thinks = context.thinks(by_default=False) and not context.continues
    return RegionParser(regions, "thinking" if thinks else "content")


def _plain_call(body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse ``name<｜tool▁sep｜>{…}``."""
    name, separated, arguments = body.partition(SEPARATOR)
    return parsed_call(body, name if separated else "", arguments)


def parsed_call(body: str, name: str, arguments: str) -> Sequence[ParsedCall | MalformedCall]:
    name, found = name.strip(), parse_object(arguments.strip())
    if not name:
        return [MalformedCall(body, "the tool call has no tool name")]
    return [
        MalformedCall(body, f"the arguments for {name} are not a JSON object")
        if found is None
        else ParsedCall(name, found)
    ]


def call_grammar(
    context: ReplyContext, parallel: bool, *, before: str = "", after: str = "", end: str = "", separator: str = ""
) -> CallGrammar:
    """The texts around the name and the arguments differ between the families."""

    def call(tool: Tool) -> Part:
        name = plain_name(tool_name(tool))
        return series(_CALL + before, name, after, json_arguments(tool), end + _END_CALL)

    some = calls(context.tools, call, parallel=parallel, separator=separator)
    unquotable = (_CALL, _END_CALL, _END_CALLS)
    return CallGrammar(series(CALLS, some, _END_CALLS), quoted=True, unquotable=unquotable)


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    return call_grammar(context, parallel, after=SEPARATOR)


TAGS = (_END_THINK, CALLS, _END_CALLS, _CALL, _END_CALL, SEPARATOR, _OUTPUT, _END_OUTPUT)
FAMILY = Family(
    renderers={"deepseek3.1": render},
    bos=_BOS,
    parsers={
        "deepseek3": ParserSpec(
            create=_create_parser, thinking=True, preserve=TAGS, call_grammar=_call_grammar, answer_marker=CALLS
        )
    },
    model_names=frozenset({"deepseek-r1"}),
    strip_old_thinking=True,
    hint_to_pull=True,
    no_shift=frozenset({"deepseek2"}),
)
