"""A command line as Ollama's own parser reads it, made plain for Typer: flags first, as ``--name=value``, then ``--``.

Flags may stand anywhere; a bool takes ``=false``; ``--think`` takes a value only with ``=``; errors have cobra's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ollama_nb.errors import BadRequest

# A flag that may go without its value, and what it then means.
BARE_VALUES = {"--think": "true"}
_BOOLS = {**dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
          **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)}  # fmt: skip
_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Flag:
    """``kind`` is ``bool``, ``int`` or ``string``; ``no`` is the flag that says False aloud, where that matters."""

    long: str
    short: str = ""
    kind: str = "string"
    help: str = ""
    no: str = ""

    @property
    def names(self) -> str:
        return f"{self.short}, {self.long}" if self.short else self.long


@dataclass(frozen=True, slots=True)
class Command:
    """What a command takes. ``most`` is None for "any number"."""

    name: str
    flags: tuple[Flag, ...] = ()
    least: int = 0
    most: int | None = 0
    usage: str = ""
    help: str = ""
    aliases: tuple[str, ...] = ()

    def flag(self, name: str) -> Flag | None:
        return next((flag for flag in self.flags if name in (flag.long, flag.short)), None)


@dataclass(frozen=True, slots=True)
class Parsed:
    """``flags`` maps long names to their last values, bools as ``true`` or ``false``."""

    flags: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    wants_help: bool = False

    def plain(self, command: Command) -> list[str]:
        """The arguments for Typer; nothing in them can be taken for something else."""
        plain = []
        for flag in command.flags:
            value = self.flags.get(flag.long)
            if value is None:
                continue
            if flag.kind != "bool":
                plain.append(f"{flag.long}={value}")
            elif value == "true":
                plain.append(flag.long)
            elif flag.no:
                plain.append(flag.no)
        return [*plain, "--", *self.words]


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
    flags: dict[str, str] = {}
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
    check_count(command, len(words))
    return Parsed(flags, tuple(words))


def check_count(command: Command, count: int) -> None:
    if command.most == command.least != count:
        raise BadRequest(f"accepts {command.least} arg(s), received {count}")
    if count < command.least:
        raise BadRequest(f"requires at least {command.least} arg(s), only received {count}")


def _long(command: Command, arg: str, rest: list[str], flags: dict[str, str]) -> None:
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


def _shorts(command: Command, arg: str, rest: list[str], flags: dict[str, str]) -> None:
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


def _checked(flag: Flag, value: str) -> str:
    """The value as Go's strconv would take it, or its complaint."""
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    wrong = f'invalid argument {quoted} for "{flag.names}" flag: strconv.'
    if flag.kind == "bool":
        if value not in _BOOLS:
            raise BadRequest(f"{wrong}ParseBool: parsing {quoted}: invalid syntax")
        return "true" if _BOOLS[value] else "false"
    if flag.kind == "int":
        if not _WHOLE.fullmatch(value):
            raise BadRequest(f"{wrong}ParseInt: parsing {quoted}: invalid syntax")
        if len(value) > 20 or not -(1 << 63) <= int(value) < 1 << 63:
            raise BadRequest(f"{wrong}ParseInt: parsing {quoted}: value out of range")
    return value
