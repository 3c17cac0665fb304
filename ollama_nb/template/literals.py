"""The constants of Go templates: numbers and quoted strings to values. Raises ValueError for what Go refuses."""

from __future__ import annotations

import re

_FLOAT_MARKS = re.compile(r"[.eEpP]")


def number(text: str) -> int | float:
    """A Go number constant: ints in bases 2, 8, 10, 16 with ``_`` separators, floats, hex floats."""
    if re.fullmatch(r"[+-]?0[0-7_]+", text):
        return _checked(int(text, 8))
    hexadecimal = text.lstrip("+-")[:2].lower() == "0x"
    try:
        return _checked(int(text, 0))
    except ValueError:
        if not (re.search(r"[.pP]", text) if hexadecimal else _FLOAT_MARKS.search(text)):
            raise ValueError("integer overflow or bad number syntax") from None
    if hexadecimal and "p" not in text.lower():
        raise ValueError("bad number syntax")
    value = float.fromhex(text.replace("_", "")) if hexadecimal else float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return value


def _checked(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("integer overflow")
    return value


_ESCAPE = re.compile(r"\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)
_SHORT = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}


def unquote(quoted: str) -> str:
    """The text of a Go string or character constant. Bytes that are no UTF-8 become surrogate escapes."""
    quote, body = quoted[0], quoted[1:-1]

    def replace(match: re.Match[str]) -> str:
        byte, short, long, octal, letter = match.groups()
        if letter is not None:
            if letter == quote:
                return quote
            return chr(_SHORT[letter])
        if byte is not None or octal is not None:
            value = int(byte, 16) if byte is not None else int(octal, 8)
            if value > 255:
                raise ValueError("octal escape out of range")
            return chr(value) if value < 128 or quote == "'" else chr(0xDC00 + value)
        value = int(short or long, 16)
        if value > 0x10FFFF or 0xD800 <= value < 0xE000:
            raise ValueError("no Unicode character")
        return chr(value)

    try:
        text = _ESCAPE.sub(replace, body)
    except KeyError as error:
        raise ValueError(f"unknown escape \\{error.args[0]}") from None
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
