"""GBNF grammars, regular expressions and lists of choices: checked and translated for llguidance.

Sizes and nesting are limited before native code compiles anything. All functions here are pure; each raises BadRequest
with the reason.
"""

from __future__ import annotations

import json
import re

from ollama_nb.errors import BadRequest

MAX_REPEAT = 2000  # in a pair of braces, as in llama.cpp
MAX_DEPTH = 64  # nested groups

MAX_REGEX_BYTES = 64 << 10
MAX_CHOICES = 5000
MAX_REGEX_SIZE = 100_000  # atoms of a pattern with its repeats expanded

MAX_GRAMMAR_BYTES = 256 << 10
MAX_RULES = 5000
MAX_PARTS = 30_000  # characters, sets and rule names on the right-hand sides: the compiler counts in 16 bits


# Regular expressions and choices

_ATOM = re.compile(r"\\[xuUpP]\{[^{}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_BRACES = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_DIGIT_CLASSES = {"\\d": "[0-9]", "\\D": "[^0-9]"}
_PLAIN = re.compile(r"[A-Za-z0-9]|[^\x00-\x7f]")


def check_regex(text: str) -> str:
    """Return a pattern that the whole reply must match. Raises BadRequest if it is too large."""
    reason = find_regex_problem(text)
    if reason:
        raise BadRequest(f"invalid regex: {reason}")
    return text


def find_regex_problem(text: str) -> str:
    """Return why a pattern is too large, empty if it is not. The compiler checks its syntax."""
    if len(text.encode("utf-8", "replace")) > MAX_REGEX_BYTES:
        return f"it may have {MAX_REGEX_BYTES >> 10} KiB of text at most"
    bare = _ATOM.sub("x", text)
    if any(int(count[:9]) > MAX_REPEAT for braces in _BRACES.findall(bare) for count in braces if count):
        return f"a part may be repeated {MAX_REPEAT} times at most"
    depth = 0
    for mark in bare:
        depth += (mark == "(") - (mark == ")")
        if depth > MAX_DEPTH:
            return f"groups may be nested {MAX_DEPTH} levels deep at most"
    if expanded_size(bare) > MAX_REGEX_SIZE:
        return f"repeats within repeats come to more than {MAX_REGEX_SIZE} parts"
    return ""


def ascii_digits(pattern: str) -> str:
    """Return a pattern whose ``\\d`` and ``\\D`` mean 0 to 9, in sets too."""
    return _ATOM.sub(lambda atom: _ascii_digit(atom[0]), pattern)


def _ascii_digit(atom: str) -> str:
    if atom in _DIGIT_CLASSES:
        return _DIGIT_CLASSES[atom]
    if not atom.startswith("["):
        return atom
    inside = {"\\d": "0-9", "\\D": "[^0-9]"}
    return re.sub(r"\\.", lambda escape: inside.get(escape[0], escape[0]), atom, flags=re.DOTALL)


def expanded_size(pattern: str) -> int:
    """Count the atoms of a pattern with its repeats expanded. Escapes and sets must be replaced by single letters."""
    outer: list[int] = []
    size = last = at = 0
    while at < len(pattern):
        mark, repeat = pattern[at], _BRACES.match(pattern, at)
        at = repeat.end() if repeat else at + 1
        if repeat:
            times = max(1, int((repeat[2] or repeat[1])[:9]))
            size, last = size + last * (times - 1), last * times
        elif mark == "(":
            outer.append(size)
            size = last = 0
        elif mark == ")" and outer:
            size, last = outer.pop() + size, size
        elif mark not in "*+?|":
            size, last = size + 1, 1
    return size


def choices_to_regex(text: str) -> str:
    """Translate a JSON list of strings into a pattern that matches exactly these strings."""
    choices = json.loads(text)
    if not choices:
        raise BadRequest("invalid choices: give at least one")
    if len(choices) > MAX_CHOICES or len(text.encode("utf-8", "replace")) > MAX_REGEX_BYTES:
        raise BadRequest(f"invalid choices: {MAX_CHOICES} choices and {MAX_REGEX_BYTES >> 10} KiB of text at most")
    if not all(choices):
        raise BadRequest("invalid choices: a choice must not be an empty string")
    return "|".join(map(_escape, choices))


def _escape(text: str) -> str:
    return "".join(mark if _PLAIN.match(mark) else f"\\x{{{ord(mark):X}}}" for mark in text)


# GBNF

_HEADER = "%llguidance {}\n"
_ANY = r"/[\x{0}-\x{10FFFF}]/"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_REPEAT_RANGE = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(,?)[ \t]*(\d{0,9})[ \t]*\}")
_ESCAPED = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def gbnf_to_lark(text: str) -> str:
    """Translate a grammar in llama.cpp's GBNF into the Lark dialect that llguidance compiles.

    Every terminal of the result is one character. A lexer takes the longest match, but a GBNF rule may end anywhere;
    where no two terminals differ in length, the two behave alike. Errors name the line.
    """
    if len(text.encode("utf-8", "replace")) > MAX_GRAMMAR_BYTES:
        raise BadRequest(f"invalid grammar: it may have {MAX_GRAMMAR_BYTES >> 10} KiB of text at most")
    return _GbnfParser(text).parse()


class _GbnfParser:
    """Recursive descent, at most ``MAX_DEPTH`` groups deep. The method for a part returns its translation."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._rules: dict[str, str] = {}
        self._references: dict[str, int] = {}
        """Rule name -> index of its first use."""
        self._numbers: dict[str, int] = {}
        self._parts = 0

    def parse(self) -> str:
        self._skip(_BLANK_LINES)
        while self._at < len(self._text):
            self._rule()
            self._skip(_BLANK_LINES)
        for name, at in self._references.items():
            if name not in self._rules:
                raise self._error(f'rule "{name}" is not defined', at)
        if "root" not in self._rules:
            raise BadRequest('invalid grammar: rule "root" is missing')
        rules = "".join(f"{self._lark_name(name)}: {body}\n" for name, body in self._rules.items())
        return f"{_HEADER}start: {self._lark_name('root')}\n{rules}"

    def _rule(self) -> None:
        at = self._at
        name = self._name()
        self._skip(_BLANK)
        if not self._take("::="):
            raise self._error('expected "::=" after the name of a rule')
        if name in self._rules:
            raise self._error(f'rule "{name}" is defined twice', at)
        if len(self._rules) == MAX_RULES:
            raise self._error(f"a grammar may have {MAX_RULES} rules at most", at)
        self._skip(_BLANK_LINES)
        self._rules[name] = self._alternatives(0)
        if self._peek() not in ("", "\r", "\n"):
            raise self._error(f"unexpected {self._peek()!r}")

    def _alternatives(self, depth: int) -> str:
        found = [self._sequence(depth)]
        while self._another(depth):
            self._skip(_BLANK_LINES)
            found.append(self._sequence(depth))
        return " | ".join(found)

    def _another(self, depth: int) -> bool:
        """Consume a bar, which may be the first character of the next line."""
        before = self._at
        self._skip(_BLANK_LINES)
        if self._take("|"):
            return True
        if not depth:
            self._at = before
        return False

    def _sequence(self, depth: int) -> str:
        found = []
        while (item := self._item(depth)) is not None:
            self._skip(_BLANK_LINES if depth else _BLANK)
            found.append(item + self._repetition())
            self._parts += 1
            if self._parts > MAX_PARTS:
                raise self._error(f"a grammar may have {MAX_PARTS} parts at most")
            self._skip(_BLANK_LINES if depth else _BLANK)
        return " ".join(found) or '""'

    def _item(self, depth: int) -> str | None:
        match self._peek():
            case '"':
                return self._literal()
            case "[":
                return self._class()
            case "(":
                return self._group(depth + 1)
            case ".":
                self._at += 1
                return _ANY
            case "<" | "!":
                raise self._error("tokens by number or name are not supported; write their text")
        if _NAME.match(self._text, self._at):
            at = self._at
            name = self._name()
            self._references.setdefault(name, at)
            return self._lark_name(name)
        return None

    def _group(self, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise self._error(f"groups may be nested {MAX_DEPTH} levels deep at most")
        self._at += 1
        self._skip(_BLANK_LINES)
        inner = self._alternatives(depth)
        self._skip(_BLANK_LINES)
        if not self._take(")"):
            raise self._error('expected ")"')
        return f"({inner})"

    def _literal(self) -> str:
        start = self._at
        self._at += 1
        found = []
        while not self._take('"'):
            found.append(f"/{self._character(start)}/")
        if len(found) == 1:
            return found[0]
        return "(" + " ".join(found) + ")" if found else '""'

    def _class(self) -> str:
        start = self._at
        self._at += 1
        negated = self._take("^")
        found = []
        while not self._take("]"):
            first = last = self._character(start)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._character(start)
                if int(last[3:-1], 16) < int(first[3:-1], 16):
                    raise self._error("a character range is in reverse order")
            found.append(first if first == last else f"{first}-{last}")
        if not found:
            if negated:
                return _ANY
            raise self._error("an empty set of characters matches nothing", start)
        return f"/[{'^' if negated else ''}{''.join(found)}]/"

    def _character(self, start: int) -> str:
        """Parse a character or an escape; return it as an escape of a regular expression."""
        self._parts += 1
        character = self._peek()
        if not character:
            raise self._error("the closing quote or bracket is missing", start)
        self._at += 1
        code = self._escape() if character == "\\" else ord(character)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self._error(f"U+{code:04X} is not a character")
        return f"\\x{{{code:X}}}"

    def _escape(self) -> int:
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPED:
            return ord(_ESCAPED[kind])
        digits = self._text[self._at : self._at + _HEX_DIGITS.get(kind, 0)]
        if kind not in _HEX_DIGITS or not re.fullmatch(f"[0-9a-fA-F]{{{_HEX_DIGITS[kind]}}}", digits):
            raise self._error(f"unknown escape \\{kind}{digits}")
        self._at += len(digits)
        return int(digits, 16)

    def _repetition(self) -> str:
        mark = self._peek()
        if mark and mark in "*+?":
            self._at += 1
        elif mark == "{":
            mark = self._braces()
        else:
            return ""
        self._skip(_BLANK)
        following = self._peek()
        if following and following in "*+?{":
            raise self._error("one repetition after another: put the first into a group")
        return mark

    def _braces(self) -> str:
        found = _REPEAT_RANGE.match(self._text, self._at)
        if found is None:
            raise self._error("expected {n}, {n,} or {n,m}")
        least = int(found[1])
        most = least if not found[2] else int(found[3]) if found[3] else None
        if (not found[2] and found[3]) or (most is not None and most < least):
            raise self._error("expected {n}, {n,} or {n,m} with n at most m")
        if max(least, most or 0) > MAX_REPEAT:
            raise self._error(f"a part may be repeated {MAX_REPEAT} times at most")
        self._at = found.end()
        return f"{{{least},{'' if most is None else most}}}"

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._error("expected the name of a rule")
        self._at = found.end()
        return found[0]

    def _lark_name(self, name: str) -> str:
        return f"r{self._numbers.setdefault(name, len(self._numbers))}"

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _skip(self, blank: re.Pattern[str]) -> None:
        found = blank.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _error(self, what: str, at: int | None = None) -> BadRequest:
        place = min(self._at if at is None else at, len(self._text))
        return BadRequest(f"invalid grammar: line {self._text.count(chr(10), 0, place) + 1}: {what}")
