"""Parse and format Modelfiles, and collect the parts of a create request from their instructions.

The grammar is Ollama's, with its oddities: a quoted value ends at the first line end at which its quotes are closed,
there are no escape sequences, and unprintable characters are removed from values.
"""

from __future__ import annotations

import codecs
import difflib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ollama_nb.api import options
from ollama_nb.api.encode import float32, shortest
from ollama_nb.api.messages import Message
from ollama_nb.api.options import KINDS
from ollama_nb.errors import BadRequest

INSTRUCTIONS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
ROLES = ("system", "user", "assistant")
DEPRECATED = options.DEPRECATED - {"numa", "embedding_only", "tfs_z"}
"""Parameters that have no effect any more. Ollama's Modelfiles reject the other historic options."""

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_BLANK = " \t"
_NEWLINE = "\r\n"
_LINE_END = re.compile(r"[\r\n]")
_NOT_LETTERS = re.compile(r"[^A-Za-z]")
_WORD_END = {"parameter": re.compile(r"[^A-Za-z0-9_]"), "message": _NOT_LETTERS}
_WHOLE = re.compile(r"[+-]?[0-9]+")
_SEMVER = re.compile(
    r"v?(0|[1-9]\d*)(\.(0|[1-9]\d*)(\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?)?)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. ``key`` is the name of a PARAMETER or the role of a MESSAGE; ``line`` is its first line."""

    name: str
    value: str
    key: str = ""
    line: int = field(default=0, compare=False)

    def __str__(self) -> str:
        key = f"{self.key} " if self.key else ""
        return f"{self.name.upper()} {key}{quote(self.value)}"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a create request. ``from_`` and the file instructions are paths or names, as written."""

    from_: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    draft: str = ""
    template: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Modelfile:
    instructions: tuple[Instruction, ...]

    def format(self) -> str:
        """Return text that parses to the same instructions."""
        return "".join(f"{instruction}\n" for instruction in self.instructions)

    def request_parts(self) -> Parts:
        """Collect the instructions by kind. Raises BadRequest for an invalid parameter or version."""
        last = {instruction.name: instruction.value for instruction in self.instructions}
        parameters, warnings = _parameters(self.instructions)
        return Parts(
            from_=self._values("from"),
            adapters=self._values("adapter")[-1:],
            draft=last.get("draft", ""),
            template=last.get("template", ""),
            system=last.get("system", ""),
            parameters=parameters,
            messages=tuple(Message(i.key, i.value) for i in self.instructions if i.name == "message"),
            licenses=self._values("license"),
            renderer=last.get("renderer", ""),
            parser=last.get("parser", ""),
            requires=_version(last.get("requires", "")),
            warnings=warnings,
        )

    def _values(self, name: str) -> tuple[str, ...]:
        return tuple(instruction.value for instruction in self.instructions if instruction.name == name)


def parse(source: bytes | str) -> Modelfile:
    """Parse a Modelfile. Raises BadRequest with Ollama's wording, and with the line number where it is known."""
    text = _decode(source) if isinstance(source, bytes) else source.removeprefix("\ufeff")
    instructions = tuple(_Scanner(text).instructions())
    if not any(instruction.name == "from" for instruction in instructions):
        raise BadRequest("no FROM line")
    return Modelfile(instructions)


def quote(value: str) -> str:
    """Format a value for a Modelfile: bare if possible, else in quotes, in triple quotes if it contains quotes.

    There are no escape sequences, so a text with a line that ends in three quotes cannot be represented.
    """
    if "\n" in value or value.startswith(" ") or value.endswith(" "):
        return f'"""{value}"""' if '"' in value else f'"{value}"'
    if value.startswith('"') or value != value.strip() or "\r" in value:
        return f'"""{value}"""'
    return value or '""'


def typed(name: str, value: str) -> Any:
    """Convert the text of a parameter to its type. The text of a list parameter is one item. Raises BadRequest."""
    kind = KINDS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name.lower(), KINDS, n=1)
        raise BadRequest(f"unknown parameter '{name}'" + (f", did you mean '{near[0]}'?" if near else ""))
    if kind == "int":
        return _int(value)
    if kind == "float":
        return _float(value)
    if kind == "bool":
        if value in _TRUE or value in _FALSE:
            return value in _TRUE
        raise BadRequest(f"invalid bool value [{value}]")
    return [value]


def _parameters(instructions: tuple[Instruction, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    parameters: dict[str, Any] = {}
    warnings = []
    for instruction in instructions:
        if instruction.name != "parameter":
            continue
        if instruction.key in DEPRECATED:
            warnings.append(f"warning: parameter {instruction.key} is deprecated")
            continue
        try:
            value = typed(instruction.key, instruction.value)
        except BadRequest as error:
            where = f", line {instruction.line}" if instruction.line else ""
            raise BadRequest(f"{error.message} (PARAMETER {instruction.key}{where})") from None
        parameters[instruction.key] = parameters.get(instruction.key, []) + value if isinstance(value, list) else value
    return parameters, tuple(warnings)


def _int(text: str) -> int:
    if _WHOLE.fullmatch(text) and len(text) < 21 and -(1 << 63) <= int(text) < 1 << 63:
        return int(text)
    raise BadRequest(f"invalid int value [{text}]")


def _float(text: str) -> float:
    """Round to a 32-bit float and return the shortest decimal that denotes it: 0.6 stays 0.6."""
    if "_" not in text and text == text.strip() and text.isascii():
        with suppress(ValueError):
            if math.isfinite(number := float32(float(text))):
                return shortest(number)
    raise BadRequest(f"invalid float value [{text}]")


def _version(text: str) -> str:
    if text and not _SEMVER.fullmatch(text):
        raise BadRequest("requires must be a valid semver (e.g. 0.14.0)")
    return text.removeprefix("v")


def _decode(source: bytes) -> str:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if source.startswith(mark):
            return source[len(mark) :].decode(encoding, "replace")
    return source.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


class _Scanner:
    """Scans the text once. Line numbers count every CR and every LF."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1

    def instructions(self) -> list[Instruction]:
        instructions = []
        while self._to_instruction():
            line = self._line
            name = self._name()
            key = self._word(name) if name in _WORD_END else ""
            if name == "message" and key not in ROLES:
                raise self._error('message role must be one of "system", "user", or "assistant"')
            instructions.append(Instruction(name, self._value(), key, line))
        return instructions

    def _to_instruction(self) -> bool:
        """Skip blanks, empty lines and comments. Return False at the end of the text."""
        while self._at < len(self._text):
            mark = self._text[self._at]
            if mark == "#":
                self._take_line()
            elif mark in _BLANK:
                self._at += 1
            elif mark in _NEWLINE:
                self._at += 1
                self._line += 1
            else:
                return True
        return False

    def _name(self) -> str:
        end = _NOT_LETTERS.search(self._text, self._at + 1)
        if end is None:
            raise BadRequest("unexpected EOF")
        name = _printable(self._text[self._at : end.start()]).lower()
        if end[0] not in _BLANK or name not in INSTRUCTIONS:
            # Ollama reports an error found at a line end for the line that follows.
            self._line += end[0] in _NEWLINE
            *most, last = (f'"{word}"' for word in INSTRUCTIONS)
            raise self._error(f"command must be one of {', '.join(most)}, or {last}")
        self._at = end.end()
        return name

    def _word(self, instruction: str) -> str:
        """Take the name of a PARAMETER or the role of a MESSAGE, and the blanks around it."""
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1
        end = _WORD_END[instruction].search(self._text, self._at)
        if end is None:
            raise BadRequest("unexpected EOF")
        word = self._text[self._at : end.start()]
        if end[0] not in _BLANK:
            raise BadRequest(f"unexpected EOF: {word}")
        self._at = end.end()
        return word

    def _value(self) -> str:
        value, newline = self._take_line()
        opened = _opening(value.lstrip())
        if not opened or _closed(value.strip(), opened):
            return value.strip().removeprefix(opened).removesuffix(opened)
        pieces = [value, newline]
        while self._at < len(self._text):
            value, newline = self._take_line()
            pieces.append(value)
            if value.rstrip().endswith(opened):
                return "".join(pieces).strip().removeprefix(opened).removesuffix(opened)
            pieces.append(newline)
        raise BadRequest("unexpected EOF")

    def _take_line(self) -> tuple[str, str]:
        """Take the rest of the line. Return its printable characters and the character that ends it."""
        found = _LINE_END.search(self._text, self._at)
        end = found.start() if found else len(self._text)
        line, newline = self._text[self._at : end], self._text[end : end + 1]
        self._at = end + len(newline)
        self._line += len(newline)
        return _printable(line), newline

    def _error(self, text: str) -> BadRequest:
        return BadRequest(f"(line {self._line}): {text}")


def _printable(line: str) -> str:
    return line if line.isprintable() else "".join(mark for mark in line if mark.isprintable() or mark == "\t")


def _opening(value: str) -> str:
    return '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""


def _closed(value: str, quotes: str) -> bool:
    return value.endswith(quotes) and len(value) >= 2 * len(quotes)
