"""Arguments that a model writes as bare text, given the types that the tool's schema declares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ollama_nb.api.messages import Tool
from ollama_nb.reply.objects import read_json

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def tool_name(tool: Tool) -> str:
    return str(_function(tool).get("name") or "")


class Schemas:
    """The declared arguments of the tools of one request."""

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
        """A required argument that was not given."""
        required = self._parameters.get(tool, {}).get("required")
        names = required if isinstance(required, Sequence) and not isinstance(required, str) else ()
        return next((str(name) for name in names if name not in set(given)), None)

    def types(self, tool: str, argument: str) -> tuple[str, ...]:
        """The JSON types that an argument may have; none when nothing is said about it."""
        properties = self._parameters.get(tool, {}).get("properties")
        found = properties.get(argument) if isinstance(properties, Mapping) else None
        if not isinstance(found, Mapping):
            return ()
        options = found.get("anyOf")
        if isinstance(options, Sequence) and options:
            return tuple(word for option in options if isinstance(option, Mapping) for word in _types(option))
        return _types(found)

    def typed(self, tool: str, argument: str, text: str) -> Any:
        """The value of an argument that was written between tags, one line break beside each of them dropped."""
        return typed(text.removeprefix("\n").removesuffix("\n"), self.types(tool, argument))


def typed(text: str, types: Sequence[str]) -> Any:
    """The first reading that fits: null, boolean, integer, number, array, object. Else the text itself."""
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
        if word in types and isinstance(value := read_json(text), kind):
            return value
    return text


def _function(tool: Tool) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else {}


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    word = schema.get("type")
    if isinstance(word, str):
        return (word,)
    return tuple(map(str, word)) if isinstance(word, Sequence) else ()
