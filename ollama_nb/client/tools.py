"""Python functions that a model may call: described by docstrings and type hints, called with checked arguments.

Only functions that were passed with the question run. A function's exception becomes its result: the model receives
the message and can correct its call.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from ollama_nb.client.chunks import Invocation
from ollama_nb.client.shape import AnswerShape, ShapeMismatch, resolve, shape_of
from ollama_nb.errors import BadRequest

ToolFunction = Callable[..., Any]
Functions = Iterable[ToolFunction] | Mapping[str, ToolFunction]
ToolChoiceWord = str
"""``auto``: the model decides; ``required``: it must call a function; ``none``: it must not; or the name of one that it
must call."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ANY: AnswerShape[Any] = AnswerShape({"type": "string"}, json.loads)
"""The shape of a parameter without a hint: described as a string, passed on as the model wrote it."""


class Tools:
    """The functions that a model may call. A mapping gives their names; otherwise their own names are used.

    ``choice`` applies to the first reply to a question: once the results of its calls are known, the model may answer.
    With ``parallel`` False, a reply has at most one call.

    Raises BadRequest for a function that cannot be described to a model, and for a choice that is not among them.
    """

    def __init__(self, functions: Functions, choice: ToolChoiceWord = "auto", *, parallel: bool = True) -> None:
        named = functions if isinstance(functions, Mapping) else _by_name(functions)
        self._tools = {name: _Tool(name, function) for name, function in named.items()}
        if choice not in ("auto", "none", "required", *self._tools):
            listed = ", ".join(self._tools) or "none"
            raise BadRequest(f'tool_choice: "{choice}" is not auto, none, required or one of the tools: {listed}')
        if choice == "required" and not self._tools:
            raise BadRequest("tool_choice requires a tool call, but there are no tools")
        self._choice, self._parallel = choice, parallel

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def wire(self) -> list[dict[str, Any]]:
        """The descriptions, as the field ``tools`` of a request carries them."""
        return [tool.wire for tool in self._tools.values()]

    def fields(self, *, first: bool) -> dict[str, Any]:
        """The fields of a request. ``first``: no reply to the question has called a function yet."""
        fields: dict[str, Any] = {"tools": self.wire}
        if self._choice in self._tools and first:
            fields["tool_choice"] = {"type": "function", "function": {"name": self._choice}}
        elif self._choice == "none" or (self._choice == "required" and first):
            fields["tool_choice"] = self._choice
        return fields if self._parallel else {**fields, "parallel_tool_calls": False}

    def invoke(self, call: Invocation) -> Invocation:
        """Run a call and return it with its result. An exception of the function is a result, too."""
        tool = self._tools.get(call.name)
        if tool is None:
            return _failed(call, f"there is no tool `{call.name}`; there are: {', '.join(self._tools)}")
        try:
            values = tool.check(call.arguments)
        except ValueError as error:
            return _failed(call, str(error))
        try:
            return Invocation(call.name, call.arguments, _result_text(tool.function(**values)))
        except Exception as error:
            return _failed(call, f"{type(error).__name__}: {error}")


class _Tool:
    """A function with its description and the shapes of its parameters."""

    def __init__(self, name: str, function: ToolFunction) -> None:
        self.function = function
        description, meanings = parse_docstring(function)
        self.shapes: dict[str, AnswerShape[Any]] = {}
        properties, self.required = {}, []
        hints = _hints(name, function)
        for parameter in _parameters(name, function):
            shape = _parameter_shape(name, parameter, hints)
            self.shapes[parameter.name] = shape
            properties[parameter.name] = _parameter_schema(shape, parameter, hints, meanings)
            if parameter.default is parameter.empty:
                self.required.append(parameter.name)
        parameters = {"type": "object", "properties": properties, "required": self.required}
        self.wire = {
            "type": "function",
            "function": {"name": name, "description": description, "parameters": parameters},
        }

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function's types. Raises ValueError with a message for the model."""
        if unknown := [name for name in arguments if name not in self.shapes]:
            raise ValueError(f"there is no argument `{unknown[0]}`; there are: {', '.join(self.shapes) or 'none'}")
        if missing := [name for name in self.required if name not in arguments]:
            raise ValueError(f"the argument `{missing[0]}` is missing")
        return {name: _argument(name, value, self.shapes[name]) for name, value in arguments.items()}


def _by_name(functions: Iterable[ToolFunction]) -> dict[str, ToolFunction]:
    named: dict[str, ToolFunction] = {}
    for function in functions:
        name = getattr(function, "__name__", "")
        if not callable(function) or not name.isidentifier():
            raise BadRequest(f"tools: {function!r} is not a function with a name; `{{'NAME': function}}` gives it one")
        if name in named:
            raise BadRequest(f"tools: there are two functions `{name}`")
        named[name] = function
    return named


def _parameters(name: str, function: ToolFunction) -> list[inspect.Parameter]:
    """The parameters that a call may name. Raises BadRequest for a function that cannot be called by names."""
    if not callable(function):
        raise BadRequest(f"tool `{name}`: {function!r} is not a function")
    if inspect.iscoroutinefunction(function):
        raise BadRequest(f"tool `{name}` is asynchronous; a plain function is needed")
    try:
        found = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        raise BadRequest(
            f"tool `{name}`: Python does not know its parameters; wrap it in a function of your own"
        ) from None
    if other := [one.name for one in found if one.kind is one.POSITIONAL_ONLY]:
        raise BadRequest(f"tool `{name}`: its parameter `{other[0]}` is positional-only, and calls need names")
    return [one for one in found if one.kind in _BY_NAME]


def _hints(name: str, function: ToolFunction) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError) as error:
        if isinstance(error, NameError):
            raise BadRequest(f"tool `{name}`: its type hints cannot be read: {error}") from None
        return {}  # a callable object, or a partial


def _parameter_shape(name: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> AnswerShape[Any]:
    hint = hints.get(parameter.name, Any)
    if hint is Any:
        return _ANY
    try:
        return shape_of(hint)
    except BadRequest as error:
        raise BadRequest(f"tool `{name}`, parameter `{parameter.name}`: {error.message}") from None


def _parameter_schema(
    shape: AnswerShape[Any], parameter: inspect.Parameter, hints: Mapping[str, Any], meanings: Mapping[str, str]
) -> dict[str, Any]:
    """The parameter's schema, described by the docstring or by a string in ``Annotated``."""
    schema = dict(resolve(shape.schema, shape.schema))
    if parts := shape.schema.get("$defs"):
        schema["$defs"] = parts
    if "type" not in schema and all(isinstance(choice, str) for choice in schema.get("enum") or [None]):
        schema = {"type": "string", **schema}
    annotated = [text for text in getattr(hints.get(parameter.name), "__metadata__", ()) if isinstance(text, str)]
    if meaning := meanings.get(parameter.name) or " ".join(annotated):
        schema["description"] = meaning
    return schema


def _argument(name: str, given: Any, shape: AnswerShape[Any]) -> Any:
    """The argument as the parameter's type. Models often write numbers and lists as strings."""
    try:
        return shape.parse(json.dumps(given))
    except ShapeMismatch as error:
        if isinstance(given, str):
            with suppress(ShapeMismatch):
                return shape.parse(given)
        raise ValueError(f"the argument `{name}` is wrong: {error.reason}") from None


def _result_text(result: Any) -> str:
    """A result as the model receives it: a string as it is, JSON where possible, else ``str(result)``."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(result)


def _failed(call: Invocation, why: str) -> Invocation:
    return Invocation(call.name, call.arguments, f"error: {why}", failed=True)


# Docstrings

_RULE = re.compile(r"\s*-{3,}\s*")
_SECTION = re.compile(
    r"(args|arguments|parameters|params|returns?|raises|yields?|examples?|notes?|attributes|see also|references)\s*:?",
    re.IGNORECASE,
)
_PARAMETER_SECTION = re.compile(r"(args|arguments|parameters|params)\s*:?", re.IGNORECASE)
_SPHINX_FIELD = re.compile(r":param\s+(?:[^:]*?\s)?\*{0,2}(\w+)\s*:\s*(.*)")
_GOOGLE_ENTRY = re.compile(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY_NAME = re.compile(r"\*{0,2}(\w+)\s*(?::.*)?")
_MAX_ENTRY_INDENT = 4  # spaces; a deeper line of a Google section continues the entry above


def parse_docstring(function: object) -> tuple[str, dict[str, str]]:
    """The text before the first section, and parameter → description (in Google's, NumPy's or Sphinx's style)."""
    lines = (inspect.getdoc(function) or "").splitlines()
    top: list[str] = []
    descriptions: dict[str, list[str]] = {}
    section, current = "", ""
    for at, line in enumerate(lines):
        underlined = at + 1 < len(lines) and _RULE.fullmatch(lines[at + 1])
        if field := _SPHINX_FIELD.match(line):
            section, current = "fields", field[1]
            descriptions[current] = [field[2]]
        elif line.startswith(":"):
            section, current = "other", ""
        elif _SECTION.fullmatch(line) and (underlined or line.rstrip().endswith(":")):
            known = _PARAMETER_SECTION.fullmatch(line)
            section, current = ("numpy" if underlined else "google") if known else "other", ""
        elif not section:
            top.append(line)
        elif not _RULE.fullmatch(line):
            current = _parse_section_line(line, section, current, descriptions)
    return "\n".join(top).strip(), {
        name: " ".join(filter(None, map(str.strip, parts))) for name, parts in descriptions.items()
    }


def _parse_section_line(line: str, section: str, current: str, descriptions: dict[str, list[str]]) -> str:
    """Take one line of a section and return the parameter that it describes."""
    indent = len(line) - len(line.lstrip())
    if section == "numpy" and line.strip() and not indent:
        name = _NUMPY_NAME.fullmatch(line.strip())
        current = name[1] if name else ""
        descriptions.setdefault(current, [])
    elif section == "google" and (entry := _GOOGLE_ENTRY.fullmatch(line)) and indent <= _MAX_ENTRY_INDENT:
        current = entry[1]
        descriptions[current] = [entry[2]]
    elif current:
        descriptions[current].append(line)
    return current
