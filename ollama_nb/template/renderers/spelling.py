"""How families spell JSON and values: compact, spaced or indented, with Go's numbers and escapes.

Rule: a plain dict stands for an unordered map, its keys come out sorted; a Struct keeps its order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.encode import go_json, go_quote, go_string
from ollama_nb.template.printing import show

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""White space as Go understands it, which is not quite Python's."""


class Struct(dict[str, Any]):
    """An object whose keys keep their order."""


class Ordered(Struct):
    """A map that keeps its order; it is written with ``<>&`` escaped, whatever is asked of the text around it."""


def _plain_text(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return quoted if quoted.isascii() else _LONE_SURROGATE.sub("\ufffd", quoted)


@dataclass(frozen=True, slots=True)
class _Style:
    comma: str = ", "
    colon: str = ": "
    text: Callable[[str], str] = go_string
    indent: str = ""


_COMPACT = _Style(",", ":")
_SPACED = _Style()
_PLAIN = _Style(text=_plain_text)
_QUOTED = _Style(text=go_quote)
_INDENTED = _Style(",", indent="    ")


def compact(value: Any) -> str:
    return _written(value, _COMPACT)


def spaced(value: Any) -> str:
    """With a space behind commas and colons."""
    return _written(value, _SPACED)


def plain(value: Any) -> str:
    """Spaced, and ``<>&`` as they are."""
    return _written(value, _PLAIN)


def quoted(value: Any) -> str:
    """Spaced, the texts in Go's quotes (``%q``)."""
    return _written(value, _QUOTED)


def indented(value: Any) -> str:
    """Over several lines, four spaces a level."""
    return _written(value, _INDENTED)


def _written(value: Any, style: _Style, margin: str = "\n") -> str:
    if isinstance(value, Mapping):
        return _object(value, style, margin)
    if isinstance(value, (list, tuple)):
        return _joined("[", [_written(item, style, margin + style.indent) for item in value], "]", style, margin)
    return style.text(value) if isinstance(value, str) else go_json(value)


def _object(value: Mapping[str, Any], style: _Style, margin: str) -> str:
    keys = list(value) if isinstance(value, Struct) else sorted(value, key=_bytes)
    if isinstance(value, Ordered) and style is _PLAIN:
        style = _SPACED
    deeper = margin + style.indent
    inner = [f"{style.text(key)}{style.colon}{_written(value[key], style, deeper)}" for key in keys]
    return _joined("{", inner, "}", style, margin)


def _joined(start: str, items: list[str], end: str, style: _Style, margin: str) -> str:
    if not style.indent or not items:
        return start + style.comma.join(items) + end
    return start + ",".join(margin + style.indent + item for item in items) + margin + end


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def go_value(value: Any) -> str:
    """A JSON value as Go prints it: every number is a float (``1e+06``)."""
    return show(_floats(value))


def _floats(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) < 1 << 1000 else value
    if isinstance(value, Mapping):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_floats(item) for item in value]
    return value


def whole_number(value: Any) -> str:
    """A number without a fraction in plain digits, another as Go prints it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 63:
        return str(int(value))
    return str(value) if isinstance(value, int) else go_value(value)


def trim(text: str) -> str:
    """Without white space around it, as Go understands white space."""
    return text.strip(SPACE)


def trim_right(text: str) -> str:
    return text.rstrip(SPACE)


def by_name(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries sorted by key."""
    return sorted(values.items(), key=lambda entry: _bytes(entry[0]))
