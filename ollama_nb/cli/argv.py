"""A command line, read as Ollama's own parser reads it: into the arguments of the function that does the work.

Flags may stand anywhere; a bool takes ``=false``; ``--think`` takes a value only with ``=``; errors have cobra's words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ollama_nb.errors import BadRequest

# A flag that may go without its value, and what it then means.
BARE_VALUES = {"--think": "true"}
_BOOLS = {**dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
          **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)}  # fmt: skip
_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Flag:
    """``kind`` is ``bool``, ``int`` or ``string``; ``parameter`` is the function's name for it."""

    long: str
    short: str = ""
    kind: str = "string"
    help: str = ""
    parameter: str = ""

    @property
    def names(self) -> str:
        return f"{self.short}, {self.long}" if self.short else self.long


@dataclass(frozen=True, slots=True)
class Word:
    """A positional argument; ``many``: it takes all that are left."""

    parameter: str
    required: bool = True
    many: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """What a command takes, and the function that does it."""

    name: str
    flags: tuple[Flag, ...] = ()
    words: tuple[Word, ...] = ()
    function: Callable[..., Any] | None = None
    usage: str = ""
    help: str = ""
    aliases: tuple[str, ...] = ()

    def flag(self, name: str) -> Flag | None:
        return next((flag for flag in self.flags if name in (flag.long, flag.short)), None)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was given: flags by their long names, words in order."""

    flags: Mapping[str, bool | int | str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    wants_help: bool = False

    def arguments(self, command: Command) -> dict[str, Any]:
        """Keyword arguments for the command's function; what was not given is left to its defaults."""
        found: dict[str, Any] = {f.parameter: self.flags[f.long] for f in command.flags if f.long in self.flags}
        left = [*self.words]
        for word in command.words:
            if word.many:
                found[word.parameter] = left
            elif left:
                found[word.parameter] = left.pop(0)
        return found


def find_command(args: Sequence[str], root: Command) -> tuple[str, list[str]]:
    """The first word that is no flag, and everything else in order; ``""`` when there is none.

    Flags before the command belong to it; one that the root does not know is taken to have its value after it.
    """
    at = 0
    while at < len(args):
        arg = args[at]
        if arg == "--":
            break
        if not arg.startswith("-") or arg == "-":
            return arg, [*args[:at], *args[at + 1 :]]
        flag = root.flag(arg)
        alone = "=" in arg or (flag is not None and flag.kind == "bool") or (not arg.startswith("--") and len(arg) > 2)
        at += 1 if alone or arg in ("-h", "--help") or arg in BARE_VALUES else 2
    return "", [*args]


def parse(command: Command, args: Sequence[str]) -> Parsed:
    """Take the arguments of a command apart. Raises BadRequest in cobra's words."""
    flags: dict[str, bool | int | str] = {}
    words: list[str] = []
    rest = [*args]
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            words += rest
            break
        if arg in ("--help", "-h"):
            return Parsed(wants_help=True)
        if arg.startswith("--"):
            _long(command, arg, rest, flags)
        elif arg.startswith("-") and arg != "-":
            _shorts(command, arg, rest, flags)
        else:
            words.append(arg)
    _check_count(command, len(words))
    return Parsed(flags, tuple(words))


def _check_count(command: Command, count: int) -> None:
    least = sum(word.required for word in command.words)
    if any(word.many for word in command.words):
        if count < least:
            raise BadRequest(f"requires at least {least} arg(s), only received {count}")
    elif count != least:
        raise BadRequest(f"accepts {least} arg(s), received {count}")


def _long(command: Command, arg: str, rest: list[str], flags: dict[str, bool | int | str]) -> None:
    name, equals, value = arg.partition("=")
    flag = command.flag(name)
    if flag is None or len(name) < 3:
        raise BadRequest(f"unknown flag: {name}")
    if not equals:
        if flag.kind == "bool" or name in BARE_VALUES:
            value = BARE_VALUES.get(name, "true")
        elif rest:
            value = rest.pop(0)
        else:
            raise BadRequest(f"flag needs an argument: {name}")
    flags[flag.long] = _checked(flag, value)


def _shorts(command: Command, arg: str, rest: list[str], flags: dict[str, bool | int | str]) -> None:
    """``-v``, several bools in one, ``-fVALUE``, ``-f=VALUE`` or ``-f VALUE``."""
    letters = arg[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = command.flag(f"-{letter}")
        if flag is None:
            raise BadRequest(f"unknown shorthand flag: '{letter}' in {arg}")
        if letters.startswith("="):
            value, letters = letters[1:], ""
        elif flag.kind == "bool":
            value = "true"
        elif letters:
            value, letters = letters, ""
        elif rest:
            value = rest.pop(0)
        else:
            raise BadRequest(f"flag needs an argument: '{letter}' in {arg}")
        flags[flag.long] = _checked(flag, value)


def _checked(flag: Flag, value: str) -> bool | int | str:
    """The value as Go's strconv would take it, or its complaint."""
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    wrong = f'invalid argument {quoted} for "{flag.names}" flag: strconv.'
    if flag.kind == "bool":
        if value not in _BOOLS:
            raise BadRequest(f"{wrong}ParseBool: parsing {quoted}: invalid syntax")
        return _BOOLS[value]
    if flag.kind == "int":
        if not _WHOLE.fullmatch(value):
            raise BadRequest(f"{wrong}ParseInt: parsing {quoted}: invalid syntax")
        if len(value) > 20 or not -(1 << 63) <= int(value) < 1 << 63:
            raise BadRequest(f"{wrong}ParseInt: parsing {quoted}: value out of range")
        return int(value)
    return value
