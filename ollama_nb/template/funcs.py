"""The functions of Go templates: Go's builtins and Ollama's own. Their only input besides the arguments is the date.

An unsuitable argument raises TemplateFailure, never another exception.
"""

from __future__ import annotations

import base64
import datetime
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.encode import go_json
from ollama_nb.template.values import (
    Encoded,
    GoStruct,
    TemplateFailure,
    equal,
    from_bytes,
    html_escape,
    is_slice,
    joined,
    js_escape,
    less,
    show,
    show_action,
    sorted_items,
    sprint,
    sprintf,
    to_bytes,
    truth,
    type_name,
)


@dataclass(frozen=True, slots=True)
class TemplateFunction:
    """A function with ``least`` to ``most`` arguments; ``most`` None: any number."""

    run: Callable[[Sequence[Any]], Any]
    least: int
    most: int | None = None

    def call(self, name: str, args: Sequence[Any]) -> Any:
        if len(args) < self.least or (self.most is not None and len(args) > self.most):
            wanted = str(self.least) if self.most == self.least else f"at least {self.least}"
            raise TemplateFailure(f"wrong number of args for {name}: want {wanted} got {len(args)}")
        try:
            return self.run(args)
        except TemplateFailure as failure:
            raise TemplateFailure(f"error calling {name}: {failure}") from None


def _eq(args: Sequence[Any]) -> bool:
    if len(args) < 2:
        raise TemplateFailure("missing argument for comparison")
    return any(equal(args[0], other) for other in args[1:])


def _len(args: Sequence[Any]) -> int:
    value = args[0]
    if isinstance(value, str):
        return len(value) if value.isascii() else len(to_bytes(value))
    if is_slice(value) or isinstance(value, Mapping):
        return len(value)
    raise TemplateFailure(f"len of type {type_name(value)}")


def _index(args: Sequence[Any]) -> Any:
    value = args[0]
    if value is None:
        raise TemplateFailure("index of untyped nil")
    for key in args[1:]:
        value = _indexed(value, key)
    return value


def _indexed(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping):
        if not isinstance(key, str):
            raise TemplateFailure(f"value has type {type_name(key)}; should be string")
        return value.get(key)
    if isinstance(value, str):
        return to_bytes(value)[_position(key, len(to_bytes(value)) - 1)]
    if is_slice(value):
        return value[_position(key, len(value) - 1)]
    raise TemplateFailure("index of nil pointer" if value is None else f"can't index item of type {type_name(value)}")


def _position(value: Any, most: int) -> int:
    if type(value) is not int:
        raise TemplateFailure(f"cannot index slice/array with type {type_name(value)}")
    if not 0 <= value <= most:
        raise TemplateFailure(f"index out of range: {value}")
    return value


def _slice(args: Sequence[Any]) -> Any:
    value, bounds = args[0], args[1:]
    if isinstance(value, str):
        if len(bounds) == 3:
            raise TemplateFailure("cannot 3-index slice a string")
        data: Any = to_bytes(value)
        return from_bytes(data[_bounds(bounds, len(data))])
    if not is_slice(value):
        raise TemplateFailure(
            "slice of untyped nil" if value is None else f"can't slice item of type {type_name(value)}"
        )
    return value[_bounds(bounds, len(value))]


def _bounds(bounds: Sequence[Any], length: int) -> slice:
    places = [_position(bound, length) for bound in bounds]
    start, stop = (places[0] if places else 0), (places[1] if len(places) > 1 else length)
    if start > stop or (len(places) > 2 and stop > places[2]):
        raise TemplateFailure(f"invalid slice index: {start} > {stop}")
    return slice(start, stop)


def _printf(args: Sequence[Any]) -> str:
    if not isinstance(args[0], str):
        raise TemplateFailure(f"wrong type for value; expected string; got {type_name(args[0])}")
    return sprintf(args[0], args[1:])


def _println(args: Sequence[Any]) -> str:
    return joined(map(show, args), " ") + "\n"


def _joined(args: Sequence[Any]) -> str:
    """Join the arguments of ``html``, ``js`` and ``urlquery``."""
    if len(args) == 1 and isinstance(args[0], str):
        return args[0]
    return sprint([show_action(value) if value is None else value for value in args])


def _call(args: Sequence[Any]) -> Any:
    raise TemplateFailure(f"non-function of type {type_name(args[0])}")


def _json(args: Sequence[Any]) -> str:
    try:
        return go_json(plain(args[0]))
    except ValueError:  # NaN or infinity: Ollama's function ignores the encoder's error
        return ""


def plain(value: Any) -> Any:
    """Convert a template value to JSON data: structs in the order of their fields, maps sorted."""
    if isinstance(value, Encoded):
        return value.json_value()
    if isinstance(value, GoStruct):
        return {key: plain(item) for key, item in value.fields.items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in sorted_items(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _today(days: int) -> Callable[[Sequence[Any]], str]:
    return lambda args: (datetime.date.today() + datetime.timedelta(days=days)).isoformat()


def _typescript(args: Sequence[Any]) -> str:
    value = args[0]
    method = value.methods.get("ToTypeScriptType") if isinstance(value, GoStruct) else None
    return method() if method else "any"


# `and` and `or` evaluate their arguments only as far as needed, so the interpreter implements them.
SHORT_CIRCUIT = frozenset({"and", "or"})

FUNCTIONS: dict[str, TemplateFunction] = {
    "not": TemplateFunction(lambda args: not truth(args[0]), 1, 1),
    "eq": TemplateFunction(_eq, 1),
    "ne": TemplateFunction(lambda args: not equal(args[0], args[1]), 2, 2),
    "lt": TemplateFunction(lambda args: less(args[0], args[1]), 2, 2),
    "le": TemplateFunction(lambda args: less(args[0], args[1]) or equal(args[0], args[1]), 2, 2),
    "gt": TemplateFunction(lambda args: not less(args[0], args[1]) and not equal(args[0], args[1]), 2, 2),
    "ge": TemplateFunction(lambda args: not less(args[0], args[1]), 2, 2),
    "len": TemplateFunction(_len, 1, 1),
    "index": TemplateFunction(_index, 1),
    "slice": TemplateFunction(_slice, 1, 4),
    "print": TemplateFunction(sprint, 0),
    "printf": TemplateFunction(_printf, 1),
    "println": TemplateFunction(_println, 0),
    "html": TemplateFunction(lambda args: html_escape(_joined(args)), 0),
    "js": TemplateFunction(lambda args: js_escape(_joined(args)), 0),
    "urlquery": TemplateFunction(lambda args: urllib.parse.quote_plus(to_bytes(_joined(args)), safe="-_.~"), 0),
    "call": TemplateFunction(_call, 1),
    "json": TemplateFunction(_json, 1, 1),
    "currentDate": TemplateFunction(_today(0), 0),
    "yesterdayDate": TemplateFunction(_today(-1), 0),
    "toTypeScriptType": TemplateFunction(_typescript, 1, 1),
}

NAMES = frozenset(FUNCTIONS) | SHORT_CIRCUIT
