"""GLM 4.7 and GLM-OCR: role tokens, tools as JSON, calls as tagged arguments between ``<tool_call>`` tags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.arguments import Schemas
from ollama_nb.reply.call_grammar import CallGrammar, calls, tagged_call
from ollama_nb.reply.notations import END_KEY, END_VALUE, KEY, VALUE, NotationError, parse_tagged_call
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CONTENT, THINKING, CallRegion, Exit, ForkRegion, Region, RegionParser, TextRegion
from ollama_nb.template.formatting import Images, compact, spaced, tool_json, trim

_BEGIN = "[gMASK]<sop>"
_TOOLS = """\
<|system|>
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_CALL_FORMAT = """\
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>\
<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>"""


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    out = [_BEGIN, _tools(tools)]
    for at, message in enumerate(messages):
        if message.role in ("user", "system"):
            out.append(f"<|{message.role}|>{message.content}")
        elif message.role == "assistant":
            thought = f"<think>{message.thinking}" if message.thinking else ""
            out.append(f"<|assistant|>{thought}</think>{message.content}{''.join(map(_call, message.tool_calls))}")
        elif message.role == "tool":
            out.append(f"{_observed(messages, at)}<tool_response>{message.content}</tool_response>")
    out.append("<|assistant|><think>" if think is None or think else "<|assistant|></think>")
    return "".join(out)


def render_ocr(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    """Render a prompt for GLM-OCR: with line breaks and images. Thinking can only be switched off."""
    images = Images()
    out = [_BEGIN, _tools(tools)]
    for at, message in enumerate(messages):
        if message.role == "system":
            out.append(f"<|system|>\n{message.content}\n")
        elif message.role == "user":
            off = "/nothink" if think is False and not message.content.endswith("/nothink") else ""
            out.append(f"<|user|>\n{images.mark(message)}{off}")
        elif message.role == "assistant":
            content = f"\n{trim(message.content)}" if message.content else ""
            calls = "".join(f"\n{_call(call)}" for call in message.tool_calls)
            out.append(f"<|assistant|>\n<think>{trim(message.thinking)}</think>{content}{calls}\n")
        elif message.role == "tool":
            result = images.mark(message)
            out.append(f"{_observed(messages, at)}\n<tool_response>\n{result}\n</tool_response>\n")
    out.append("<|assistant|>\n" + ("<think></think>\n" if think is False else ""))
    return "".join(out)


def _tools(tools: Sequence[Tool]) -> str:
    listed = "".join(f"{spaced(tool_json(tool))}\n" for tool in tools)
    return f"{_TOOLS}{listed}{_CALL_FORMAT}" if tools else ""


def _observed(messages: Sequence[Message], at: int) -> str:
    """Return the role of tool results. Consecutive results share it."""
    return "" if at and messages[at - 1].role == "tool" else "<|observation|>"


def _call(call: ToolCall) -> str:
    arguments = "".join(
        f"<arg_key>{key}</arg_key><arg_value>{value if isinstance(value, str) else compact(value)}</arg_value>"
        for key, value in call.arguments.items()
    )
    return f"<tool_call>{call.name}{arguments}</tool_call>"


# Reply parser

_THINK, _END_THINK, _TOOL, _END_TOOL = "<think>", "</think>", "<tool_call>", "</tool_call>"


def _create_parser(context: ReplyContext, *, starts_thinking: bool) -> RegionParser:
    regions: dict[str, Region] = {
        "start": ForkRegion({_THINK: Exit("thinking")}, "content"),
        "thinking": TextRegion(THINKING, {_END_THINK: Exit("content")}, _END_THINK),
        "content": TextRegion(CONTENT, {_TOOL: Exit("call")}),
        "call": CallRegion(
            partial(_parse_call, Schemas(context.tools)),
            {_END_TOOL: Exit("content"), _TOOL: Exit("call", closes=False)},
        ),
    }
    return RegionParser(regions, "thinking" if starts_thinking else "start")


def _parse_call(schemas: Schemas, body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse one call. Without its closing tag it must be complete: running a repaired partial call may do harm."""
    try:
        name, pairs = parse_tagged_call(body, strict=not closed)
    except NotationError as error:
        return [MalformedCall(body, str(error))]
    if not closed and name not in schemas:
        return [MalformedCall(body, f"incomplete GLM tool call: tool '{name}' is not declared")]
    missing = None if closed else schemas.missing(name, (key for key, _ in pairs))
    if missing is not None:
        return [MalformedCall(body, f"incomplete GLM tool call: required argument '{missing}' is missing")]
    return [ParsedCall(name, {key: schemas.typed(name, key, value) for key, value in pairs})]


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    call = partial(tagged_call, opening=_TOOL, closing=_END_TOOL)
    return CallGrammar(calls(context.tools, call, parallel=parallel))


def _glm(context: ReplyContext) -> RegionParser:
    return _create_parser(context, starts_thinking=context.thinks(by_default=True))


_TAGS = (_THINK, _END_THINK, _TOOL, _END_TOOL, KEY, END_KEY, VALUE, END_VALUE)
FAMILY = Family(
    renderers={"glm-4.7": render, "glm-ocr": render_ocr},
    parsers={
        "glm-4.7": ParserSpec(create=_glm, thinking=True, preserve=_TAGS, call_grammar=_call_grammar),
        "glm-ocr": ParserSpec(
            create=partial(_create_parser, starts_thinking=False), preserve=_TAGS, call_grammar=_call_grammar
        ),
    },
)
