"""Gemma 4: turns with images, tool results inside the model's turn, thinking in a channel.

Calls are ``call:name{key:value}`` with strings between special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.api.models import Model
from ollama_nb.families.card import CreateDefaults, Family, ParserSpec
from ollama_nb.reply.arguments import Schemas
from ollama_nb.reply.call_grammar import CallGrammar, brace_call, calls, series
from ollama_nb.reply.notations import BraceObjectParser, NotationError
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import (
    CONTENT,
    HIDDEN,
    THINKING,
    CallRegion,
    Exit,
    ForkRegion,
    Region,
    RegionParser,
    TextRegion,
)
from ollama_nb.template.formatting import (
    GemmaNotation,
    Images,
    KeyOrderedDict,
    by_name,
    function_of,
    go_value,
    trim,
    types,
)

_NOTATION = GemmaNotation('<|"|>', "null")
_SCHEMA_KEYS = frozenset({"description", "type", "properties", "required", "nullable"})
_KEPT = ("description", "enum", "items", "required", "nullable")
_BOS = "<bos>"
_THOUGHT = re.compile(r"<\|channel>.*?(?:<channel\|>|\Z)", re.DOTALL)
_Group = tuple[Message, list[Message]]
_ANSWERED, _CALLING = "answered", "calling"


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, empty_thought: bool) -> str:
    """``empty_thought``: for this variant, an empty thinking block switches thinking off."""
    system, talk = None, messages
    if messages and messages[0].role in ("system", "developer"):
        system, talk = messages[0].content, messages[1:]
    images = Images()
    groups = _grouped(talk)
    question = max((at for at, (message, _) in enumerate(groups) if message.role == "user"), default=-1)
    out = [_BOS, _header(system, tools, bool(think))]
    state = ""
    for at in range(len(groups)):
        text, state = _turn(groups, at, images, keep_thought=at > question)
        out.append(text)
    if not state:
        empty = "<|channel>thought\n<channel|>" if empty_thought and not think else ""
        out.append(f"<|turn>model\n{empty}")
    elif state == _ANSWERED and think:
        out.append("<|channel>thought\n")
    return "".join(out)


def _grouped(talk: Sequence[Message]) -> list[_Group]:
    """Return each message with the tool results that follow it. Results before the first message are dropped."""
    groups: list[_Group] = []
    for message in talk:
        if message.role != "tool":
            groups.append((message, []))
        elif groups:
            groups[-1][1].append(message)
    return groups


def _header(system: str | None, tools: Sequence[Tool], thinking: bool) -> str:
    if system is None and not tools and not thinking:
        return ""
    declared = "".join(map(_declaration, tools))
    switch = "<|think|>\n" if thinking else ""
    return f"<|turn>system\n{switch}{trim(system or '')}{declared}<turn|>\n"


def _turn(groups: Sequence[_Group], at: int, images: Images, *, keep_thought: bool) -> tuple[str, str]:
    """Render one message with the results of its calls. Return the text and the new state."""
    message, results = groups[at]
    before = groups[at - 1][0].role if at else ""
    after = groups[at + 1][0].role if at + 1 < len(groups) else ""
    is_model = message.role == "assistant"
    if not message.tool_calls:
        results = []
    state = (_ANSWERED if results else _CALLING) if message.tool_calls else ""
    out = "" if is_model and before == "assistant" else f"<|turn>{'model' if is_model else message.role}\n"
    if is_model and message.thinking and keep_thought:
        out += f"<|channel>thought\n{message.thinking}\n<channel|>"
    out += "".join(f"<|tool_call>{_NOTATION.call(call)}<tool_call|>" for call in message.tool_calls)
    out += _results(message, results, images)
    content = trim(_THOUGHT.sub("", message.content) if is_model else message.content)
    out += images.mark(message, content)
    if state == _CALLING:
        return out + "<|tool_response>", state
    has_content = bool(content or message.images)
    continues = (is_model and after == "assistant") or (state == _ANSWERED and not has_content and not after)
    return out + ("" if continues else "<turn|>\n"), state


def _results(caller: Message, results: Sequence[Message], images: Images) -> str:
    called: dict[str, str] = {}
    for call in caller.tool_calls:
        called.setdefault(call.id, call.name)
    called.pop("", None)
    out = ""
    for result in results:
        name = called.get(result.tool_call_id, result.tool_name or "unknown")
        out += f"<|tool_response>response:{name}{{value:{_NOTATION.text(images.mark(result))}}}<tool_response|>"
    return out


# Declarations of tools: schemas in a notation without quotes around keys, keys sorted, types in capitals.
#
# Schema keys that the notation does not have are left out. So are parameters named like a key of the schema: the models
# were trained that way.


def _declaration(tool: Tool) -> str:
    function = function_of(tool)
    listed = _properties(_typed_all(function.properties)) if function.properties else None
    return f"<|tool>{_NOTATION.declaration(function, listed)}<tool|>"


# Prepare properties for the notation: their types become one text


def _typed_all(properties: Mapping[str, KeyOrderedDict]) -> dict[str, Any]:
    return {name: _typed(schema) for name, schema in properties.items()}


def _typed(schema: KeyOrderedDict) -> dict[str, Any]:
    out = {key: schema[key] for key in _KEPT if key in schema}
    kinds = types(schema) or _union(schema.get("anyOf", ()))
    if kinds:
        listed = ", ".join(f"'{kind.upper()}'" for kind in kinds)
        out["type"] = kinds[0] if len(kinds) == 1 else f"[{listed}]"
    if "properties" in schema:
        out["properties"] = _typed_all(schema["properties"])
    return out


def _union(branches: Sequence[KeyOrderedDict]) -> Sequence[str]:
    """Return the types of an ``anyOf`` whose branches have only a type, without duplicates; else empty."""
    if any(branch.keys() != {"type"} for branch in branches):
        return ()
    return list(dict.fromkeys(kind for branch in branches for kind in types(branch)))


# The notation


def _properties(properties: Mapping[str, Any]) -> str:
    return ",".join(
        f"{name}:{{{_property(schema)}}}"
        for name, schema in by_name(properties)
        if name not in _SCHEMA_KEYS and isinstance(schema, Mapping)
    )


def _property(schema: Mapping[str, Any]) -> str:
    kinds = _capitals(schema.get("type"))
    kind = kinds[0] if kinds else ""
    parts = []
    if isinstance(schema.get("description"), str) and schema["description"]:
        parts.append(f"description:{_NOTATION.text(schema['description'])}")
    if kind == "STRING" and isinstance(schema.get("enum"), list) and schema["enum"]:
        parts.append(f"enum:{_NOTATION.texts(list(map(go_value, schema['enum'])))}")
    if kind == "ARRAY" and isinstance(schema.get("items"), Mapping) and schema["items"]:
        parts.append(f"items:{{{_items(schema['items'])}}}")
    if schema.get("nullable") is True:
        parts.append("nullable:true")
    if kind == "OBJECT":
        inner = schema.get("properties")
        parts.append(f"properties:{{{_properties(inner if isinstance(inner, Mapping) else schema)}}}")
        if required := _names(schema.get("required")):
            parts.append(f"required:{_NOTATION.texts(required)}")
    if kinds:
        parts.append(_type(kinds))
    return ",".join(parts)


def _items(schema: Mapping[str, Any]) -> str:
    """Write the schema of an array's items with all its keys."""
    return ",".join(_item(key, value) for key, value in by_name(schema) if value is not None)


def _item(key: str, value: Any) -> str:
    if key == "properties":
        return f"properties:{{{_properties(value) if isinstance(value, Mapping) else ''}}}"
    if key == "required":
        return f"required:{_NOTATION.texts(_names(value))}"
    if key == "type":
        return _type(_capitals(value))
    return f"{key}:{_NOTATION.value(value, quoted_keys=True)}"


def _type(kinds: list[str]) -> str:
    if not kinds:
        return ""
    return f"type:{_NOTATION.text(kinds[0]) if len(kinds) == 1 else _NOTATION.texts(kinds)}"


def _capitals(value: Any) -> list[str]:
    return [kind.upper() for kind in ([value] if isinstance(value, str) else _names(value))]


def _names(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


# Reply parser

_CHANNEL, _END_CHANNEL = "<|channel>", "<channel|>"
_CALL, _END_CALL = "<|tool_call>", "<tool_call|>"
_RESPONSE = "<|tool_response>"
_MARK = '<|"|>'
_NAME_OF_CHANNEL = "thought\n"
_WORDS = {"true": True, "false": False, "null": None}


def _create_parser(context: ReplyContext, *, can_think: bool) -> RegionParser:
    """Closing tokens that the model repeats after a call are dropped, and so is thinking that is off."""
    thinks = can_think and context.thinks(by_default=False)
    regions: dict[str, Region] = {
        "content": TextRegion(CONTENT, {_CHANNEL: Exit("channel", after=False), _CALL: Exit("call")}),
        "channel": ForkRegion({_NAME_OF_CHANNEL: Exit("thinking", after=False)}, "thinking", "none", _END_CHANNEL),
        "thinking": TextRegion(THINKING if thinks else HIDDEN, {_END_CHANNEL: Exit("content")}, _END_CHANNEL),
        "call": CallRegion(
            partial(_parse_call, Schemas(context.tools)), {_END_CALL: Exit("noise"), _CALL: Exit("call", closes=False)}
        ),
        "noise": ForkRegion({_END_CALL: Exit("noise"), _RESPONSE: Exit("noise")}, "content", "dropped"),
    }
    answers_tool = context.last is not None and context.last.role == "tool"
    return RegionParser(regions, "thinking" if thinks and answers_tool else "content")


def _parse_call(schemas: Schemas, body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    called, braced, arguments = body.partition("{")
    name = called.strip().removeprefix("call:").strip()
    if not called.strip().startswith("call:") or not braced or not name:
        return [MalformedCall(body, "the tool call is not of the form call:name{…}")]
    known = schemas.arguments(name)
    texts = [key for key in known if "string" in map(str.lower, schemas.types(name, key))]
    try:
        return [ParsedCall(name, BraceObjectParser(braced + arguments, _MARK, _WORDS, texts, known).parse())]
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


_TAGS = (_CHANNEL, _END_CHANNEL, _CALL, _END_CALL, _RESPONSE, _MARK)


# The variant of the renderer

_VARIANT = "gemma4"
_SMALL_SIZES, _LARGE_SIZES = ("e2b", "e4b"), ("12b", "26b", "31b")  # as they occur in model names
_LARGE = 12e9  # parameters; applies to models whose name contains no size
_SCALES = {"K": 1e3, "M": 1e6, "B": 1e9}


def _variant(renderer: str, model: Model) -> str:
    """Choose the renderer by the size of the model: by its name, else by its parameter count."""
    if renderer != _VARIANT:
        return renderer
    name = model.name.short.lower()
    if any(size in name for size in _SMALL_SIZES):
        return _VARIANT + "-small"
    if any(size in name for size in _LARGE_SIZES):
        return _VARIANT + "-large"
    return _VARIANT + ("-large" if _parameter_count(model.config.model_type) >= _LARGE else "-small")


def _parameter_count(text: str) -> float:
    """Parse a parameter count as configs write it (``4.3B``). Any other text is 0."""
    try:
        return float(text[:-1]) * _SCALES[text[-1:].upper()]
    except (KeyError, ValueError):
        return 0.0


FAMILY = Family(
    renderers={
        "gemma4": partial(render, empty_thought=False),
        "gemma4-small": partial(render, empty_thought=False),
        "gemma4-large": partial(render, empty_thought=True),
    },
    bos=_BOS,
    variant=_variant,
    parsers={
        "gemma4": ParserSpec(
            create=partial(_create_parser, can_think=True), thinking=True, preserve=_TAGS, call_grammar=_call_grammar
        ),
        "gemma4-no-thinking": ParserSpec(
            create=partial(_create_parser, can_think=False), preserve=_TAGS, call_grammar=_call_grammar
        ),
    },
    create_defaults={"gemma4": CreateDefaults(renderer="gemma4", parser="gemma4", parameters={"stop": ["<turn|>"]})},
)
