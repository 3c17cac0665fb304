"""LFM2: ChatML with images, tools as a JSON list, calls in Python syntax, with or without special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.arguments import Schemas
from ollama_nb.reply.call_grammar import CallGrammar, calls, python_call, series
from ollama_nb.reply.notations import python_calls
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CONTENT, THINKING, CallRegion, Exit, ForkRegion, Region, RegionParser, TextRegion
from ollama_nb.template.chatml import END, START, continues, turn
from ollama_nb.template.formatting import Images, by_name, function_of, plain, tool_json, trim

_BOS = "<|startoftext|>"
_CALLS = "<|tool_call_start|>"
_RESPONSE = "<|tool_response_start|>"


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, thinks: bool) -> str:
    """``thinks``: the variant supports thinking; earlier thinking stays in the prompt while thinking is on."""
    images = Images()
    system, talk = "", messages
    if messages and messages[0].role == "system":
        system, talk = messages[0].content, messages[1:]
        images.skip(messages[0])
    out = [_BOS, _header(system, tools)]
    answers = [at for at, message in enumerate(talk) if message.role == "assistant"]
    for at, message in enumerate(talk):
        content = images.mark(message)
        if message.role == "assistant":
            forget = not (thinks and think) and at != answers[-1]
            content = _answer(message, content, thinks=thinks, forget=forget)
        elif message.role == "tool" and _RESPONSE not in content:
            content = f"{_RESPONSE}{content}<|tool_response_end|>"
        open_ = at == len(talk) - 1 and message.role == "assistant"
        out.append(f"{START}{message.role}\n{content}{'' if open_ else END}")
    return "".join(out) + ("" if continues(messages) else f"{START}assistant\n")


def _header(system: str, tools: Sequence[Tool]) -> str:
    listed = ""
    if tools:
        schemas = ", ".join(map(_schema, tools))
        listed = f"List of tools: <|tool_list_start|>[{schemas}]<|tool_list_end|>"
    text = "\n".join(filter(None, (system, listed)))
    return turn("system", text) if text else ""


def _schema(tool: Tool) -> str:
    function = function_of(tool)
    return plain(tool_json(tool)["function"] if function.name else tool_json(tool))


def _answer(message: Message, content: str, *, thinks: bool, forget: bool) -> str:
    """Render thinking, calls and content. ``forget`` drops everything up to the end of the thinking."""
    if message.tool_calls and _CALLS not in content:
        calls = ",".join(map(_call, message.tool_calls))
        content = f"{_CALLS}[{calls}]<|tool_call_end|>{chr(10) if trim(content) else ''}{content}"
    if thinks and message.thinking and "</think>" not in content:
        content = f"<think>{message.thinking}</think>{content}"
    if forget and "</think>" in content:
        content = trim(content.rpartition("</think>")[2])
    return content


def _call(call: ToolCall) -> str:
    return f"{call.name}({','.join(f'{key}={plain(value)}' for key, value in by_name(call.arguments))})"


# Reply parser

_THINK, _END_THINK = "<think>", "</think>"
_END_CALLS = "<|tool_call_end|>"


def _create_parser(context: ReplyContext, *, can_think: bool) -> RegionParser:
    """An answer that begins with the name of an offered tool and ``(`` may be a call without its special tokens."""
    names = Schemas(context.tools).names()
    bare = {f"{bracket}{name}(": Exit("bare", after=False) for name in names for bracket in ("", "[")}
    regions: dict[str, Region] = {
        "start": ForkRegion({_THINK: Exit("thinking")}, "answer", "dropped"),
        "thinking": TextRegion(THINKING, {_END_THINK: Exit("answer")}, "\n</think>\n\n"),
        "answer": ForkRegion(bare, "content"),
        "bare": CallRegion(partial(_bare_calls, names), {_CALLS: Exit("calls", closes=False)}, whole=True),
        "content": TextRegion(CONTENT, {_CALLS: Exit("calls")}),
        "calls": CallRegion(python_calls, {_END_CALLS: Exit("content"), _CALLS: Exit("calls", closes=False)}),
    }
    thinks = can_think and context.thinks(by_default=False) and not context.continues
    return RegionParser(regions, "start" if thinks else "content" if context.continues else "answer")


def _bare_calls(names: Sequence[str], body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    items = python_calls(body, closed)
    if all(isinstance(item, ParsedCall) and item.name in names for item in items):
        return items
    return [MalformedCall(body)]


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    some = calls(context.tools, partial(python_call, separator=","), parallel=parallel, separator=",")
    return CallGrammar(series(f"{_CALLS}[", some, f"]{_END_CALLS}"), quoted=True, unquotable=(_CALLS, _END_CALLS))


_TAGS = (_THINK, _END_THINK, _CALLS, _END_CALLS)
FAMILY = Family(
    renderers={"lfm2": partial(render, thinks=False), "lfm2-thinking": partial(render, thinks=True)},
    bos=_BOS,
    parsers={
        "lfm2": ParserSpec(create=partial(_create_parser, can_think=False), preserve=_TAGS, call_grammar=_call_grammar),
        "lfm2-thinking": ParserSpec(
            create=partial(_create_parser, can_think=True), thinking=True, preserve=_TAGS, call_grammar=_call_grammar
        ),
    },
)
