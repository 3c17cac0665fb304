"""Cogito: DeepSeek's markers, tools and calls as JSON in code blocks, thinking on request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.families.deepseek import CALLS, SEPARATOR, TAGS, call_grammar, call_regions, parsed_call
from ollama_nb.reply.call_grammar import CallGrammar
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CONTENT, HIDDEN, Exit, RegionParser, TextRegion
from ollama_nb.template.formatting import ArgumentDict, compact, indented, tool_json

_BOS = "<｜begin▁of▁sentence｜>"
_EOS = "<｜end▁of▁sentence｜>"
_SYSTEM = "You are Cogito, an AI assistant created by Deep Cogito, which is an AI research lab based in San Francisco."


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system, talk = "", messages
    if messages and messages[0].role == "system":
        system, talk = messages[0].content, messages[1:]
    out = [_BOS, _system(system, tools, bool(think))]
    out += [_turn(talk, at) for at in range(len(talk))]
    roles = [message.role for message in talk if message.role in ("user", "assistant", "tool")]
    if roles[-1:] != ["user"]:
        out.append("<｜Assistant｜>")
    return "".join(out) + ("<think>\n" if think else "")


def _system(text: str, tools: Sequence[Tool], thinking: bool) -> str:
    own = f"\n\n{text}" + ("\n\n" if thinking else "") if text else ""
    listed = "".join(f"```json\n{indented(tool_json(tool))}\n```\n" for tool in tools)
    intro = "\nYou have the following functions available:\n" if tools else ""
    return ("Enable deep thinking subroutine.\n\n" if thinking else "") + _SYSTEM + own + intro + listed


def _turn(talk: Sequence[Message], at: int) -> str:
    message = talk[at]
    if message.role == "user":
        return f"<｜User｜>{message.content}<｜Assistant｜>"
    if message.role == "assistant":
        calls = "\n".join(map(_call, message.tool_calls))
        block = f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>" if calls else ""
        return message.content + block + _EOS
    return _result(talk, at) if message.role == "tool" else ""


def _call(call: ToolCall) -> str:
    arguments = compact(ArgumentDict(call.arguments))
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call.name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def _result(talk: Sequence[Message], at: int) -> str:
    """Render one result. Consecutive results share one block, one line each."""
    opened = "" if at and talk[at - 1].role == "tool" else "<｜tool▁outputs▁begin｜>"
    closed = "\n" if at + 1 < len(talk) and talk[at + 1].role == "tool" else "<｜tool▁outputs▁end｜>"
    return f"{opened}<｜tool▁output▁begin｜>{talk[at].content}<｜tool▁output▁end｜>{closed}"


# Reply parser

_OUTPUTS, _END_OUTPUTS = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
_FENCED = re.compile(r"\n```json\n(.*?)\n```", re.DOTALL)


def _create_parser(context: ReplyContext) -> RegionParser:
    """Thinking is off when tools are offered. Tool outputs that the model makes up are dropped."""
    regions = call_regions(_fenced_call, rf"[^<]*{SEPARATOR}(?P<name>[^\n]*)\n```json\n(?=\{{)") | {
        "content": TextRegion(CONTENT, {CALLS: Exit("calls"), _OUTPUTS: Exit("outputs")}),
        "outputs": TextRegion(HIDDEN, {_END_OUTPUTS: Exit("content")}),
    }
    thinks = context.thinks(by_default=False) and not context.continues and not context.tools
    return RegionParser(regions, "thinking" if thinks else "content")


def _fenced_call(body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse ``function<｜tool▁sep｜>name`` and the arguments in a JSON code block."""
    named = body.partition(SEPARATOR)[2]
    match = _FENCED.search(named)
    if match is None:
        return [MalformedCall(body, "the tool call has no JSON code block")]
    return parsed_call(body, named[: match.start()], match[1])


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    return call_grammar(
        context, parallel, before=f"function{SEPARATOR}", after="\n```json\n", end="\n```", separator="\n"
    )


FAMILY = Family(
    renderers={"cogito": render},
    bos=_BOS,
    parsers={
        "cogito": ParserSpec(
            create=_create_parser,
            thinking=True,
            preserve=(*TAGS, _OUTPUTS, _END_OUTPUTS),
            call_grammar=_call_grammar,
            answer_marker=CALLS,
        )
    },
)
