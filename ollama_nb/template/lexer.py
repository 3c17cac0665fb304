"""Split the text of a Go template into tokens: literal text with trim markers applied, and the words inside ``{{ }}``.

The time is linear in the text. White space is not a token; a token records whether white space precedes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from ollama_nb.errors import TemplateError

MAX_TEXT = 1 << 20  # characters
MAX_TOKENS = 50_000  # half a second of parsing; templates in use have hundreds
_SPACE = " \t\r\n"


class TokenKind(StrEnum):
    TEXT = "text"
    OPEN = "{{"
    CLOSE = "}}"
    FIELD = "field"
    VARIABLE = "variable"
    WORD = "word"
    KEYWORD = "keyword"
    NUMBER = "number"
    CHAR = "character constant"
    STRING = "string"
    RAW = "raw string"
    DOT = "."
    DECLARE = ":="
    ASSIGN = "="
    PIPE = "|"
    LEFT = "("
    RIGHT = ")"
    COMMA = ","
    OTHER = "character"
    EOF = "end of template"


KEYWORDS = frozenset({"if", "else", "end", "range", "with", "define", "block", "template", "break", "continue"})


@dataclass(frozen=True, slots=True)
class Token:
    kind: TokenKind
    text: str
    line: int
    spaced: bool = False

    def __str__(self) -> str:
        return (
            f"{{{{{self.text}}}}}" if self.kind is TokenKind.KEYWORD else (repr(self.text) if self.text else self.kind)
        )


_NUMBER = (
    r"[+-]?(?:0[xX][\da-fA-F_]*(?:\.[\da-fA-F_]*)?(?:[pP][+-]?[\d_]*)?|0[bB][01_]*|0[oO][0-7_]*"
    r"|[\d_]*(?:\.[\d_]*)?(?:[eE][+-]?[\d_]*)?)"
)
_TOKEN = re.compile(
    r"(?P<STRING>\"(?:\\[^\n]|[^\"\\\n])*\")"
    r"|(?P<RAW>`[^`]*`)"
    r"|(?P<CHAR>'(?:\\[^\n]|[^'\\\n])*')"
    r"|(?P<VARIABLE>\$\w*)"
    r"|(?P<FIELD>\.[^\W\d]\w*)"
    rf"|(?P<NUMBER>(?=[+-]|\.?\d){_NUMBER})"
    r"|(?P<DOT>\.)"
    r"|(?P<WORD>\w+)"
    r"|(?P<DECLARE>:=)|(?P<ASSIGN>=)|(?P<PIPE>\|)|(?P<LEFT>\()|(?P<RIGHT>\))|(?P<COMMA>,)"
    r"|(?P<OTHER>[!-~])",
)
_SPACES = re.compile(r"[ \t\r\n]*")
_UNCLOSED = {'"': "quoted string", "`": "raw string", "'": "character constant"}
# What may directly follow a name: Go rejects `.Name"text"` and `$x=1`.
_ENDS_NAME = re.compile(r"[ \t\r\n.,|:()]|\}\}|$")
_NAMES = {TokenKind.VARIABLE, TokenKind.FIELD, TokenKind.WORD, TokenKind.DOT}


def tokens(text: str) -> list[Token]:
    """Return all tokens; the last one is EOF. Raises TemplateError with the line number."""
    if len(text) > MAX_TEXT:
        raise TemplateError(f"template of {len(text)} characters: at most {MAX_TEXT} are supported")
    return _Lexer(text).run()


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._tokens: list[Token] = []

    def run(self) -> list[Token]:
        trim = False
        while (start := self._text.find("{{", self._at)) >= 0:
            trims_left = self._text[start + 2 : start + 3] == "-" and self._text[start + 3 : start + 4] in tuple(_SPACE)
            self._literal(start, trim_start=trim, trim_end=trims_left)
            self._at = start + (4 if trims_left else 2)
            trim = self._comment() if self._text.startswith("/*", self._at) else self._action(start)
        self._literal(len(self._text), trim_start=trim, trim_end=False)
        self._add(TokenKind.EOF, "", len(self._text))
        return self._tokens

    def _literal(self, end: int, *, trim_start: bool, trim_end: bool) -> None:
        text = self._text[self._at : end]
        if trim_start:
            text = text.lstrip(_SPACE)
        begin = end - len(text)
        if trim_end:
            text = text.rstrip(_SPACE)
        if text:
            self._add(TokenKind.TEXT, text, begin)

    def _comment(self) -> bool:
        """Skip a comment. Return whether its end trims the text after it."""
        end = self._text.find("*/", self._at)
        if end < 0:
            raise self._error("unclosed comment", self._at)
        close = self._close(end + 2)
        if close is None:
            raise self._error("comment ends before closing delimiter", end)
        self._at, trims = close
        return trims

    def _close(self, at: int) -> tuple[int, bool] | None:
        """Return the index after the closing delimiter at ``at`` and whether it trims; None without a delimiter."""
        if self._text.startswith("}}", at):
            return at + 2, False
        if self._text.startswith("-}}", at + 1) and self._text[at] in _SPACE:
            return at + 4, True
        return None

    def _action(self, start: int) -> bool:
        self._add(TokenKind.OPEN, "{{", start)
        while True:
            end = _SPACES.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches the empty text too
            spaced = end > self._at
            close = self._close(end - 1) if spaced and self._text.startswith("-}}", end) else self._close(end)
            if close is not None:
                self._add(TokenKind.CLOSE, "}}", end, spaced)
                self._at, trims = close
                return trims
            if end >= len(self._text):
                raise self._error("unclosed action", start)
            self._at = end
            self._word(spaced)

    def _word(self, spaced: bool) -> None:
        match = _TOKEN.match(self._text, self._at)
        first = self._text[self._at]
        if match is None:
            raise self._error(f"unrecognized character in action: {first!r}", self._at)
        kind, text, end = TokenKind[match.lastgroup or "OTHER"], match[0], match.end()
        if kind is TokenKind.OTHER and first in _UNCLOSED:
            raise self._error(f"unterminated {_UNCLOSED[first]}", self._at)
        if kind in _NAMES and not _ENDS_NAME.match(self._text, end):
            raise self._error(f"bad character {self._text[end]!r} after {text!r}", end)
        if kind is TokenKind.NUMBER and (self._text[end : end + 1].isalnum() or text in ("+", "-")):
            raise self._error(f"bad number syntax: {self._text[self._at : end + 1]!r}", self._at)
        if kind is TokenKind.WORD and text in KEYWORDS:
            kind = TokenKind.KEYWORD
        self._add(kind, text, self._at, spaced)
        self._at = end

    def _add(self, kind: TokenKind, text: str, at: int, spaced: bool = False) -> None:
        if len(self._tokens) >= MAX_TOKENS:
            raise self._error(f"more than {MAX_TOKENS} tokens", at)
        self._tokens.append(Token(kind, text, self._line_of(at), spaced))

    def _line_of(self, at: int) -> int:
        if at >= self._counted:
            self._line += self._text.count("\n", self._counted, at)
            self._counted = at
            return self._line
        return self._line - self._text.count("\n", at, self._counted)

    def _error(self, what: str, at: int) -> TemplateError:
        return TemplateError(f"template line {self._line_of(at)}: {what}")


_FLOAT_MARKS = re.compile(r"[.eEpP]")


def number(text: str) -> int | float:
    """Convert a Go number constant: integers in bases 2, 8, 10, 16 with ``_`` separators, floats, hex floats."""
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
    """Convert a Go string or character constant. Bytes that are not valid UTF-8 become surrogate escapes."""
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
