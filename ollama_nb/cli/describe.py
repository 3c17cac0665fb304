"""From Typer's declarations to what the argument reader and the help need: names, kinds and counts."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from ollama_nb.cli.argv import Command, Flag


def commands(app: typer.Typer, aliases: Mapping[str, str], hidden: set[str]) -> dict[str, Command]:
    """Every command of the app by name, in the order of their declaration; ``hidden`` aliases are not told."""
    found = {}
    for info in app.registered_commands:
        assert info.callback is not None
        name = info.name or info.callback.__name__
        told = tuple(alias for alias, target in aliases.items() if target == name and alias not in hidden)
        found[name] = _command(name, info.callback, info.help or "", told)
    return found


def _command(name: str, function: Callable[..., Any], text: str, aliases: tuple[str, ...]) -> Command:
    flags: list[Flag] = []
    usage, least, most = "", 0, 0
    for kind, declared, required in _parameters(function):
        if isinstance(declared, OptionInfo):
            flags.append(_flag(kind, declared))
            continue
        usage += f" {declared.metavar}"
        least += required
        most = -1 if kind is list or most < 0 else most + 1
    return Command(name, tuple(flags), least, None if most < 0 else most, usage, text, aliases)


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[type, OptionInfo | ArgumentInfo, bool]]:
    """Each parameter's type without its ``| None``, its declaration, and whether it must be given."""
    defaults = inspect.signature(function).parameters
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name == "return":
            continue
        kind, declared = get_args(hint)
        if isinstance(kind, types.UnionType):
            kind = next(member for member in get_args(kind) if member is not types.NoneType)
        yield get_origin(kind) or kind, declared, defaults[name].default is inspect.Parameter.empty


def _flag(kind: type, declared: OptionInfo) -> Flag:
    # Inside Annotated, what Typer's signature calls the default is the first of the names.
    declarations = (declared.default, *(declared.param_decls or ()))
    names = [name for declaration in declarations for name in str(declaration).split("/")]
    longs = [name for name in names if name.startswith("--")]
    short = next((name for name in names if name not in longs), "")
    word = {bool: "bool", int: "int"}.get(kind, "string")
    return Flag(longs[0], short, word, declared.help or "", no=longs[1] if len(longs) > 1 else "")
