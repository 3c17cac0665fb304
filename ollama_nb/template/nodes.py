"""The tree of a Go template: what the parser makes, what the interpreter runs, what the fact finders walk.

Nodes are frozen; every one knows its line. A list of nodes is a ``Block`` (a tuple), a ``None`` block was not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Dot:
    """``.``"""

    line: int


@dataclass(frozen=True, slots=True)
class Nil:
    line: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A bool, int, float or string constant."""

    line: int
    value: Any


@dataclass(frozen=True, slots=True)
class Field:
    """``.A.B`` on dot."""

    line: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """``$x.A.B``; ``name`` keeps its dollar sign, and ``$`` alone is the root."""

    line: int
    name: str
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identifier:
    """The name of a function."""

    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """``(…).A.B``: fields of a parenthesised pipeline or of a function's result."""

    line: int
    node: Operand
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """An operand with its arguments."""

    line: int
    args: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands joined by ``|``; ``names`` are the variables declared (or, with ``assigns``, assigned)."""

    line: int
    commands: tuple[Command, ...]
    names: tuple[str, ...] = ()
    assigns: bool = False


Operand = Dot | Nil | Literal | Field | Variable | Identifier | Chain | Pipe


@dataclass(frozen=True, slots=True)
class Text:
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """``{{ pipeline }}``: printed, unless it declares or assigns."""

    line: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """What ``if``, ``with`` and ``range`` have in common."""

    line: int
    pipe: Pipe
    body: Block
    orelse: Block | None = None


class If(Branch):
    __slots__ = ()


class With(Branch):
    __slots__ = ()


class Range(Branch):
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Call:
    """``{{ template "name" pipeline }}``."""

    line: int
    name: str
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Break:
    line: int


@dataclass(frozen=True, slots=True)
class Continue:
    line: int


Node = Text | Action | If | With | Range | Call | Break | Continue
Block = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: the main block, the ``define``d ones, and the lower-cased names that all of them use."""

    main: Block
    defined: Mapping[str, Block] = field(default_factory=dict)
    vars: frozenset[str] = frozenset()


def names_used(*blocks: Block) -> frozenset[str]:
    """Lower-cased path components of all fields and variables; a chain on parentheses is not looked into."""
    return frozenset(name.lower() for block in blocks for node in block for name in _names(node))


def _names(node: Node | Operand) -> Iterator[str]:
    if isinstance(node, Field):
        yield from node.path
    elif isinstance(node, Variable):
        yield node.name
        yield from node.path
    elif isinstance(node, Pipe):
        for command in node.commands:
            for arg in command.args:
                yield from _names(arg)
    elif isinstance(node, Action | Call):
        yield from _names(node.pipe)
    elif isinstance(node, Branch):
        yield from _names(node.pipe)
        for inner in node.body + (node.orelse or ()):
            yield from _names(inner)
