"""The command line, parsed as Ollama's own parser (cobra) does: into arguments of the function that runs the verb.

Flags are accepted anywhere; a bool accepts ``=false``; a flag with a bare meaning, such as ``--think``, takes a value
only with ``=``. Error messages are cobra's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ollama_nb.errors import BadRequest
from ollama_nb.verbs.table import VERBS, Flag, Verb

_BARE_FLAGS = {flag.long for verb in VERBS for flag in verb.flags if flag.bare}
_BOOLS = {**dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
          **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)}  # fmt: skip
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """The given flags by their long names, and the words in order."""

    flags: Mapping[str, bool | int | str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    wants_help: bool = False

    def arguments(self, verb: Verb) -> dict[str, Any]:
        """Keyword arguments for the verb's function; flags that were not given are left to its defaults."""
        found: dict[str, Any] = {f.parameter: self.flags[f.long] for f in verb.flags if f.long in self.flags}
        left = [*self.words]
        for word in verb.words:
            if word.many:
                found[word.parameter] = left
            elif left:
                found[word.parameter] = left.pop(0)
        return found


def split_command(args: Sequence[str], root: Verb) -> tuple[str, list[str]]:
    """The first word that is not a flag, ``""`` without one, and all other arguments in order.

    Flags before the command belong to it; a flag that the root does not know is assumed to be followed by its value.
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
        at += 1 if alone or arg in ("-h", "--help") or arg in _BARE_FLAGS else 2
    return "", [*args]


def parse_arguments(verb: Verb, args: Sequence[str]) -> ParsedLine:
    """Parse the arguments of a verb. Raises BadRequest with cobra's message."""
    flags: dict[str, bool | int | str] = {}
    words: list[str] = []
    rest = [*args]
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            words += rest
            break
        if arg in ("--help", "-h"):
            return ParsedLine(wants_help=True)
        if arg.startswith("--"):
            _parse_long_flag(verb, arg, rest, flags)
        elif arg.startswith("-") and arg != "-":
            _parse_short_flags(verb, arg, rest, flags)
        else:
            words.append(arg)
    _check_count(verb, len(words))
    return ParsedLine(flags, tuple(words))


def _check_count(verb: Verb, count: int) -> None:
    least = sum(word.required for word in verb.words)
    if any(word.many for word in verb.words):
        if count < least:
            raise BadRequest(f"requires at least {least} arg(s), only received {count}")
    elif least == len(verb.words):
        if count != least:
            raise BadRequest(f"accepts {least} arg(s), received {count}")
    elif not least <= count <= len(verb.words):
        raise BadRequest(f"accepts between {least} and {len(verb.words)} arg(s), received {count}")


def _parse_long_flag(verb: Verb, arg: str, rest: list[str], flags: dict[str, bool | int | str]) -> None:
    name, equals, value = arg.partition("=")
    flag = verb.flag(name)
    if flag is None or len(name) < 3:
        raise BadRequest(f"unknown flag: {name}")
    if not equals:
        if flag.kind == "bool" or flag.bare:
            value = flag.bare or "true"
        elif rest:
            value = rest.pop(0)
        else:
            raise BadRequest(f"flag needs an argument: {name}")
    flags[flag.long] = _convert(flag, value)


def _parse_short_flags(verb: Verb, arg: str, rest: list[str], flags: dict[str, bool | int | str]) -> None:
    """``-v``, several bools in one word, ``-fVALUE``, ``-f=VALUE`` or ``-f VALUE``."""
    letters = arg[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = verb.flag(f"-{letter}")
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
        flags[flag.long] = _convert(flag, value)


def _convert(flag: Flag, value: str) -> bool | int | str:
    """The value as Go's strconv parses it. Raises BadRequest with its message."""
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    prefix = f'invalid argument {quoted} for "{flag.names}" flag: strconv.'
    if flag.kind == "bool":
        if value not in _BOOLS:
            raise BadRequest(f"{prefix}ParseBool: parsing {quoted}: invalid syntax")
        return _BOOLS[value]
    if flag.kind == "int":
        if not _INTEGER.fullmatch(value):
            raise BadRequest(f"{prefix}ParseInt: parsing {quoted}: invalid syntax")
        if len(value) > 20 or not -(1 << 63) <= int(value) < 1 << 63:
            raise BadRequest(f"{prefix}ParseInt: parsing {quoted}: value out of range")
        return int(value)
    return value
