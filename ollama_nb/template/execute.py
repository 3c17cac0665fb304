"""Execute a parsed Go template: an interpreter with bounded time, memory and output, because templates are untrusted.

Only data is passed in and only text is returned. Every failure is a TemplateError with the line number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb.errors import TemplateError
from ollama_nb.template.funcs import FUNCTIONS, SHORT_CIRCUIT
from ollama_nb.template.parser import (
    Action,
    Block,
    Branch,
    Break,
    ChainNode,
    CommandNode,
    Dot,
    Field,
    Identifier,
    If,
    Literal,
    Nil,
    Node,
    Operand,
    Pipe,
    Range,
    Template,
    TemplateCall,
    TextNode,
    Variable,
)
from ollama_nb.template.values import (
    GoStruct,
    Stringer,
    TemplateFailure,
    is_slice,
    show_action,
    sorted_items,
    truth,
    type_name,
    valid_text,
)

MAX_CALLS = 60  # nested calls of templates


@dataclass(slots=True)
class Budget:
    """The budget of one execution: steps (one per node, command, or 64 created characters) and characters of output."""

    steps: int = 500_000
    output: int = 4 << 20


def execute(template: Template, data: Any, budget: Budget | None = None) -> str:
    """Execute a template with ``data`` and return its output. Raises TemplateError."""
    run = _Run(template, data, budget or Budget())
    try:
        run.block(data, template.main)
    except TemplateFailure as failure:
        raise TemplateError(f"template line {run.line}: {failure}") from None
    except RecursionError:
        raise TemplateError(f"template line {run.line}: nested too deeply") from None
    return valid_text("".join(run.out))


_MISSING: Any = object()  # the pipeline passed no value


class _Run:
    def __init__(self, template: Template, root: Any, budget: Budget) -> None:
        self.out: list[str] = []
        self.line = 1
        self._template = template
        self._budget = budget
        self._variables: list[tuple[str, Any]] = [("$", root)]
        self._calls = 0

    # Nodes. A block returns the Break or Continue node that ended it.

    def block(self, dot: Any, nodes: Block) -> Node | None:
        for node in nodes:
            if isinstance(node, TextNode):
                self._write(node.text)
                continue
            self._step(node.line)
            if isinstance(node, Action):
                value = self._pipe(dot, node.pipe)
                if not node.pipe.names:
                    self._write(value if isinstance(value, str) else self._charge(show_action(value)))
            elif isinstance(node, Branch):
                jump = self._range(dot, node) if isinstance(node, Range) else self._if_or_with(dot, node)
                if jump is not None:
                    return jump
            elif isinstance(node, TemplateCall):
                self._call(dot, node)
            else:
                return node
        return None

    def _if_or_with(self, dot: Any, node: Branch) -> Node | None:
        scope = len(self._variables)
        value = self._pipe(dot, node.pipe)
        if truth(value):
            jump = self.block(dot if isinstance(node, If) else value, node.body)
        else:
            jump = self.block(dot, node.orelse or ())
        del self._variables[scope:]
        return jump

    def _range(self, dot: Any, node: Range) -> Node | None:
        scope = len(self._variables)
        value = self._pipe(dot, node.pipe)
        empty = True
        jump: Node | None = None
        inner = len(self._variables)
        for key, item in self._items(value, node):
            empty = False
            self._step(node.line)
            self._bind(node.pipe, key, item, inner)
            jump = self.block(item, node.body)
            del self._variables[inner:]
            if isinstance(jump, Break):
                break
        jump = self.block(dot, node.orelse) if empty and node.orelse else None
        del self._variables[scope:]
        return None if isinstance(jump, Break) else jump  # as in Go, a break in the else-branch ends this range

    def _items(self, value: Any, node: Range) -> Iterable[tuple[Any, Any]]:
        if value is None:
            return ()
        if is_slice(value):
            return enumerate(value)
        if isinstance(value, Mapping):
            return sorted_items(value)
        if type(value) is int:
            if len(node.pipe.names) > 1:
                raise TemplateFailure(f"can't use {value} to iterate over more than one variable")
            return ((at, at) for at in range(value))
        raise TemplateFailure(f"range can't iterate over {type_name(value)}")

    def _bind(self, pipe: Pipe, key: Any, item: Any, top: int) -> None:
        """Assign the element to one variable, or key and element to two."""
        names = pipe.names
        values = (item,) if len(names) == 1 else (key, item)
        for at, (name, value) in enumerate(zip(names, values, strict=False)):
            if pipe.assigns:
                self._assign(name, value)
            else:
                self._variables[top - len(names) + at] = (name, value)

    def _call(self, dot: Any, node: TemplateCall) -> None:
        body = self._template.defined.get(node.name)
        if body is None:
            raise TemplateFailure(f"template {node.name!r} not defined")
        if self._calls >= MAX_CALLS:
            raise TemplateFailure(f"more than {MAX_CALLS} nested templates")
        value = self._pipe(dot, node.pipe)
        outer, self._variables = self._variables, [("$", value)]
        self._calls += 1
        self.block(value, body)
        self._calls -= 1
        self._variables = outer

    # Pipelines and operands

    def _pipe(self, dot: Any, pipe: Pipe) -> Any:
        value: Any = _MISSING
        for command in pipe.commands:
            value = self._command(dot, command, value)
        for name in pipe.names:
            if pipe.assigns:
                self._assign(name, value)
            else:
                self._variables.append((name, value))
        return value

    def _command(self, dot: Any, command: CommandNode, final: Any) -> Any:
        first, rest = command.args[0], command.args[1:]
        self._step(command.line)
        if isinstance(first, Identifier):
            return self._function(dot, first.name, rest, final)
        if rest or final is not _MISSING:
            raise TemplateFailure(f"can't give argument to non-function {_source(first)}")
        if isinstance(first, Nil):
            raise TemplateFailure("nil is not a command")
        return self._operand(dot, first)

    def _operand(self, dot: Any, operand: Operand) -> Any:
        if isinstance(operand, Field):
            return self._fields(dot, operand.path)
        if isinstance(operand, Variable):
            value = self._variable(operand.name)
            return self._fields(value, operand.path) if operand.path else value
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Dot):
            return dot
        if isinstance(operand, Pipe):
            return self._pipe(dot, operand)
        if isinstance(operand, Identifier):
            return self._function(dot, operand.name, (), _MISSING)
        if isinstance(operand, ChainNode):
            if isinstance(operand.node, Nil):
                raise TemplateFailure("indirection through explicit nil")
            return self._fields(self._operand(dot, operand.node), operand.path)
        return None

    def _function(self, dot: Any, name: str, args: tuple[Operand, ...], final: Any) -> Any:
        if name in SHORT_CIRCUIT:
            return self._and_or(dot, name, args, final)
        values = [self._operand(dot, arg) for arg in args]
        if final is not _MISSING:
            values.append(final)
        self._budget.steps -= 2  # a function costs more than a node
        value = FUNCTIONS[name].call(name, values)
        if is_slice(value):
            self._budget.steps -= len(value) >> 6
        return self._charge(value) if isinstance(value, str) else value

    def _and_or(self, dot: Any, name: str, args: tuple[Operand, ...], final: Any) -> Any:
        if not args and final is _MISSING:
            raise TemplateFailure(f"wrong number of args for {name}: want at least 1 got 0")
        value = final
        for arg in args:
            value = self._operand(dot, arg)
            if truth(value) == (name == "or"):
                return value
        return value if final is _MISSING else final

    def _fields(self, value: Any, path: tuple[str, ...]) -> Any:
        for at, name in enumerate(path):
            if value is None:
                # Go accepts a nil from a pipeline here, and rejects one from a map.
                if at == 0:
                    return None
                raise TemplateFailure(f"nil pointer evaluating interface {{}}.{name}")
            value = self._field(value, name)
        return value

    def _field(self, value: Any, name: str) -> Any:
        if isinstance(value, GoStruct):
            if name in value.methods:
                return self._charge(value.methods[name]())
            if name in value.fields:
                return value.fields[name]
        if name == "String" and isinstance(value, Stringer):
            return self._charge(value.go_string())
        if isinstance(value, Mapping):
            return value.get(name)
        raise TemplateFailure(f"can't evaluate field {name} in type {type_name(value)}")

    # Variables, output, budget

    def _variable(self, name: str) -> Any:
        for known, value in reversed(self._variables):
            if known == name:
                return value
        raise TemplateFailure(f"undefined variable: {name}")

    def _assign(self, name: str, value: Any) -> None:
        for at in range(len(self._variables) - 1, -1, -1):
            if self._variables[at][0] == name:
                self._variables[at] = (name, value)
                return
        raise TemplateFailure(f"undefined variable: {name}")

    def _write(self, text: str) -> None:
        self._budget.output -= len(text)
        if self._budget.output < 0:
            raise TemplateFailure("the prompt is too long")
        self.out.append(text)

    def _charge(self, text: str) -> str:
        """Charge for text that the template created: repeated doubling must not exhaust the memory."""
        self._budget.steps -= len(text) >> 6
        if len(text) > self._budget.output:
            raise TemplateFailure("a text is too long")
        return text

    def _step(self, line: int) -> None:
        self.line = line
        self._budget.steps -= 1
        if self._budget.steps < 0:
            raise TemplateFailure("the template takes too many steps")


def _source(operand: Operand) -> str:
    """Return the operand as error messages show it."""
    if isinstance(operand, Field | Variable | ChainNode):
        return (operand.name if isinstance(operand, Variable) else "") + "".join(f".{name}" for name in operand.path)
    return repr(operand.value) if isinstance(operand, Literal) else type(operand).__name__.lower()
