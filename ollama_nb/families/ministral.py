"""Ministral: calls as ``[TOOL_CALLS]name[ARGS]{…}``, thinking in ``[THINK]…[/THINK]``. Prompts come from templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.argument_stream import plain_name as plain_name_of
from ollama_nb.reply.arguments import Schemas, parse_object, tool_name
from ollama_nb.reply.call_grammar import CallGrammar, calls, json_arguments, plain_name, series
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CONTENT, THINKING, CallRegion, Exit, Region, RegionParser, TextRegion

_CALLS, _ARGUMENTS, _THINK, _END_THINK = "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"


_HEAD = re.compile(r"(?P<name>[^\[{]*)\[ARGS\]\s*(?=\{)")


def _create_parser(context: ReplyContext) -> RegionParser:
    regions: dict[str, Region] = {
        "content": TextRegion(CONTENT, {_CALLS: Exit("call"), _THINK: Exit("thinking", after=False)}),
        "thinking": TextRegion(THINKING, {_END_THINK: Exit("content", before=False)}, _END_THINK),
        "call": CallRegion(
            partial(_call, Schemas(context.tools)),
            {_CALLS: Exit("call", closes=False)},
            by_object="content",
            head=_HEAD,
            name_of=plain_name_of,
        ),
    }
    return RegionParser(regions, "content")


def _call(schemas: Schemas, body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    name, marked, arguments = body.partition(_ARGUMENTS)
    name = name.strip()
    if not marked:
        return [MalformedCall(body, f"the tool call has no {_ARGUMENTS}")]
    if name not in schemas:
        return [MalformedCall(body, f"tool '{name}' not found")]
    found = parse_object(arguments)
    return [
        MalformedCall(body, f"the arguments for {name} are not a JSON object")
        if found is None
        else ParsedCall(name, found)
    ]


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    some = calls(
        context.tools,
        lambda tool: series(_CALLS, plain_name(tool_name(tool)), _ARGUMENTS, json_arguments(tool)),
        parallel=parallel,
    )
    return CallGrammar(some, quoted=True)


FAMILY = Family(
    parsers={
        "ministral": ParserSpec(
            create=_create_parser,
            preserve=(_CALLS, _THINK, _END_THINK, _ARGUMENTS),
            call_grammar=_call_grammar,
        )
    }
)
