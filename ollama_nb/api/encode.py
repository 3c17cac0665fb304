"""JSON, numbers and quoted text exactly as Go writes them, so that digests and replies equal Ollama's."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ollama_nb.api.messages import Message, ToolCall

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_HTML_ONLY = "<>&\u2028\u2029"
_SHORT = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def go_json(value: Any, *, sort_keys: bool = False) -> str:
    """Compact JSON. Mappings keep their order; ``sort_keys`` sorts them, as Go does for maps. Floats must be finite."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return go_string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return go_float(value)
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: str(key).encode("utf-8", "surrogatepass")) if sort_keys else value
        inner = ",".join(f"{go_string(str(key))}:{go_json(value[key], sort_keys=sort_keys)}" for key in keys)
        return "{" + inner + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(go_json(item, sort_keys=sort_keys) for item in value) + "]"
    raise TypeError(f"not JSON: {type(value).__name__}")


def go_string(text: str) -> str:
    """A JSON string with Go's HTML-safe escapes; lone surrogates become U+FFFD."""
    quoted = json.dumps(text, ensure_ascii=False)
    if any(mark in quoted for mark in _HTML_ONLY):
        quoted = escaped(quoted)
    return quoted if quoted.isascii() else _LONE_SURROGATE.sub("\ufffd", quoted)


def escaped(json_text: str) -> str:
    """JSON text with Go's HTML-safe escapes added."""
    return json_text.translate(_ESCAPES)


def go_float(number: float) -> str:
    """The shortest text of a float: with an exponent below 1e-6 and from 1e21; whole numbers without a point."""
    if not math.isfinite(number):
        raise ValueError("JSON has no NaN or Infinity")
    if number == 0:
        return "-0" if math.copysign(1.0, number) < 0 else "0"
    if 1e-6 <= abs(number) < 1e21:
        return f"{Decimal(repr(number)):f}".removesuffix(".0")
    mantissa, _, exponent = repr(number).partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"


def go_quote(text: str, mark: str = '"', *, ascii_only: bool = False) -> str:
    """A Go string literal as ``%q`` prints it; with the mark ``'`` a character literal."""
    return mark + "".join(_quoted(letter, mark, ascii_only) for letter in text) + mark


def _quoted(letter: str, mark: str, ascii_only: bool) -> str:
    if letter == mark:
        return "\\" + letter
    if letter in _SHORT:
        return _SHORT[letter]
    code = ord(letter)
    if letter.isprintable() and not (ascii_only and code > 0x7F):
        return letter
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def float32(number: float) -> float:
    """The nearest float32; infinity outside their range."""
    try:
        nearest: float = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        nearest = math.copysign(math.inf, number)
    return nearest


def shortest(number: float) -> float:
    """The number with the fewest digits that rounds to the same finite float32: 0.9 for 0.8999999761581421."""
    single = float32(number)
    return next(short for digits in range(1, 10) if float32(short := float(f"{single:.{digits}g}")) == single)


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out empty, zero and false values, as Go's ``omitempty`` does."""
    return {key: value for key, value in values.items() if value}


def message_object(message: Message) -> dict[str, Any]:
    """A message as a JSON object: role and content always, other fields if not empty; images in base64."""
    rest = {
        "thinking": message.thinking,
        "images": [base64.b64encode(image).decode() for image in message.images],
        "tool_calls": [call_object(call) for call in message.tool_calls],
        "tool_name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {"role": message.role, "content": message.content, **filled(rest)}


def call_object(call: ToolCall) -> dict[str, Any]:
    """A tool call as a JSON object."""
    function = {"index": call.index, "name": call.name, "arguments": call.arguments}
    return {**filled({"id": call.id}), "function": function}
