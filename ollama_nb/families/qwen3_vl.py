"""Qwen3-VL: ChatML with images, tools and calls in JSON, thinking after the last question."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.families.qwen3 import (
    END_THINK,
    END_TOOL,
    JSON_HEAD,
    TOOL,
    json_call_grammar,
    parse_json_call,
    qwen_parser,
)
from ollama_nb.reply.output import ReplyContext
from ollama_nb.reply.regions import RegionParser
from ollama_nb.template.chatml import END, START, continues, last_question, tool_results, turn
from ollama_nb.template.formatting import ArgumentDict, mark_images, spaced, tool_json

_TOOLS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_CALLS = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, thinks: bool) -> str:
    """``thinks``: whether the variant thinks if the request does not set it."""
    thinking = thinks if think is None else bool(think)
    contents = mark_images(messages)
    question = last_question(messages, contents)
    out = [_header(messages, tools)]
    for at, message in enumerate(messages):
        if message.role == "user" or (message.role == "system" and at):
            out.append(turn(message.role, contents[at]))
        elif message.role == "tool":
            out.append(tool_results(messages, at, contents[at]))
        elif message.role == "assistant":
            last = at == len(messages) - 1
            thought = _thought(message, last) if thinking and at > question else None
            out.append(_answer(message, contents[at], thought) + ("" if last else END))
    if messages and not continues(messages):
        out.append(f"{START}assistant\n" + ("<think>\n" if thinking else ""))
    return "".join(out)


def _header(messages: Sequence[Message], tools: Sequence[Tool]) -> str:
    first = messages[0] if messages and messages[0].role == "system" else None
    if not tools:
        return turn("system", first.content) if first else ""
    listed = "".join(f"\n{spaced(tool_json(tool))}" for tool in tools)
    return turn("system", (f"{first.content}\n\n" if first else "") + _TOOLS + listed + _CALLS)


def _thought(message: Message, last: bool) -> str | None:
    """Return the content of the turn's think block, or None for a turn without one."""
    return message.thinking.strip("\n") if last or message.thinking else None


def _answer(message: Message, content: str, thought: str | None) -> str:
    calls = "\n".join(map(_call, message.tool_calls))
    gap = "\n" if calls and content else ""
    if thought is not None:
        content = f"<think>\n{thought}" + ("\n</think>\n\n" + content.lstrip("\n") if content else "")
    return f"{START}assistant\n{content}{gap}{calls}"


def _call(call: ToolCall) -> str:
    arguments = spaced(ArgumentDict(call.arguments))
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {arguments}}}\n</tool_call>'


# Reply parser


def _instruct_parser(context: ReplyContext) -> RegionParser:
    return qwen_parser(parse_json_call, thinking=False, head=JSON_HEAD)


def _thinking_parser(context: ReplyContext) -> RegionParser:
    return qwen_parser(parse_json_call, thinking=not context.continues, echo=False, head=JSON_HEAD)


_TAGS = (END_THINK, TOOL, END_TOOL)
FAMILY = Family(
    renderers={
        "qwen3-vl-instruct": partial(render, thinks=False),
        "qwen3-vl-thinking": partial(render, thinks=True),
    },
    parsers={
        "qwen3-vl-instruct": ParserSpec(create=_instruct_parser, preserve=_TAGS, call_grammar=json_call_grammar),
        "qwen3-vl-thinking": ParserSpec(
            create=_thinking_parser, thinking=True, preserve=_TAGS, call_grammar=json_call_grammar
        ),
    },
)
