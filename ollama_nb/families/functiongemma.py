"""FunctionGemma: Gemma's turns, functions declared in a developer turn, results inside the model's turn.

Calls are ``<start_function_call>call:name{key:value}<end_function_call>``, with strings in ``<escape>`` marks.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.call_grammar import CallGrammar, brace_call, calls, series
from ollama_nb.reply.notations import BraceObjectParser, NotationError
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CONTENT, CallRegion, Exit, Region, RegionParser, TextRegion
from ollama_nb.template.formatting import GemmaNotation, KeyOrderedDict, by_name, function_of, trim, types

_BOS = "<bos>"
_NOTATION = GemmaNotation("<escape>", "<nil>")
_INTRO = "You can do function calling with the following functions:"
_CALLED, _ANSWERED = "called", "answered"


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    del think  # the family has no thinking
    system, talk = "", messages
    if messages and messages[0].role in ("system", "developer"):
        system, talk = messages[0].content, messages[1:]
    out = [_BOS, _header(system, tools)]
    state = ""
    for at, called in enumerate(_called(talk)):
        text, state = _turn(talk, at, called, state)
        out.append(text)
    if state != _ANSWERED:
        out.append("<start_of_turn>model\n")
    return "".join(out)


def _header(system: str, tools: Sequence[Tool]) -> str:
    if not system and not tools:
        return ""
    own = trim(system)
    intro = ("\n" if system else "") + ("" if own == _INTRO else _INTRO) if tools else ""
    return f"<start_of_turn>developer\n{own}{intro}{''.join(map(_declaration, tools))}<end_of_turn>\n"


def _declaration(tool: Tool) -> str:
    function = function_of(tool)
    listed = ",".join(f"{name}:{{{_property(inner)}}}" for name, inner in by_name(function.properties))
    declared = _NOTATION.declaration(function, listed if function.properties else None)
    return f"<start_function_declaration>{declared}<end_function_declaration>"


def _property(schema: KeyOrderedDict) -> str:
    kinds = types(schema)
    kind = f",type:{_NOTATION.text(kinds[0].upper())}" if kinds else ""
    return f"description:{_NOTATION.text(schema.get('description', ''))}{kind}"


def _turn(talk: Sequence[Message], at: int, called: str, state: str) -> tuple[str, str]:
    """Render one message. Return the text and the new state; text after a tool result continues the turn."""
    message = talk[at]
    if message.role == "tool":
        opened = "" if state == _CALLED else "<start_function_response>"
        return f"{opened}response:{called}{{{_NOTATION.text(message.content)}}}<end_function_response>", _ANSWERED
    if message.role not in ("user", "assistant"):
        return f"<start_of_turn>{message.role}\n{trim(message.content)}<end_of_turn>\n", state
    role = "model" if message.role == "assistant" else "user"
    out = ("" if state == _ANSWERED else f"<start_of_turn>{role}\n") + trim(message.content)
    if role == "user" or not message.tool_calls:
        return f"{out}<end_of_turn>\n", ""
    out += "".join(f"<start_function_call>{_NOTATION.call(call)}<end_function_call>" for call in message.tool_calls)
    if at + 1 < len(talk) and talk[at + 1].role == "tool":
        return f"{out}<start_function_response>", _CALLED
    return f"{out}<end_of_turn>\n", ""


def _called(talk: Sequence[Message]) -> list[str]:
    """Return for each message the name of the function whose result it is. Results follow in the order of the calls."""
    names: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    results = 0
    for message in talk:
        if message.role == "assistant" and message.tool_calls:
            calls, results = message.tool_calls, 0
        is_result = message.role == "tool"
        names.append(calls[results].name if is_result and results < len(calls) else "")
        results += is_result
    return names


# Reply parser

_CALL, _END_CALL = "<start_function_call>", "<end_function_call>"
_MARK = "<escape>"
_WORDS = {"true": True, "false": False, "null": None}


def _create_parser(context: ReplyContext) -> RegionParser:
    verbatim = Exit("content", before=False, after=False)
    regions: dict[str, Region] = {
        "content": TextRegion(CONTENT, {_CALL: verbatim._replace(to="call")}),
        "call": CallRegion(_parse_call, {_END_CALL: verbatim, _CALL: verbatim._replace(to="call", closes=False)}),
    }
    return RegionParser(regions, "content")


def _parse_call(body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    before, called, rest = body.partition("call:")
    name, braced, arguments = rest.partition("{")
    name = name.strip()
    if before.strip() or not called or not braced or not name:
        return [MalformedCall(body, "the tool call is not of the form call:name{…}")]
    try:
        return [ParsedCall(name, BraceObjectParser(braced + arguments, _MARK, _WORDS).parse())]
    except NotationError as error:
        return [MalformedCall(body, f"the arguments for {name} cannot be parsed: {error}")]


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    return CallGrammar(
        calls(
            context.tools,
            lambda tool: series(_CALL, brace_call(tool, _MARK, (_CALL, _END_CALL)), _END_CALL),
            parallel=parallel,
        )
    )


FAMILY = Family(
    renderers={"functiongemma": render},
    bos=_BOS,
    parsers={
        "functiongemma": ParserSpec(create=_create_parser, preserve=(_CALL, _END_CALL), call_grammar=_call_grammar)
    },
)
