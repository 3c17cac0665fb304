"""JSON exactly as Go's encoder writes it, so that digests and bytes agree with Ollama's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_HTML_ONLY = "<>&\u2028\u2029"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def go_json(value: Any, *, sort_keys: bool = False) -> str:
    """Compact JSON; mappings keep their order unless ``sort_keys`` (Go maps) is set. Floats must be finite."""
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
        quoted = quoted.translate(_ESCAPES)
    return quoted if quoted.isascii() else _LONE_SURROGATE.sub("\ufffd", quoted)


def go_float(number: float) -> str:
    """Shortest digits; plain from 1e-6 up to 1e21, exponent form outside; whole numbers without a point."""
    if not math.isfinite(number):
        raise ValueError("JSON has no NaN or Infinity")
    if number == 0:
        return "-0" if math.copysign(1.0, number) < 0 else "0"
    if 1e-6 <= abs(number) < 1e21:
        return f"{Decimal(repr(number)):f}".removesuffix(".0")
    mantissa, _, exponent = repr(number).partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"
