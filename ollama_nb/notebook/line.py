"""Parse the line of a magic: words and options first, then a text that stays exactly as it was typed.

Nothing in the text is expanded, unquoted or joined. Only a text that is one quoted string loses its quotes, as in a
shell. `install` makes IPython accept lines whose text ends with a question mark.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from tokenize import TokenInfo
from typing import Any

from IPython.core.inputtransformer2 import EscapedCommand, MagicAssign
from IPython.core.interactiveshell import InteractiveShell

from ollama_nb.errors import BadRequest
from ollama_nb.verbs.table import BY_NAME, Flag

_BLANKS = re.compile(r"\s*")
_DOUBLE_DASH = re.compile(r"--(?=\s|$)")
_OPTION = re.compile(r"-[^\s=]+")
_QUOTED = re.compile(r""" "((?:[^"\\]|\\.)*)" | '([^']*)' """, re.VERBOSE | re.DOTALL)
_PLAIN = re.compile(r"[^\s'\"]+")
_MAGIC = re.compile(r"%ollama\s+\S")
_ESCAPE = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command.

    ``value`` is the placeholder of its value in the help; empty for a flag. An ``optional`` value is attached with
    ``=``.
    """

    name: str
    value: str = ""
    help: str = ""
    short: str = ""
    optional: bool = False

    @classmethod
    def of(cls, flag: Flag) -> Option:
        """The option of a flag that the terminal program has too."""
        value = "" if flag.kind == "bool" else flag.value or "VALUE"
        return cls(flag.long, value, f"{flag.help[0].lower()}{flag.help[1:]}", flag.short, optional=bool(flag.bare))

    @property
    def spelled(self) -> str:
        """The form that the help shows: ``-o, --output NAME``."""
        names = f"{self.short}, {self.name}" if self.short else self.name
        if not self.value:
            return names
        return f"{names}[={self.value}]" if self.optional else f"{names} {self.value}"


def shared_options(verb: str, *names: str) -> tuple[Option, ...]:
    """The options of a verb of the terminal program; only those with ``names``, if any are given."""
    return tuple(Option.of(flag) for flag in BY_NAME[verb].flags if not names or flag.long in names)


@dataclass(frozen=True, slots=True)
class Line:
    """A parsed line: leading words, all values of each option, and the text (None: no text).

    ``stray`` is a known option inside the text, where it has no effect; may be empty.
    """

    words: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    text: str | None = None
    stray: str = ""

    def get(self, name: str) -> str | None:
        """The last value of an option; None if the option was not given."""
        return self.options[name][-1] if name in self.options else None

    def has(self, name: str) -> bool:
        return name in self.options


def parse_line(line: str, options: Iterable[Option] = (), *, words: int | None = None) -> Line:
    """Parse ``line``. The text begins after ``words`` words; with ``words`` None there is no text.

    Options may appear anywhere before the text; ``--`` ends them. They may also follow a text that is one quoted
    string. Raises BadRequest for an unknown option, a missing value or an unclosed quote.
    """
    options = tuple(options)
    scanner = _Scanner(line, options)
    found: list[str] = []
    text = None
    while (kind := scanner.next()) != "end":
        if kind == "option":
            scanner.take_option()
        elif words is None or len(found) < words:
            found.append(scanner.take_word())
        else:
            text = scanner.take_text(options)
    given = {name: tuple(values) for name, values in scanner.given.items()}
    return Line(tuple(found), given, text, scanner.stray(text or ""))


class _Scanner:
    """A position in the line, and the options so far."""

    def __init__(self, line: str, options: tuple[Option, ...]) -> None:
        self._line, self._at, self._options_ended = line, 0, False
        self._known = {name: option for option in options for name in (option.name, option.short) if name}
        self.given: dict[str, list[str]] = {}

    def next(self) -> str:
        """The kind of the next item: ``option``, ``word`` or ``end``."""
        self._take(_BLANKS)
        if not self._options_ended and self._take(_DOUBLE_DASH):
            self._options_ended = True
            self._take(_BLANKS)
        if self._at == len(self._line):
            return "end"
        return "option" if not self._options_ended and _OPTION.match(self._line, self._at) else "word"

    def take_option(self) -> None:
        match = self._take(_OPTION)
        assert match is not None
        option = self._find(match[0])
        attached = self._line.startswith("=", self._at)
        if attached:
            self._at += 1
            value = self.take_word()
            if not option.value:
                raise BadRequest(f"`{match[0]}` takes no value")
        elif option.value and not option.optional:
            if self.next() == "end":
                raise BadRequest(f"flag needs an argument: {match[0]}")
            value = self.take_word()
        else:
            value = ""
        self.given.setdefault(option.name, []).append(value)

    def take_word(self) -> str:
        """Take one word without its quotes. A backslash escapes inside double quotes only."""
        pieces: list[str] = []
        while True:
            if quoted := self._take(_QUOTED):
                pieces.append(_unquoted(quoted))
            elif plain := self._take(_PLAIN):
                pieces.append(plain[0])
            elif self._line[self._at : self._at + 1] in ("'", '"'):
                raise BadRequest(f"no closing quote: {self._line[self._at :]}")
            else:
                return "".join(pieces)

    def take_text(self, options: tuple[Option, ...]) -> str:
        """Take the rest of the line. A quoted string is unquoted if only options follow it."""
        rest, self._at = self._line[self._at :], len(self._line)
        quoted = _QUOTED.match(rest)
        if quoted is None:
            return rest
        tail = rest[quoted.end() :]
        if not tail.strip():
            return _unquoted(quoted)
        if self._options_ended or not re.match(r"\s+-", tail):
            return rest
        after = parse_line(tail, options, words=0)
        if after.text is not None:
            return rest
        for name, values in after.options.items():
            self.given.setdefault(name, []).extend(values)
        return _unquoted(quoted)

    def stray(self, text: str) -> str:
        """The first known option in ``text``; empty without one, or after ``--``."""
        if self._options_ended:
            return ""
        return next((word for word in text.split() if word.partition("=")[0] in self._known), "")

    def _find(self, given: str) -> Option:
        name = given.replace("_", "-") if given.startswith("--") else given
        if option := self._known.get(name):
            return option
        near = difflib.get_close_matches(name, self._known, n=1, cutoff=0.7)
        hint = f"Did you mean `{near[0]}`?" if near else "Put `--` before a text that begins with a dash."
        raise BadRequest(f"unknown flag: {given}. {hint}")

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._line, self._at)
        if match:
            self._at = match.end()
        return match


def _unquoted(quoted: re.Match[str]) -> str:
    double, single = quoted.groups()
    return single if double is None else _ESCAPE.sub(r"\1", double)


# IPython's input transformers


class _BeforeHelp:
    """An input transformer for ``%ollama`` lines that takes precedence over IPython's help for ``…?``.

    Without it, IPython reads ``%ollama run m Why is the sky blue?`` as a request for help on ``blue``. ``%ollama?``
    alone still shows the help of the magic.
    """

    priority = 1

    def __init__(self, start: tuple[int, int]) -> None:
        super().__init__(start)  # type: ignore[call-arg]
        # IPython applies the leftmost match; its help would start at `name` in `name = %ollama …?`.
        self.column, self.start_col = start[1], -1

    @classmethod
    def find(cls, tokens_by_line: list[list[TokenInfo]]) -> Any:
        for tokens in tokens_by_line:
            found = super().find([tokens])  # type: ignore[misc]
            if found is not None and any(
                _MAGIC.match(token.line, found.column)
                for token in tokens
                if token.start == (found.start_line + 1, found.column)
            ):
                return found
        return None

    def transform(self, lines: list[str]) -> Any:
        self.start_col = self.column
        return super().transform(lines)  # type: ignore[misc]


class OllamaLine(_BeforeHelp, EscapedCommand):
    """``%ollama …``"""


class OllamaAssign(_BeforeHelp, MagicAssign):
    """``name = %ollama …``"""


def install(shell: InteractiveShell) -> None:
    """Add the transformers to the shell, once."""
    transformers = shell.input_transformer_manager.token_transformers
    known = {transformer.__name__ for transformer in transformers}
    transformers[:0] = [kind for kind in (OllamaLine, OllamaAssign) if kind.__name__ not in known]
