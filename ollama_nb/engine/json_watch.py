"""What the grammar of a JSON reply leaves open and must end nevertheless: digits of numbers, nesting, texts in strings.

A grammar for any JSON value allows numbers and nesting without end, and small models write both. A
``JsonWatch`` follows a reply byte by byte and refuses tokens that exceed a limit. Limits are soft: where the grammar
allows nothing else, such as for a constant of 40 digits, they do not apply. Forbidden texts are strict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_NESTING = 64  # objects and arrays within one another, as in requests
MAX_INTEGER_DIGITS = 20  # digits before the point, enough for unsigned integers of 64 bits
MAX_FRACTION_DIGITS = 20  # digits after the point; a double has 17 significant ones
MAX_EXPONENT_DIGITS = 2  # so that every number is finite for every parser

_NONE, _INTEGER, _FRACTION, _EXPONENT = range(4)
_LIMITS = (0, MAX_INTEGER_DIGITS, MAX_FRACTION_DIGITS, MAX_EXPONENT_DIGITS)
_LEADING_DIGITS = re.compile(rb"[0-9]*")
_LONG_PART = re.compile(rb"[0-9]{%d}|[eE][+-]?[0-9]{%d}" % (MAX_INTEGER_DIGITS + 1, MAX_EXPONENT_DIGITS + 1))
_OPENERS = re.compile(rb"[\[{]")

Tokens = npt.NDArray[np.intp]


class _State(NamedTuple):
    inside: bool = False  # a string
    escaped: bool = False  # after a backslash
    tail: bytes = b""  # the last bytes of the string
    part: int = _NONE  # of a number
    digits: int = 0  # of that part
    depth: int = 0
    excess: bool = False  # the last token exceeded a limit


class JsonTables:
    """What is known of the tokens of a vocabulary, shared by all its watches."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.leading = np.array([len(_LEADING_DIGITS.match(piece)[0]) for piece in pieces], np.int16)  # type: ignore[index]
        self.long = np.array([bool(_LONG_PART.search(piece)) for piece in pieces], np.bool_)
        self.openers = np.array([len(_OPENERS.findall(piece)) for piece in pieces], np.int16)
        self._closing: dict[bytes, npt.NDArray[np.bool_]] = {}

    def closing(self, ends: frozenset[bytes]) -> npt.NDArray[np.bool_]:
        """Return which tokens contain one of the given bytes."""
        key = b"".join(sorted(ends))
        if key not in self._closing:
            self._closing[key] = np.array([any(end in piece for end in ends) for piece in self.pieces], np.bool_)
        return self._closing[key]


class JsonWatch:
    """Follows one reply. ``texts`` must not occur inside its strings."""

    def __init__(self, tables: JsonTables, texts: Sequence[str] = ()) -> None:
        self._tables = tables
        self._texts = [text.encode() for text in texts]
        self._keep = max(map(len, self._texts), default=1) - 1
        self._closing = tables.closing(frozenset(text[-1:] for text in self._texts)) if texts else None
        self._state = _State()

    def consume(self, token: int) -> None:
        """Follow a token of the reply."""
        self._state = self._after(token) or self._state

    def refuses(self, token: int) -> bool:
        """Return whether a token completes a forbidden text or exceeds a limit."""
        if not self._is_critical(token):
            return False
        state = self._after(token)
        return state is None or state.excess

    def permitted(self, tokens: Tokens) -> Tokens:
        """Return those of ``tokens`` that are not refused; where all exceed a limit, all without a forbidden text."""
        critical = tokens[self._is_critical(tokens)]
        if not len(critical):
            return tokens
        states = [(token, self._after(token)) for token in critical.tolist()]
        strict = np.setdiff1d(tokens, [token for token, state in states if state is None])
        soft = np.setdiff1d(strict, [token for token, state in states if state is not None and state.excess])
        return soft if len(soft) else strict

    def _is_critical(self, tokens: int | Tokens) -> npt.NDArray[np.bool_]:
        """Return which tokens may be refused in this state; only these are followed byte by byte."""
        tables, state = self._tables, self._state
        found = tables.long[tokens] | (state.depth + tables.openers[tokens] > MAX_NESTING)
        if state.part:
            found |= state.digits + tables.leading[tokens] > _LIMITS[state.part]
        if self._closing is not None:
            found |= self._closing[tokens]
        return np.asarray(found)

    def _after(self, token: int) -> _State | None:
        """Return the state after a token, None if it completes a forbidden text."""
        inside, escaped, tail, part, digits, depth, _ = self._state
        excess = False
        for byte in self._tables.pieces[token]:
            char = bytes([byte])
            if not inside:
                inside, tail = char == b'"', b""
                part, digits = _number_part(char, part, digits)
                depth += (char in b"[{") - (char in b"]}")
                excess |= digits > _LIMITS[part] or (char in b"[{" and depth > MAX_NESTING)
                continue
            tail += char
            if any(tail.endswith(text) for text in self._texts):
                return None
            tail = tail[-self._keep :] if self._keep else b""
            if escaped:
                escaped = False
            elif char == b"\\":
                escaped = True
            elif char == b'"':
                inside = False
        return _State(inside, escaped, tail, part, digits, depth, excess)


def _number_part(char: bytes, part: int, digits: int) -> tuple[int, int]:
    """Return the part of a number that a character outside strings belongs to, and the digits of that part."""
    if char.isdigit():
        return part or _INTEGER, digits + 1
    if char == b"." and part == _INTEGER:
        return _FRACTION, 0
    if char in b"eE" and part in (_INTEGER, _FRACTION):
        return _EXPONENT, 0
    if char in b"+-" and part == _EXPONENT and not digits:
        return _EXPONENT, 0
    return _NONE, 0
