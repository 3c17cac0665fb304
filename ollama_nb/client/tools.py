"""Python functions that a model may call: described by their docstring and type hints, called with checked values.

Rule: a function runs only if it was handed over for the very question. What goes wrong in it is told to the model.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from ollama_nb.client import docstring
from ollama_nb.client.answer import Chunks
from ollama_nb.client.shape import Shape, resolved, shape_of
from ollama_nb.errors import BadRequest, Cancelled, OllamaError

MOST_ROUNDS = 5
"""How many times in a row what a model calls is called."""

Function = Callable[..., Any]
Functions = Iterable[Function] | Mapping[str, Function]
Message = dict[str, Any]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_ANY: Shape[Any] = Shape({"type": "string"}, json.loads)
"""Of a parameter without a hint: described as a text, taken as it comes."""


@dataclass(frozen=True, slots=True)
class Called:
    """One call. ``content`` is what the model is told of it, None while it runs; ``failed``: it tells of an error."""

    name: str
    arguments: Mapping[str, Any]
    content: str | None = None
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


class _Tool:
    """A function with its description and the shapes of its parameters."""

    def __init__(self, name: str, function: Function) -> None:
        self.function = function
        description, meanings = docstring.read(function)
        self.shapes: dict[str, Shape[Any]] = {}
        properties, self.required = {}, []
        hints = _hints(name, function)
        for parameter in _parameters(name, function):
            shape = _shape(name, parameter, hints)
            self.shapes[parameter.name] = shape
            properties[parameter.name] = _described(shape, parameter, hints, meanings)
            if parameter.default is parameter.empty:
                self.required.append(parameter.name)
        parameters = {"type": "object", "properties": properties, "required": self.required}
        told = {"name": name, "description": description, "parameters": parameters}
        self.wire = {"type": "function", "function": told}

    def values(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ValueError for arguments that the function does not take, in words for the model."""
        if unknown := [name for name in arguments if name not in self.shapes]:
            raise ValueError(f"there is no argument `{unknown[0]}`; there are: {', '.join(self.shapes) or 'none'}")
        if missing := [name for name in self.required if name not in arguments]:
            raise ValueError(f"the argument `{missing[0]}` is missing")
        return {name: _value(name, value, self.shapes[name]) for name, value in arguments.items()}


class Tools:
    """What a model may call. A mapping says under which names; else they are the functions' own.

    Raises BadRequest for what cannot be described to a model.
    """

    def __init__(self, functions: Functions) -> None:
        named = functions if isinstance(functions, Mapping) else _by_name(functions)
        self._tools = {name: _Tool(name, function) for name, function in named.items()}

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def wire(self) -> list[dict[str, Any]]:
        """As requests carry them."""
        return [tool.wire for tool in self._tools.values()]

    def call(self, call: Called) -> Called:
        """The same call with its result. An exception of the function is its result, too."""
        tool = self._tools.get(call.name)
        if tool is None:
            return _failed(call, f"there is no tool `{call.name}`; there are: {', '.join(self._tools)}")
        try:
            values = tool.values(call.arguments)
        except ValueError as error:
            return _failed(call, str(error))
        try:
            return Called(call.name, call.arguments, _text(tool.function(**values)))
        except Exception as error:
            return _failed(call, f"{type(error).__name__}: {error}")


class Rounds(Iterator[Mapping[str, Any]]):
    """Chunks of all replies up to the one that calls nothing; ``{"called": Called}`` before and after each call.

    ``ask`` starts a reply to the question and what was ``said`` after it: calls and their results. Raises OllamaError
    when the model wants to call something once more after ``MOST_ROUNDS`` rounds.
    """

    def __init__(self, ask: Callable[[list[Message]], Chunks], tools: Tools) -> None:
        self.said: list[Message] = []
        self._ask, self._tools = ask, tools
        self._reply: Chunks | None = None
        self._closed = False
        self._chunks = self._all()

    def __next__(self) -> Mapping[str, Any]:
        return next(self._chunks)

    def close(self) -> None:
        """Cancel what is left, from any thread; a function that runs is not stopped."""
        self._closed = True
        if self._reply is not None:
            self._reply.close()

    def _all(self) -> Iterator[Mapping[str, Any]]:
        for left in range(MOST_ROUNDS, -1, -1):
            heard: Message = {"role": "assistant", "content": ""}
            self._reply = self._ask([*self.said])
            with closing(self._reply):
                yield from self._heard(heard)
            if "tool_calls" not in heard:
                return
            if left:
                results: list[Message] = []
                for wanted in heard["tool_calls"]:
                    yield from self._called(wanted, results)
                self.said += [heard, *results]
        raise OllamaError(f"the model called tools {MOST_ROUNDS + 1} times in a row and gave no answer")

    def _heard(self, message: Message) -> Iterator[Mapping[str, Any]]:
        """One reply, gathered into ``message``. Only the last one is marked as done."""
        assert self._reply is not None
        for chunk in self._reply:
            part = chunk.get("message") or {}
            for name in ("content", "thinking", "tool_calls"):
                if piece := part.get(name):
                    message[name] = message[name] + piece if name in message else piece
            yield {**chunk, "done": False} if "tool_calls" in message else chunk

    def _called(self, wanted: Mapping[str, Any], results: list[Message]) -> Iterator[Mapping[str, Any]]:
        function = wanted.get("function") or {}
        call = Called(str(function.get("name", "")), function.get("arguments") or {})
        yield {"called": call}
        if self._closed:
            raise Cancelled("the answer was cancelled")
        call = self._tools.call(call)
        result = {"role": "tool", "content": call.content, "tool_name": call.name}
        results.append(result | ({"tool_call_id": wanted["id"]} if wanted.get("id") else {}))
        yield {"called": call}


def _by_name(functions: Iterable[Function]) -> dict[str, Function]:
    named: dict[str, Function] = {}
    for function in functions:
        name = getattr(function, "__name__", "")
        if not callable(function) or not name.isidentifier():
            raise BadRequest(f"tools: {function!r} is no function with a name; `{{'NAME': function}}` gives it one")
        if name in named:
            raise BadRequest(f"tools: there are two functions `{name}`")
        named[name] = function
    return named


def _parameters(name: str, function: Function) -> list[inspect.Parameter]:
    if not callable(function):
        raise BadRequest(f"tool `{name}`: {function!r} is no function")
    if inspect.iscoroutinefunction(function):
        raise BadRequest(f"tool `{name}` is asynchronous; a plain function is needed")
    try:
        found = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        raise BadRequest(
            f"tool `{name}`: Python does not know its parameters; wrap it in a function of yours"
        ) from None
    if other := [one.name for one in found if one.kind is one.POSITIONAL_ONLY]:
        raise BadRequest(f"tool `{name}`: its parameter `{other[0]}` has no name that can be used in a call")
    return [one for one in found if one.kind in _NAMED]


def _hints(name: str, function: Function) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError) as error:
        if isinstance(error, NameError):
            raise BadRequest(f"tool `{name}`: its type hints cannot be read: {error}") from None
        return {}  # a callable object, or a partial


def _shape(name: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Shape[Any]:
    hint = hints.get(parameter.name, Any)
    if hint is Any:
        return _ANY
    try:
        return shape_of(hint)
    except BadRequest as error:
        raise BadRequest(f"tool `{name}`, parameter `{parameter.name}`: {error.message}") from None


def _described(
    shape: Shape[Any], parameter: inspect.Parameter, hints: Mapping[str, Any], meanings: Mapping[str, str]
) -> dict[str, Any]:
    """The parameter's schema, with what its docstring, or a text in ``Annotated``, says about it."""
    schema = dict(resolved(shape.schema, shape.schema))
    if parts := shape.schema.get("$defs"):
        schema["$defs"] = parts
    if "type" not in schema and all(isinstance(choice, str) for choice in schema.get("enum") or [None]):
        schema = {"type": "string", **schema}
    noted = [text for text in getattr(hints.get(parameter.name), "__metadata__", ()) if isinstance(text, str)]
    if meaning := meanings.get(parameter.name) or " ".join(noted):
        schema["description"] = meaning
    return schema


def _value(name: str, given: Any, shape: Shape[Any]) -> Any:
    """The argument as the function wants it; models like to write numbers and lists as texts."""
    try:
        return shape.read(json.dumps(given))
    except OllamaError as error:
        if isinstance(given, str):
            with suppress(OllamaError):
                return shape.read(given)
        why = error.message.partition(": ")[2]
        raise ValueError(f"the argument `{name}` is wrong: {why}") from None


def _text(result: Any) -> str:
    """A result as a model reads it: a text as it is, JSON where it can be, else what ``str`` makes of it."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(result)


def _failed(call: Called, why: str) -> Called:
    return Called(call.name, call.arguments, f"error: {why}", failed=True)
