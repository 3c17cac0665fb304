"""Laguna and Poolside v1: roles as XML elements, tools as JSON, thinking on request.

Calls have tagged arguments or are JSON, with tags or without.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families.card import CreateDefaults, Family, ParserSpec
from ollama_nb.reply.arguments import Schemas, as_object, parse_object
from ollama_nb.reply.call_grammar import CallGrammar, calls, tagged_call
from ollama_nb.reply.notations import END_KEY, END_VALUE, KEY, VALUE, NotationError, parse_tagged_call
from ollama_nb.reply.output import MalformedCall, Output, ParsedCall, ReplyContext
from ollama_nb.reply.regions import (
    CONTENT,
    HIDDEN,
    THINKING,
    CallRegion,
    Exit,
    ForkRegion,
    Region,
    RegionParser,
    RegionStep,
    TextRegion,
)
from ollama_nb.template.formatting import spaced, tool_json, trim, trim_right

_BOS = "〈|EOS|〉"
_SYSTEM = (
    "You are a helpful, conversationally-fluent assistant made by Poolside. You are here to be helpful to users "
    "through natural language conversations."
)
_TOOLS = """\
### Tools

You may call functions to assist with the user query.
All available function signatures are listed below:
<available_tools>
"""
_CALL_FORMAT = (
    "For each function call, return an unescaped XML-like object with function name and arguments within "
    "'<tool_call>' and '</tool_call>' tags, like here:\n"
)
_CALL_EXAMPLE = """\
<tool_call>function-name
<arg_key>argument-key</arg_key>
<arg_value>value-of-argument-key</arg_value>
</tool_call>"""


def _leading_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Return the system text without trailing white space, and the other messages."""
    own = bool(messages) and messages[0].role == "system"
    system = messages[0].content if own else _SYSTEM
    return trim_right(system), messages[1:] if own else messages


def _render_tools(tools: Sequence[Tool]) -> str:
    return _TOOLS + "".join(f"{spaced(tool_json(tool))}\n" for tool in tools) + "</available_tools>"


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else spaced(value)


# Laguna: one line per element


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system, talk = _leading_system(messages)
    out = [_BOS, _header(system, tools, bool(think))]
    for at, message in enumerate(talk):
        if message.role == "assistant":
            out.append(_answer(message, last=at == len(talk) - 1))
        else:
            out.append(_element(message))
    if not (messages and messages[-1].role == "assistant"):
        out.append("<assistant>\n" + ("<think>" if think else "</think>"))
    return "".join(out)


def _header(system: str, tools: Sequence[Tool], thinking: bool) -> str:
    if not system and not tools:
        return ""
    tool_text = ""
    if tools:
        how = _CALL_FORMAT
        if thinking:
            wrapped = "Wrap your thinking in '<think>', '</think>' tags, followed by a function call. "
            how = f"{wrapped}{how}<think> your thoughts here </think>\n"
        tool_text = f"\n\n{_render_tools(tools)}\n\n{how}{_CALL_EXAMPLE}"
    system_text = f"\n{system}" if system else ""
    return f"<system>\n{system_text}{tool_text}\n</system>\n"


def _element(message: Message) -> str:
    name = {"user": "user", "system": "system", "tool": "tool_response"}.get(message.role)
    return f"<{name}>\n{message.content}\n</{name}>\n" if name else ""


def _answer(message: Message, *, last: bool) -> str:
    content, thought = map(trim, _split(message.content, message.thinking))
    body = f"{content}\n" if content else ""
    calls = "".join(map(_call, message.tool_calls))
    block = f"<think>\n{thought}\n</think>\n" if thought else "</think>\n"
    end = "" if last and (thought or body or calls) else "</assistant>\n"
    return f"<assistant>\n{block}{body}{calls}{end}"


def _split(content: str, thought: str) -> tuple[str, str]:
    """Return content and thinking. Think tags inside the content are split off."""
    before, close, _ = content.partition("</think>")
    if not close:
        return content, thought
    return content.rpartition("</think>")[2], thought or before.rpartition("<think>")[2]


def _call(call: ToolCall) -> str:
    arguments = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{_argument(value)}</arg_value>\n"
        for key, value in call.arguments.items()
    )
    return f"<tool_call>{call.name}\n{arguments}</tool_call>\n"


# Poolside v1: the same without line breaks


def render_v1(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system, talk = _leading_system(messages)
    parts = "\n\n".join(filter(None, (system, _render_tools(tools) if tools else "")))
    out = [_BOS, f"<system>{parts}</system>\n" if parts or think else ""]
    for message in talk:
        if message.role == "assistant":
            thought = f"<think>{message.thinking}" if think else ""
            calls = "".join(map(_call_v1, message.tool_calls))
            out.append(f"<assistant>{thought}</think>{message.content}{calls}</assistant>\n")
        elif message.role in ("user", "system", "tool"):
            name = "tool_response" if message.role == "tool" else message.role
            out.append(f"<{name}>{message.content}</{name}>\n")
    return "".join(out) + "<assistant>" + ("<think>" if think else "</think>")


def _call_v1(call: ToolCall) -> str:
    arguments = "".join(
        f"<arg_key>{key}</arg_key><arg_value>{_argument(value)}</arg_value>" for key, value in call.arguments.items()
    )
    return f"<tool_call>{call.name}{arguments}</tool_call>"


# Reply parser

_THINK, _END_THINK, _TOOL, _END_TOOL = "<think>", "</think>", "<tool_call>", "</tool_call>"
_USER, _END_USER = "<user>", "</user>"
_OTHER_NAMES = {"read_file": "read", "write_file": "write", "edit_file": "edit", "web_fetch": "webfetch"}


def _create_parser(context: ReplyContext, *, continues: bool) -> RegionParser:
    """``continues``: the reply continues a trailing assistant message, so there is no more thinking."""
    schemas = Schemas(context.tools)
    thinks = context.thinks(by_default=False)
    exits = {_THINK: Exit("thinking", before=False), _TOOL: Exit("call")}
    if context.tools:
        exits |= {_USER: Exit("user"), "{": Exit("maybe call", after=False)}
    regions: dict[str, Region] = {
        "echo": ForkRegion({_THINK: Exit("thinking")}, "thinking", "dropped", "\n</think>\n"),
        "thinking": TextRegion(
            THINKING if thinks else HIDDEN, {_END_THINK: Exit("start"), _TOOL: Exit("call")}, "\n</think>\n"
        ),
        "start": ForkRegion({_END_THINK: Exit("start")}, "content", "dropped"),
        "content": TextRegion(CONTENT, exits),
        "call": CallRegion(
            partial(_parse_call, schemas), {_END_TOOL: Exit("content"), _TOOL: Exit("call", closes=False)}
        ),
        "user": CallRegion(partial(_known_call, schemas), {_END_USER: Exit("content")}),
        "maybe call": _MaybeCall(),
        "object": CallRegion(partial(_known_call, schemas), {}, whole=True, by_object="content"),
    }
    prefilled = continues and context.last is not None and context.last.role == "assistant"
    return RegionParser(regions, "echo" if thinks and not prefilled else "start")


class _MaybeCall:
    """The text after a brace in the content. An object whose first key is a key of calls may be a call."""

    answer_prefix = ""
    _KEYS = ('"name"', '"arguments"')
    _MOST_SPACE = 64

    def __init__(self) -> None:
        self._space = ""

    def enter(self, step: RegionStep) -> None:
        self._space = step.space

    def consume(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        head = text[at : at + self._MOST_SPACE].lstrip()
        found = next((key for key in self._KEYS if head.startswith(key)), None)
        if found is not None:
            return RegionStep(at, "object", marker="{", space=self._space)
        undecided = len(text) - at < self._MOST_SPACE and not final
        if undecided and any(key.startswith(head) for key in self._KEYS):
            return RegionStep(at)
        out.content(self._space + "{")
        return RegionStep(at, "content")


def _parse_call(schemas: Schemas, body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse one call. Without its closing tag it must name an offered tool: partial text may look like a name."""
    item = _parse_item(schemas, body, closed)
    if isinstance(item, ParsedCall) and not closed and item.name not in schemas:
        return [MalformedCall(body, f"incomplete tool call: tool '{item.name}' is not declared")]
    return [item]


def _parse_item(schemas: Schemas, body: str, closed: bool) -> ParsedCall | MalformedCall:
    text = body.strip()
    name, braced, rest = text.partition("{")
    if not name:
        return _json_call(schemas, text)
    if braced and KEY not in name:
        arguments = parse_object(braced + rest)
        name = _declared(schemas, name.strip())
        if arguments is None:
            return MalformedCall(body, f"the arguments for {name} are not a JSON object")
        return ParsedCall(name, arguments)
    try:
        name, pairs = parse_tagged_call(text, strict=not closed)
    except NotationError as error:
        return MalformedCall(body, str(error))
    name = _declared(schemas, name)
    return ParsedCall(name, {key: schemas.typed(name, key, value) for key, value in pairs})


def _known_call(schemas: Schemas, body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse a call without tags. It must name an offered tool; otherwise it is content."""
    items = _parse_call(schemas, body.strip().removeprefix(_TOOL).removesuffix(_END_TOOL), closed)
    if all(isinstance(item, ParsedCall) and item.name in schemas for item in items):
        return items
    return [MalformedCall(body)]


def _json_call(schemas: Schemas, text: str) -> ParsedCall | MalformedCall:
    value = parse_object(text)
    if value is None:
        return MalformedCall(text, "the tool call is not valid JSON")
    name, arguments = value.get("name"), as_object(value.get("arguments"))
    if not isinstance(name, str) or not name.strip() or arguments is None:
        return MalformedCall(text, "the tool call is not an object with name and arguments")
    return ParsedCall(_declared(schemas, name), arguments)


def _declared(schemas: Schemas, name: str) -> str:
    """Map a name that the models prefer to the offered tool of another name."""
    other = _OTHER_NAMES.get(name)
    return other if name not in schemas and other is not None and other in schemas else name


def _call_grammar(context: ReplyContext, parallel: bool, *, line: str) -> CallGrammar:
    """``line`` is the text between the elements of a call."""
    call = partial(tagged_call, opening=_TOOL, closing=_END_TOOL, line=line)
    return CallGrammar(calls(context.tools, call, parallel=parallel, separator=line))


_TAGS = (_THINK, _END_THINK, _TOOL, _END_TOOL, _USER, _END_USER, KEY, END_KEY, VALUE, END_VALUE)
FAMILY = Family(
    renderers={"laguna": render, "poolside-v1": render_v1},
    bos=_BOS,
    parsers={
        "laguna": ParserSpec(
            create=partial(_create_parser, continues=True),
            thinking=True,
            preserve=_TAGS,
            call_grammar=partial(_call_grammar, line="\n"),
        ),
        "poolside-v1": ParserSpec(
            create=partial(_create_parser, continues=False),
            thinking=True,
            preserve=_TAGS,
            call_grammar=partial(_call_grammar, line=""),
        ),
    },
    create_defaults={"laguna": CreateDefaults(renderer="laguna", parser="laguna")},
)
