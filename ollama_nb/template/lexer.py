"""Go template text to tokens: literal text with its trim markers applied, and the words inside ``{{ }}``.

Rule: linear in the text. Spaces are no tokens; a token knows whether space came before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from ollama_nb.errors import TemplateError

MAX_TEXT = 1 << 20
MAX_TOKENS = 50_000
"""Half a second's reading; templates that are in use have hundreds."""
_SPACE = " \t\r\n"


class Kind(StrEnum):
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
    kind: Kind
    text: str
    line: int
    spaced: bool = False

    def __str__(self) -> str:
        return f"{{{{{self.text}}}}}" if self.kind is Kind.KEYWORD else (repr(self.text) if self.text else self.kind)


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
# What may stand right behind a name: Go refuses `.Name"text"` or `$x=1`.
_ENDS_NAME = re.compile(r"[ \t\r\n.,|:()]|\}\}|$")
_NAMES = {Kind.VARIABLE, Kind.FIELD, Kind.WORD, Kind.DOT}


def tokens(text: str) -> list[Token]:
    """All tokens, the last one EOF. Raises TemplateError with the line."""
    if len(text) > MAX_TEXT:
        raise TemplateError(f"template of {len(text)} characters: at most {MAX_TEXT} are read")
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
        self._add(Kind.EOF, "", len(self._text))
        return self._tokens

    def _literal(self, end: int, *, trim_start: bool, trim_end: bool) -> None:
        text = self._text[self._at : end]
        if trim_start:
            text = text.lstrip(_SPACE)
        begin = end - len(text)
        if trim_end:
            text = text.rstrip(_SPACE)
        if text:
            self._add(Kind.TEXT, text, begin)

    def _comment(self) -> bool:
        """Skip a comment; return whether its end trims the text behind it."""
        end = self._text.find("*/", self._at)
        if end < 0:
            raise self._error("unclosed comment", self._at)
        close = self._close(end + 2)
        if close is None:
            raise self._error("comment ends before closing delimiter", end)
        self._at, trims = close
        return trims

    def _close(self, at: int) -> tuple[int, bool] | None:
        """Where the text goes on if a closing delimiter, spaces before it left out, is at ``at``."""
        if self._text.startswith("}}", at):
            return at + 2, False
        if self._text.startswith("-}}", at + 1) and self._text[at] in _SPACE:
            return at + 4, True
        return None

    def _action(self, start: int) -> bool:
        self._add(Kind.OPEN, "{{", start)
        while True:
            end = _SPACES.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches the empty text too
            spaced = end > self._at
            close = self._close(end - 1) if spaced and self._text.startswith("-}}", end) else self._close(end)
            if close is not None:
                self._add(Kind.CLOSE, "}}", end, spaced)
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
        kind, text, end = Kind[match.lastgroup or "OTHER"], match[0], match.end()
        if kind is Kind.OTHER and first in _UNCLOSED:
            raise self._error(f"unterminated {_UNCLOSED[first]}", self._at)
        if kind in _NAMES and not _ENDS_NAME.match(self._text, end):
            raise self._error(f"bad character {self._text[end]!r} after {text!r}", end)
        if kind is Kind.NUMBER and (self._text[end : end + 1].isalnum() or text in ("+", "-")):
            raise self._error(f"bad number syntax: {self._text[self._at : end + 1]!r}", self._at)
        if kind is Kind.WORD and text in KEYWORDS:
            kind = Kind.KEYWORD
        self._add(kind, text, self._at, spaced)
        self._at = end

    def _add(self, kind: Kind, text: str, at: int, spaced: bool = False) -> None:
        if len(self._tokens) >= MAX_TOKENS:
            raise self._error(f"more than {MAX_TOKENS} words: no more are read", at)
        self._tokens.append(Token(kind, text, self._line_of(at), spaced))

    def _line_of(self, at: int) -> int:
        if at >= self._counted:
            self._line += self._text.count("\n", self._counted, at)
            self._counted = at
            return self._line
        return self._line - self._text.count("\n", at, self._counted)

    def _error(self, what: str, at: int) -> TemplateError:
        return TemplateError(f"template line {self._line_of(at)}: {what}")
