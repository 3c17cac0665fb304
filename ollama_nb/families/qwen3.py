"""Qwen 3: calls as JSON between ``<tool_call>`` tags, thinking between ``<think>`` tags. Prompts come from templates.

The other Qwen families build on this parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.argument_stream import json_head
from ollama_nb.reply.arguments import as_object, parse_object
from ollama_nb.reply.call_grammar import CallGrammar, calls, json_call, series
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import (
    CONTENT,
    THINKING,
    CallParser,
    CallRegion,
    Exit,
    ForkRegion,
    Region,
    RegionParser,
    TextRegion,
)

THINK, END_THINK = "<think>", "</think>"
TOOL, END_TOOL = "<tool_call>", "</tool_call>"
JSON_HEAD = json_head("name", "arguments")
TAGS = (THINK, END_THINK, TOOL, END_TOOL)


def qwen_parser(
    parse_call: CallParser, *, thinking: bool, echo: bool = True, head: re.Pattern[str] | None = None
) -> RegionParser:
    """``echo``: drop one opening tag, because some models repeat the one that the prompt ends with.

    ``head``: see ``CallRegion``.
    """
    regions: dict[str, Region] = {
        "echo": ForkRegion({THINK: Exit("thinking")}, "thinking", answer_prefix="\n</think>\n\n"),
        "thinking": TextRegion(THINKING, {END_THINK: Exit("content"), TOOL: Exit("call")}, "\n</think>\n\n"),
        "content": TextRegion(CONTENT, {TOOL: Exit("call")}),
        "call": CallRegion(parse_call, {END_TOOL: Exit("content"), TOOL: Exit("call", closes=False)}, head=head),
    }
    start = ("echo" if echo else "thinking") if thinking else "content"
    return RegionParser(regions, start)


def parse_json_call(body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse ``{"name": …, "arguments": {…}}``."""
    value = parse_object(body)
    if value is None:
        return [MalformedCall(body, "the tool call is not valid JSON")]
    name, arguments = value.get("name"), as_object(value.get("arguments"))
    if not isinstance(name, str) or not name:
        return [MalformedCall(body, "the tool call has no tool name")]
    if arguments is None:
        return [MalformedCall(body, f"the arguments for {name} are not a JSON object")]
    return [ParsedCall(name, arguments)]


def json_call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    call = calls(
        context.tools,
        lambda tool: series(f"{TOOL}\n", json_call(tool), f"\n{END_TOOL}"),
        parallel=parallel,
        separator="\n",
    )
    return CallGrammar(call, quoted=True, unquotable=(TOOL, END_TOOL))


def _qwen3(context: ReplyContext) -> RegionParser:
    return qwen_parser(parse_json_call, thinking=False, head=JSON_HEAD)


def _qwen3_thinking(context: ReplyContext) -> RegionParser:
    return qwen_parser(parse_json_call, thinking=context.thinks(by_default=True), head=JSON_HEAD)


FAMILY = Family(
    parsers={
        "qwen3": ParserSpec(create=_qwen3, preserve=TAGS, call_grammar=json_call_grammar),
        "qwen3-thinking": ParserSpec(
            create=_qwen3_thinking, thinking=True, preserve=TAGS, call_grammar=json_call_grammar
        ),
    },
    model_families=frozenset({"qwen3"}),
    strip_old_thinking=True,
    hint_to_pull=True,
)
