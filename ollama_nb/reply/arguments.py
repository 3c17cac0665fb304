"""Arguments of tool calls: JSON as models write it, and text converted to the types of a tool's schema.

JSON is parsed leniently, but every value that is returned can be encoded as JSON and as UTF-8 again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ollama_nb.api.messages import Tool


class ObjectEnd:
    """Finds the closing brace of a JSON object in text that begins after the opening one and may arrive in pieces."""

    def __init__(self) -> None:
        self._depth = 1
        self._in_string = self._escaped = False

    def find(self, text: str, at: int = 0) -> int:
        """Return the index after the closing brace, or -1 if it is not in this piece."""
        if self._escaped:
            if at >= len(text):
                return -1
            self._escaped, at = False, at + 1
        while match := (_STRING_MARK if self._in_string else _OBJECT_MARK).search(text, at):
            mark, at = match[0], match.end()
            if mark == "\\":
                self._escaped, at = at >= len(text), at + 1
            elif mark == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    return at
        return -1


_STRING_MARK = re.compile(r'["\\]')
_OBJECT_MARK = re.compile(r'["{}]')


def objects_in(text: str) -> list[str]:
    """Return the outermost braced parts of a text, without an unclosed last one."""
    found: list[str] = []
    start = text.find("{")
    while start >= 0:
        end = ObjectEnd().find(text, start + 1)
        if end < 0:
            break
        found.append(text[start:end])
        start = text.find("{", end)
    return found


def as_object(value: Any) -> dict[str, Any] | None:
    """Return arguments given as an object, as a string of JSON, or as null (no arguments); else None."""
    if isinstance(value, str):
        return parse_object(value)
    return {} if value is None else value if isinstance(value, dict) else None


def parse_object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; None if the text is not one."""
    value = parse_json(text)
    return value if isinstance(value, dict) else None


def parse_json(text: str) -> Any:
    """Parse a JSON value; None if the text is not valid JSON. Strings may contain line breaks, as models write them."""
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return replace_lone_surrogates(value) if "\\ud" in text.lower() else value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return number


def replace_lone_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which JSON can represent and UTF-8 cannot, by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {replace_lone_surrogates(key): replace_lone_surrogates(item) for key, item in value.items()}
    return [replace_lone_surrogates(item) for item in value] if isinstance(value, list) else value


_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def tool_name(tool: Tool) -> str:
    return str(_function(tool).get("name") or "")


class Schemas:
    """The argument schemas of the tools of one request."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            name, parameters = tool_name(tool), _function(tool).get("parameters")
            if name and name not in self._parameters:
                self._parameters[name] = parameters if isinstance(parameters, Mapping) else {}

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def names(self) -> tuple[str, ...]:
        return tuple(self._parameters)

    def arguments(self, tool: str) -> tuple[str, ...]:
        properties = self._parameters.get(tool, {}).get("properties")
        return tuple(properties) if isinstance(properties, Mapping) else ()

    def missing(self, tool: str, given: Iterable[str]) -> str | None:
        """Return a required argument that is not among ``given``, or None."""
        required = self._parameters.get(tool, {}).get("required")
        names = required if isinstance(required, Sequence) and not isinstance(required, str) else ()
        return next((str(name) for name in names if name not in set(given)), None)

    def types(self, tool: str, argument: str) -> tuple[str, ...]:
        """Return the JSON types that an argument may have; empty if its schema does not tell."""
        parameters = self._parameters.get(tool, {})
        properties = parameters.get("properties")
        return property_types(properties.get(argument) if isinstance(properties, Mapping) else None, parameters)

    def typed(self, tool: str, argument: str, text: str) -> Any:
        """Convert an argument that was written between tags; one line break next to each tag is dropped."""
        return typed(text.removeprefix("\n").removesuffix("\n"), self.types(tool, argument))


def typed(text: str, types: Sequence[str]) -> Any:
    """Convert text to the first type that fits: null, boolean, integer, number, array, object. Else return the text."""
    lower = text.lower()
    if lower == "null":
        return None
    if "boolean" in types and (lower in ("true", "false") or len(types) == 1):
        return lower == "true"
    if "integer" in types and _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    if "number" in types and _NUMBER.fullmatch(text) and abs(number := float(text)) != float("inf"):
        return int(number) if number == int(number) else number
    for word, kind in (("array", list), ("object", dict)):
        if word in types and isinstance(value := parse_json(text), kind):
            return value
    return text


def _function(tool: Tool) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else {}


def property_types(schema: Any, root: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the JSON types that a schema allows; empty if it does not tell. ``root`` has the definitions."""
    return tuple(dict.fromkeys(word for branch in branches(schema, root) for word in _types(branch)))


def branches(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """Return the schemas of which a value matches one: the parts of ``anyOf``, with references resolved."""
    if not isinstance(schema, Mapping) or depth > _MAX_REFERENCES:
        return []
    shared = {key: root[key] for key in _DEFINITIONS if key in root}
    if "$ref" in schema:
        return branches(_resolve(schema["$ref"], root), root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), Sequence) and options:
            return [branch for option in options for branch in branches(option, root, depth + 1)]
    parts = schema.get("allOf")
    if isinstance(parts, Sequence) and len(parts) == 1 and "type" not in schema:
        return branches(parts[0], root, depth + 1)
    return [{**shared, **schema}]


_DEFINITIONS = ("$defs", "definitions")
_MAX_REFERENCES = 16  # that follow one another


def _resolve(reference: Any, root: Any) -> Any:
    """Return the place in ``root`` that a reference such as ``#/$defs/name`` names; None if it does not exist."""
    for step in str(reference).split("/")[1:]:
        root = root.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    word = schema.get("type")
    if isinstance(word, str):
        return (word,)
    if isinstance(word, Sequence):
        return tuple(map(str, word))
    options = schema.get("enum", [schema["const"]] if "const" in schema else ())
    return tuple(_type_of(option) for option in options) if isinstance(options, Sequence) else ()


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
    return "array" if isinstance(value, Sequence) else "object"
