"""Grammars of tool calls: what a reply must look like to be read as calls of given tools.

A grammar is a tree of parts. A model family describes its notation with them (``ParserSpec.call_grammar``), and the
engine compiles the tree into a constraint (``engine/call_constraint.py``). The tree is sent to the runner as text, in
the field ``format`` of a completion request.

Notations whose arguments are one JSON object use ``JsonValue`` for it. In notations that write each argument by itself,
``members`` lists the arguments of a tool in the order of its schema, and ``tagged_value`` or ``marked_value`` writes
their values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ollama_nb.api.messages import Tool
from ollama_nb.errors import BadRequest
from ollama_nb.reply.arguments import branches, property_types, tool_name, typed
from ollama_nb.reply.notations import END_KEY, END_VALUE, KEY, VALUE

PREFIX = "call:"  # of a grammar's text in the field ``format``
MAX_CALLS = 16  # in one reply; a small model might continue forever
_MAX_NUMBER = 10**15  # limits of numbers without limits in their schema, so that every parser reads them exactly
_STEP = 1e-10  # numbers are multiples of it, so that their digits end
_FREE_LEVELS = 16  # objects and arrays within one another, in values without a schema


class Markup(msgspec.Struct, frozen=True, tag="markup"):
    """Literal text, in which the names of special tokens stand for these tokens."""

    text: str


class Verbatim(msgspec.Struct, frozen=True, tag="text"):
    """Literal text without special tokens."""

    text: str


class JsonValue(msgspec.Struct, frozen=True, tag="json"):
    """A JSON value that matches ``schema``, a JSON Schema as text. ``tool`` and ``path`` (``$…``) are for errors."""

    schema: str
    tool: str
    path: str = "$"


class FreeText(msgspec.Struct, frozen=True, tag="free", omit_defaults=True):
    """Any text, up to and including ``closer``. It contains neither ``closer`` nor one of ``without``.

    ``pattern`` is a regular expression that the whole text matches, ``excluded`` one that it does not match.
    """

    closer: str
    without: tuple[str, ...] = ()
    pattern: str = ""
    excluded: str = ""


class Series(msgspec.Struct, frozen=True, tag="series"):
    """Parts that follow one another."""

    parts: tuple[Part, ...]


class OneOf(msgspec.Struct, frozen=True, tag="one of"):
    """Exactly one of several parts."""

    parts: tuple[Part, ...]


class Repeated(msgspec.Struct, frozen=True, tag="repeated"):
    """A part one to ``most`` times, with ``separator`` in between."""

    part: Part
    separator: Part
    most: int = MAX_CALLS


class Members(msgspec.Struct, frozen=True, tag="members"):
    """Named arguments in a fixed order, with ``separator`` in between; those not ``required`` may be left out."""

    parts: tuple[Part, ...]
    required: tuple[bool, ...]
    separator: str = ""


Part = Markup | Verbatim | JsonValue | FreeText | Series | OneOf | Repeated | Members


class CallGrammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """The grammar of a whole reply.

    ``quoted``: all free text is inside JSON strings. None of the texts ``unquotable`` may then occur in a string,
    because the reply parser would end the call there.
    """

    body: Part
    quoted: bool = False
    unquotable: tuple[str, ...] = ()


def encode(grammar: CallGrammar) -> str:
    return PREFIX + msgspec.json.encode(grammar).decode()


def decode(text: str) -> CallGrammar:
    """``text`` lacks the prefix."""
    return msgspec.json.decode(text, type=CallGrammar)


# What families build their grammars from


def series(*parts: Part | str) -> Series:
    """Parts in order; a string is markup."""
    return Series(tuple(Markup(part) if isinstance(part, str) else part for part in parts))


def calls(tools: Iterable[Tool], call: Callable[[Tool], Part], *, parallel: bool, separator: str = "") -> Part:
    """A call of one of the tools, or several of them if ``parallel``."""
    one = OneOf(tuple(call(tool) for tool in tools))
    return Repeated(one, Markup(separator)) if parallel else one


def json_arguments(tool: Tool) -> JsonValue:
    """The arguments of a tool as a JSON object. Raises BadRequest if they are not an object."""
    return JsonValue(json.dumps(_bounded(_parameters(tool)), ensure_ascii=False), tool_name(tool))


def json_string(text: str) -> Verbatim:
    return Verbatim(json.dumps(text, ensure_ascii=False))


def json_call(tool: Tool, name_key: str = "name", arguments_key: str = "arguments", opening: str = "{") -> Series:
    """``{"name": …, "arguments": …}``."""
    return series(
        Verbatim(f'{opening}"{name_key}": '),
        json_string(tool_name(tool)),
        Verbatim(f', "{arguments_key}": '),
        json_arguments(tool),
        Verbatim("}"),
    )


PLAIN_NAME = r'[^\s<>{}\[\]":,]+(?: [^\s<>{}\[\]":,]+)*'


def plain_name(name: str, what: str = "tool", pattern: str = PLAIN_NAME) -> Verbatim:
    """The name of a tool or of an argument, for notations without quotes around it.

    Raises BadRequest for a name that such a notation cannot express.
    """
    if not re.fullmatch(pattern, name):
        shown = json.dumps(name, ensure_ascii=False)
        raise BadRequest(
            f"this model's notation of tool calls cannot express the name {shown} of the {what}: use letters, digits "
            "and underscores"
        )
    return Verbatim(name)


def members(tool: Tool, member: Callable[[str, JsonValue], Part], separator: str = "") -> Members:
    """The arguments of a tool, each written by ``member`` from its name and the schema of its value.

    Raises BadRequest for a schema that does not say which arguments there are.
    """
    schema = _parameters(tool)
    name = tool_name(tool)
    for key in schema:
        if key in _NOT_BY_MEMBER and not (key == "additionalProperties" and isinstance(schema[key], bool)):
            raise refused(name, key, "$")
    properties = schema.get("properties") or {}
    if not isinstance(properties, Mapping):
        raise refused(name, "properties", "$")
    required = schema.get("required") or ()
    if missing := [key for key in required if key not in properties]:
        raise BadRequest(f'tool "{name}": the required argument "{missing[0]}" is not among its properties')
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    values = {
        key: JsonValue(json.dumps(_bounded(_joined(value, shared)), ensure_ascii=False), name, f"$.properties.{key}")
        for key, value in properties.items()
    }
    return Members(
        tuple(member(key, value) for key, value in values.items()),
        tuple(key in required for key in values),
        separator,
    )


def refused(tool: str, key: str, path: str) -> BadRequest:
    return BadRequest(f'tool "{tool}": unsupported schema keyword "{key}" at {path}')


_NOT_BY_MEMBER = frozenset(
    {
        "$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "propertyNames", "minProperties",
        "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "enum",
        "const", "additionalProperties",
    }
)  # fmt: skip


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; an empty one becomes that of an empty object. Raises BadRequest."""
    found = (tool.get("function") or {}).get("parameters") or {}
    if found.get("type", "object") != "object":
        raise BadRequest(f'tool "{tool_name(tool)}": the "type" of its parameters must be "object"')
    schema = {**found, "type": "object"}
    if len(schema) == 1 or schema.get("properties") == {}:
        schema.setdefault("additionalProperties", False)
    return schema


def _joined(schema: Any, shared: Mapping[str, Any]) -> Any:
    """The schema of a property with the definitions that it may refer to."""
    if schema is True or schema is None:
        schema = {}
    return {**shared, **schema} if isinstance(schema, Mapping) else schema


def _bounded(schema: Any) -> Any:
    """A copy of a schema with limits for all numbers that have none."""
    if isinstance(schema, list):
        return [_bounded(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: value if key in _DATA else _bounded(value) for key, value in schema.items()}
    kind = schema.get("type")
    if {"number", "integer"}.intersection([kind] if isinstance(kind, str) else kind if isinstance(kind, list) else ()):
        if "minimum" not in found and "exclusiveMinimum" not in found:
            found["minimum"] = min(-_MAX_NUMBER, *_numbers(found, "maximum", "exclusiveMaximum"))
        if "maximum" not in found and "exclusiveMaximum" not in found:
            found["maximum"] = max(_MAX_NUMBER, *_numbers(found, "minimum", "exclusiveMinimum"))
        if constants(found) is None and _contains_steps(found):
            found.setdefault("multipleOf", _STEP)
    return found


def _contains_steps(schema: Mapping[str, Any]) -> bool:
    """Whether some multiples of the step are certainly within the bounds of a number."""
    least = max(_numbers(schema, "minimum", "exclusiveMinimum")[1:], default=-_MAX_NUMBER)
    most = min(_numbers(schema, "maximum", "exclusiveMaximum")[1:], default=_MAX_NUMBER)
    return most - least >= 3 * _STEP


_DATA = frozenset({"enum", "const", "default", "examples", "required"})  # keywords whose values are not schemas


def _numbers(schema: Mapping[str, Any], *keys: str) -> list[float]:
    return [0, *(schema[key] for key in keys if isinstance(schema.get(key), int | float))]


def python_call(tool: Tool, separator: str) -> Series:
    """``name(key=…, …)`` with values in JSON, which is Python's syntax as parsers of such calls read it."""

    def member(key: str, value: JsonValue) -> Series:
        return series(plain_name(key, "argument", _PYTHON_NAME), "=", value)

    name = plain_name(tool_name(tool), pattern=_PYTHON_NAME)
    return series(name, "(", members(tool, member, separator), ")")


_PYTHON_NAME = r"\w[\w.\-]*"


def tagged_call(tool: Tool, opening: str, closing: str, line: str = "") -> Series:
    """``name<arg_key>key</arg_key><arg_value>value</arg_value>`` between two tags, with ``line`` after each element."""
    without = (opening, closing, KEY, END_KEY, VALUE, END_VALUE)

    def member(key: str, value: JsonValue) -> Series:
        text = tagged_value(value, END_VALUE, without, strips_lines=True)
        return series(KEY, plain_name(key, "argument"), f"{END_KEY}{line}{VALUE}", text, line)

    return series(opening, plain_name(tool_name(tool)), line, members(tool, member), closing)


def brace_call(tool: Tool, mark: str, without: Sequence[str]) -> Series:
    """``call:name{key:value,…}`` with strings between two ``mark``; nested values are JSON."""

    def member(key: str, value: JsonValue) -> Series:
        return series(plain_name(key, "argument"), ":", marked_value(value, mark, without))

    return series("call:", plain_name(tool_name(tool)), "{", members(tool, member, ","), "}")


# Values between tags: strings as they are, everything else as JSON


def tagged_value(value: JsonValue, closer: str, without: Sequence[str], *, strips_lines: bool = False) -> Part:
    """An argument between tags, up to and including ``closer``; the parser converts its text by ``typed``.

    A string contains none of the texts ``without``. ``strips_lines``: the parser drops one line break on both sides of
    the value. Raises BadRequest for a schema that such text cannot follow.
    """
    schema = json.loads(value.schema)
    tags = _Tags(value, closer, tuple(without), strips_lines, property_types(schema, schema))
    parts = [part for branch in branches(schema, schema) for part in tags.alternatives(branch)]
    return OneOf(tuple(dict.fromkeys(parts)))


def marked_value(value: JsonValue, mark: str, without: Sequence[str]) -> Part:
    """An argument whose strings are between two ``mark``; everything else is JSON. Raises BadRequest."""
    schema = json.loads(value.schema)
    writer = _Tags(value, mark, tuple(without), strips_lines=False, types=("string",))
    parts: list[Part] = []
    for branch in branches(schema, schema):
        types = set(property_types(branch, branch))
        if (options := constants(branch)) is not None:
            texts = [option for option in options if isinstance(option, str) and not writer.clashes(option)]
            parts += [series(mark, Verbatim(text), mark) for text in texts]
            if rest := [option for option in options if not isinstance(option, str)]:
                parts.append(writer.json({"enum": rest}))
            continue
        if not types or "string" in types:
            parts.append(series(mark, writer.text(branch)))
        if others := sorted((types or {"boolean", "integer", "array", "object"}) - {"string"}):
            parts.append(writer.json({**branch, "type": others}))
    if not parts:
        raise writer.refused("enum")
    return OneOf(tuple(dict.fromkeys(parts)))


class _Tags(NamedTuple):
    """How the values of one argument are written. ``types``: all JSON types that it may have."""

    value: JsonValue
    closer: str
    without: tuple[str, ...]
    strips_lines: bool
    types: tuple[str, ...]

    def alternatives(self, schema: Mapping[str, Any]) -> list[Part]:
        """The texts between tags that match one branch of the schema."""
        if (options := constants(schema)) is not None:
            texts = [text for option in options if (text := self._constant(option)) is not None]
            if not texts:
                raise self.refused("const" if "const" in schema else "enum")
            return [series(OneOf(tuple(map(Verbatim, texts))), self.closer)]
        types = set(property_types(schema, schema))
        found: list[Part] = [] if types and "string" not in types else [self.text(schema)]
        if "null" in types:
            found.append(series(Verbatim("null"), self.closer))
        if others := sorted(types - {"string", "null"}):
            found.append(series(self.json({**schema, "type": others}), self.closer))
        return found

    def _constant(self, option: Any) -> str | None:
        """How a constant is written; None if the parser would take its text for something else."""
        text = option if isinstance(option, str) else json.dumps(option, ensure_ascii=False)
        if self.clashes(text) or (self.strips_lines and text != text.strip("\n")):
            return None
        back = typed(text, self.types)
        return text if type(back) is type(option) and back == option else None

    def clashes(self, text: str) -> bool:
        return any(mark in text for mark in (self.closer, *self.without))

    def json(self, schema: Mapping[str, Any]) -> JsonValue:
        """A value that is not a string."""
        kept = {key: item for key, item in schema.items() if key not in _OF_STRINGS}
        kept = without_texts(kept, [mark for mark in self.without if mark.startswith("<")])
        return JsonValue(json.dumps(kept, ensure_ascii=False), self.value.tool, self.value.path)

    def text(self, schema: Mapping[str, Any]) -> FreeText:
        """A string that is not taken for a value of another type."""
        excluded = ["(?i:null)"]
        if set(self.types) - {"string", "null"}:
            excluded.append(r"(?i:true|false)|\s*[-+.0-9\[{](?s:.*)")
        if self.strips_lines:
            excluded.append(r"\n(?s:.*)|(?s:.*)\n")
        return FreeText(self.closer, self.without, self._pattern(schema), "|".join(excluded))

    def _pattern(self, schema: Mapping[str, Any]) -> str:
        """The regular expression of a string; empty if any text matches."""
        wanted = [key for key in ("pattern", "format", "minLength", "maxLength") if key in schema]
        if not wanted:
            return ""
        if len(wanted) > 1 and set(wanted) != {"minLength", "maxLength"}:
            raise self.refused(wanted[1])
        match wanted[0]:
            case "pattern":
                if (pattern := _whole_pattern(str(schema["pattern"]))) is None:
                    raise self.refused("pattern")
                return pattern
            case "format":
                if schema["format"] not in _FORMATS:
                    raise self.refused("format")
                return _FORMATS[schema["format"]]
        return f"(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})"

    def refused(self, key: str) -> BadRequest:
        return refused(self.value.tool, key, self.value.path)


def constants(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values of ``const`` or ``enum``; None for a schema with neither."""
    if "const" in schema:
        return [schema["const"]]
    options = schema.get("enum")
    return options if isinstance(options, list) else None


# Strings in JSON values between tags must not contain the tags


def without_texts(schema: Any, texts: Sequence[str]) -> dict[str, Any]:
    """A schema of the same values, without those in which a string contains one of ``texts``.

    Each text begins with ``<`` and contains no other one. Names of properties that the schema does not list are free.
    """
    any_value = _free_value(0)
    pattern = {"pattern": not_containing(texts)}

    def narrowed(part: Any) -> Any:
        if part is True or (isinstance(part, Mapping) and _SAYS_WHAT.isdisjoint(part)):
            return any_value
        if not isinstance(part, Mapping):
            return part
        found = dict(part)
        for key in ("properties", "patternProperties", "$defs", "definitions"):
            if isinstance(part.get(key), Mapping):
                found[key] = {name: narrowed(inner) for name, inner in part[key].items()}
        for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            if isinstance(part.get(key), list):
                found[key] = [narrowed(inner) for inner in part[key]]
        for key in ("items", "additionalProperties"):
            if key in part:
                found[key] = narrowed(part[key])
        if isinstance(part.get("enum"), list):
            found["enum"] = [one for one in part["enum"] if not _contains(one, texts)]
        kind = part.get("type")
        kinds = [kind] if isinstance(kind, str) else kind if isinstance(kind, list) else []
        if "string" in kinds and constants(part) is None:
            found["allOf"] = [*found.get("allOf", []), pattern]
        if "array" in kinds and "items" not in part and "prefixItems" not in part:
            found["items"] = any_value
        if "object" in kinds and not part.get("properties") and _OTHERS.isdisjoint(part):
            found["additionalProperties"] = any_value
        return found

    result: dict[str, Any] = narrowed(schema)
    if _ANY not in json.dumps(result):
        return result
    scalars: list[dict[str, Any]] = [{"type": "string", **pattern}, {"type": "boolean"}, {"type": "null"}]
    scalars.append(_bounded({"type": "number"}))
    free: dict[str, Any] = {f"{_ANY}_{_FREE_LEVELS}": {"anyOf": scalars}}
    for level in range(_FREE_LEVELS):
        inner = _free_value(level + 1)
        nested = [{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}]
        free[f"{_ANY}_{level}"] = {"anyOf": [*scalars, *nested]}
    return {**result, "$defs": {**result.get("$defs", {}), **free}}


def _free_value(level: int) -> dict[str, str]:
    """The schema of any value within ``level`` others that have no schema."""
    return {"$ref": f"#/$defs/{_ANY}_{level}"}


_ANY = "any_value"
_SAYS_WHAT = frozenset({"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "not", "properties", "items"})
_OTHERS = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"})


def _contains(value: Any, texts: Sequence[str]) -> bool:
    written = json.dumps(value, ensure_ascii=False)
    return any(text in written for text in texts)


def not_containing(texts: Sequence[str]) -> str:
    """A pattern for texts that contain none of ``texts``, which all begin with ``<`` and contain no other one."""
    rests = [text[1:] for text in texts]
    begun = sorted({rest[:length] for rest in rests for length in range(len(rest))})
    prefixes = "|".join(map(re.escape, begun))
    others = "|".join(f"{re.escape(prefix)}[^<{_next_chars(prefix, rests)}]" for prefix in begun)
    again = f"<(?:(?:{prefixes})<)*"
    return f"^(?:[^<]|{again}(?:{others}))*(?:{again}(?:{prefixes}))?$"


def _next_chars(prefix: str, rests: Sequence[str]) -> str:
    """The characters with which ``prefix`` comes nearer to one of ``rests``, for a set of a pattern."""
    chars = sorted({rest[len(prefix)] for rest in rests if rest.startswith(prefix)})
    return "".join(f"\\{char}" if char in "\\]^-[&~" else char for char in chars)


_OF_STRINGS = frozenset({"minLength", "maxLength", "pattern", "format"})
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[A-Za-z0-9_+-]{1,32}(\.[A-Za-z0-9_+-]{1,32}){0,4}@[A-Za-z0-9]{1,32}(\.[A-Za-z0-9]{1,32}){1,4}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"
_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def _whole_pattern(pattern: str) -> str | None:
    """A pattern that matches a whole text where ``pattern`` matches a part of it.

    None if it is not valid, looks around or back, or has an anchor elsewhere than at the ends of all its alternatives.
    """
    try:
        re.compile(pattern)
    except re.error:
        return None
    if re.search(r"\(\?<?[=!]|\\[1-9]", pattern):
        return None
    bare = _ATOM.sub("x", pattern)
    inner = bare.removeprefix("^").removesuffix("$")
    if re.search(r"[$^]", inner) or (inner != bare and "|" in re.sub(r"\([^()]*\)", "", inner)):
        return None
    begins, ends = bare.startswith("^"), bare.endswith("$")
    inner = pattern.removeprefix("^")
    inner = inner.removesuffix("$") if ends else inner
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"
