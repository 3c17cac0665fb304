"""Olmo 3: ChatML, tools as a JSON list, calls in Python syntax. The thinking variants do not call tools."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.call_grammar import CallGrammar, calls, python_call, series
from ollama_nb.reply.notations import python_calls
from ollama_nb.reply.output import ReplyContext
from ollama_nb.reply.regions import CONTENT, THINKING, CallRegion, Exit, Region, RegionParser, TextRegion
from ollama_nb.template.chatml import END, START, turn
from ollama_nb.template.formatting import by_name, compact, spaced, tool_json

_OLMO = (
    "You are Olmo, a helpful AI assistant built by Ai2. Your date cutoff is December 2024, and your model weights are "
    "available at https://huggingface.co/allenai."
)
_NO_FUNCTIONS = "You do not currently have access to any functions. <functions></functions>"
_FUNCTIONS = (
    "You are provided with function signatures within <functions></functions> XML tags. You may call one or more "
    "functions to assist with the user query. Output any function calls within <function_calls></function_calls> XML "
    "tags. Do not make assumptions about what values to plug into functions."
)


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, system: str) -> str:
    """``system`` is the default system message."""
    del think  # the variant has no thinking
    listed = f"<functions>{spaced([tool_json(tool) for tool in tools])}</functions>" if tools else ""
    own = _own_system(messages)
    header = f"{system} {_FUNCTIONS if tools else _NO_FUNCTIONS}" if own is None else own
    talk = [message for message in messages if message.role != "system"]
    out = [turn("system", header + listed)]
    out += [_turn(message, last=at == len(talk) - 1) for at, message in enumerate(talk)]
    if not (talk and talk[-1].role == "assistant" and talk[-1].content and not talk[-1].tool_calls):
        out.append(f"{START}assistant\n")
    return "".join(out)


def _own_system(messages: Sequence[Message]) -> str | None:
    return next((message.content for message in messages if message.role == "system"), None)


def _turn(message: Message, *, last: bool) -> str:
    if message.role == "user":
        return turn("user", message.content)
    if message.role == "tool":
        return turn("environment", message.content)
    if message.role != "assistant":
        return ""
    calls = "\n".join(map(_call, message.tool_calls))
    block = f"<function_calls>{calls}</function_calls>" if calls else ""
    return f"{START}assistant\n{message.content}{block}" + ("" if last and not calls else END)


def _call(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{key}={compact(value)}' for key, value in by_name(call.arguments))})"


def render_thinking(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, system: str) -> str:
    del tools, think  # thinking is always on; tools are not supported
    own = _own_system(messages)
    out = [turn("system", system if own is None else f"{own} {_NO_FUNCTIONS}")]
    out += [turn(message.role, message.content) for message in messages if message.role in ("user", "assistant")]
    return "".join(out) + f"{START}assistant\n<think>"


# Reply parser

_CALLS, _END_CALLS, _END_THINK = "<function_calls>", "</function_calls>", "</think>"
_VERBATIM = Exit("content", before=False, after=False)


def _olmo3(context: ReplyContext) -> RegionParser:
    regions: dict[str, Region] = {
        "content": TextRegion(CONTENT, {_CALLS: _VERBATIM._replace(to="calls")}),
        "calls": CallRegion(
            python_calls, {_END_CALLS: _VERBATIM, _CALLS: _VERBATIM._replace(to="calls", closes=False)}
        ),
    }
    return RegionParser(regions, "content")


def _olmo3_think(context: ReplyContext) -> RegionParser:
    regions: dict[str, Region] = {
        "thinking": TextRegion(THINKING, {_END_THINK: Exit("content")}, "\n</think>\n\n"),
        "content": TextRegion(CONTENT, {}),
    }
    return RegionParser(regions, "content" if context.continues else "thinking")


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    some = calls(context.tools, partial(python_call, separator=", "), parallel=parallel, separator="\n")
    return CallGrammar(series(_CALLS, some, _END_CALLS), quoted=True, unquotable=(_CALLS, _END_CALLS))


FAMILY = Family(
    renderers={
        "olmo3": partial(render, system="You are a helpful function-calling AI assistant."),
        "olmo3.1": partial(render, system=_OLMO),
        "olmo3-think": partial(render_thinking, system=_OLMO),
        "olmo3-32b-think": partial(render_thinking, system="You are a helpful AI assistant."),
    },
    parsers={
        "olmo3": ParserSpec(create=_olmo3, preserve=(_CALLS, _END_CALLS), call_grammar=_call_grammar),
        "olmo3-think": ParserSpec(create=_olmo3_think, tools=False, thinking=True, preserve=(_END_THINK,)),
    },
)
