"""Parse Go templates: the nodes of the tree, and the parser that builds it from tokens.

Nodes are frozen and have a line number. A ``Block`` is a tuple of nodes; a missing block is None. The parser rejects
what Go rejects, with the line number.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ollama_nb.errors import TemplateError
from ollama_nb.template.funcs import NAMES
from ollama_nb.template.lexer import Token, TokenKind, number, tokens, unquote


@dataclass(frozen=True, slots=True)
class Dot:
    """``.``"""

    line: int


@dataclass(frozen=True, slots=True)
class Nil:
    line: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant: bool, int, float or string."""

    line: int
    value: Any


@dataclass(frozen=True, slots=True)
class Field:
    """``.A.B``, relative to dot."""

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
class ChainNode:
    """``(…).A.B``: fields of a parenthesised pipeline or of a function's result."""

    line: int
    node: Operand
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CommandNode:
    """An operand with its arguments."""

    line: int
    args: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands joined by ``|``; ``names`` are the variables declared (or, with ``assigns``, assigned)."""

    line: int
    commands: tuple[CommandNode, ...]
    names: tuple[str, ...] = ()
    assigns: bool = False


Operand = Dot | Nil | Literal | Field | Variable | Identifier | ChainNode | Pipe


@dataclass(frozen=True, slots=True)
class TextNode:
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """``{{ pipeline }}``: printed, unless it declares or assigns."""

    line: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """The common base of ``if``, ``with`` and ``range``."""

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
class TemplateCall:
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


Node = TextNode | Action | If | With | Range | TemplateCall | Break | Continue
Block = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: the main block, the ``define``d blocks, and the lower-case names that they use."""

    main: Block
    defined: Mapping[str, Block] = field(default_factory=dict)
    vars: frozenset[str] = frozenset()


def names_used(*blocks: Block) -> frozenset[str]:
    """Return the lower-case path components of all fields and variables, except of chains on parentheses."""
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
    elif isinstance(node, Action | TemplateCall):
        yield from _names(node.pipe)
    elif isinstance(node, Branch):
        yield from _names(node.pipe)
        for inner in node.body + (node.orelse or ()):
            yield from _names(inner)


MAX_NESTING = 100  # levels
_CONSTANTS = {"true": True, "false": False}
_BRANCHES: dict[str, type[Branch]] = {"if": If, "with": With, "range": Range}


@lru_cache(maxsize=64)
def parse(text: str) -> Template:
    """Parse a template. Raises TemplateError (``template line 3: …``)."""
    try:
        return _Parser(tokens(text), NAMES).template()
    except RecursionError:
        raise TemplateError("template nested too deeply") from None


class _Parser:
    def __init__(self, items: list[Token], functions: Container[str]) -> None:
        self._tokens = items
        self._at = 0
        self._functions = functions
        self._defined: dict[str, Block] = {}
        self._variables = ["$"]
        self._ranges = 0
        self._depth = 0

    # Blocks

    def template(self) -> Template:
        main: list[Node] = []
        while self._peek().kind is not TokenKind.EOF:
            if self._peek().kind is TokenKind.OPEN and self._tokens[self._at + 1].text == "define":
                self._define()
                continue
            node = self._node()
            if isinstance(node, Token):
                raise self._unexpected(node, "template")
            main.append(node)
        block = tuple(main)
        return Template(block, self._defined, names_used(block, *self._defined.values()))

    def _block(self, inside: str) -> tuple[Block, Token]:
        """Parse nodes up to ``{{end}}`` or ``{{else``, and return them with that token."""
        nodes: list[Node] = []
        while True:
            if self._peek().kind is TokenKind.EOF:
                raise self._error(f"unexpected end of template inside {{{{{inside}}}}}", self._peek())
            node = self._node()
            if isinstance(node, Token):
                return tuple(nodes), node
            nodes.append(node)

    def _node(self) -> Node | Token:
        """Parse the next node, or return the token of an ``end`` or ``else``."""
        token = self._next()
        if token.kind is TokenKind.TEXT:
            return TextNode(token.line, token.text)
        word = self._peek()
        if word.kind is not TokenKind.KEYWORD:
            return Action(word.line, self._pipe("command", TokenKind.CLOSE))
        self._next()
        if word.text in _BRANCHES:
            return self._nested(word)
        if word.text == "end":
            self._expect(TokenKind.CLOSE, "end")
            return word
        if word.text == "else":
            if self._peek().text not in ("if", "with") or self._peek().kind is not TokenKind.KEYWORD:
                self._expect(TokenKind.CLOSE, "else")
            return word
        if word.text == "template":
            return self._call(word)
        if word.text == "block":
            return self._block_action(word)
        if word.text == "define":
            raise self._unexpected(word, "command")
        return self._jump(word)

    def _nested(self, word: Token) -> Node:
        self._deeper(word)
        scope = len(self._variables)
        pipe = self._pipe(word.text, TokenKind.CLOSE)
        self._ranges += word.text == "range"
        body, stop = self._block(word.text)
        self._ranges -= word.text == "range"
        orelse = self._orelse(word) if stop.text == "else" else None
        del self._variables[scope:]
        self._depth -= 1
        return _BRANCHES[word.text](word.line, pipe, body, orelse)  # type: ignore[return-value]

    def _orelse(self, word: Token) -> Block:
        chained = self._peek()
        if chained.kind is TokenKind.KEYWORD and chained.text == word.text != "range":
            return (self._nested(self._next()),)  # `else if` and `else with` share the outer end
        if chained.kind is TokenKind.KEYWORD:
            raise self._unexpected(chained, f"else of {word}")
        block, stop = self._block("else")
        if stop.text != "end":
            raise self._error(f"expected {{{{end}}}}, found {stop}", stop)
        return block

    def _jump(self, word: Token) -> Node:
        if not self._ranges:
            raise self._error(f"{word} outside {{{{range}}}}", word)
        self._expect(TokenKind.CLOSE, str(word))
        return Break(word.line) if word.text == "break" else Continue(word.line)

    def _call(self, word: Token) -> TemplateCall:
        name = self._name("template clause")
        if self._peek().kind is TokenKind.CLOSE:
            raise self._error(f"undefined template specified: {{{{template {name!r}}}}} needs an argument", word)
        return TemplateCall(word.line, name, self._pipe("template clause", TokenKind.CLOSE))

    def _block_action(self, word: Token) -> TemplateCall:
        name = self._name("block clause")
        pipe = self._pipe("block clause", TokenKind.CLOSE)
        self._add(name, self._separate("block clause"), word)
        return TemplateCall(word.line, name, pipe)

    def _define(self) -> None:
        self._next()
        word = self._next()
        name = self._name("define clause")
        self._expect(TokenKind.CLOSE, "define clause")
        self._add(name, self._separate("define clause"), word)

    def _separate(self, context: str) -> Block:
        """Parse the body of a separate template: with its own variables, and outside of ranges."""
        outer, self._variables, self._ranges = (self._variables, self._ranges), ["$"], 0
        self._deeper(self._peek())
        body, stop = self._block(context)
        self._depth -= 1
        self._variables, self._ranges = outer
        if stop.text != "end":
            raise self._unexpected(stop, context)
        return body

    def _add(self, name: str, body: Block, word: Token) -> None:
        """Add a definition. As in Go, a blank body replaces nothing, and two other bodies of one name are an error."""
        if not _blank(self._defined.get(name, ())):
            if not _blank(body):
                raise self._error(f"multiple definition of template {name!r}", word)
            return
        self._defined[name] = body

    def _name(self, context: str) -> str:
        token = self._next()
        if token.kind not in (TokenKind.STRING, TokenKind.RAW):
            raise self._unexpected(token, context)
        return self._string(token)

    # Pipelines

    def _pipe(self, context: str, end: TokenKind) -> Pipe:
        line = self._peek().line
        names, assigns = self._declarations(context)
        commands: list[CommandNode] = []
        while self._peek().kind is not end:
            commands.append(self._command(context))
        if not commands:
            raise self._error(f"missing value for {context}", self._peek())
        self._next()
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command.args[0], Literal | Dot | Nil):
                raise self._error(f"non executable command in pipeline stage {stage}", self._peek())
        return Pipe(line, tuple(commands), names, assigns)

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        names: list[str] = []
        while self._peek().kind is TokenKind.VARIABLE:
            follower = self._tokens[self._at + 1]
            if follower.kind not in (TokenKind.DECLARE, TokenKind.ASSIGN, TokenKind.COMMA):
                break
            names.append(self._next().text)
            self._next()
            self._variables.append(names[-1])
            if follower.kind is not TokenKind.COMMA:
                return tuple(names), follower.kind is TokenKind.ASSIGN
            if context != "range" or len(names) > 1:
                raise self._error(f"too many declarations in {context}", follower)
            if self._peek().kind not in (TokenKind.VARIABLE, TokenKind.CLOSE, TokenKind.RIGHT):
                raise self._error("range can only initialize variables", follower)
        return tuple(names), False

    def _command(self, context: str) -> CommandNode:
        line = self._peek().line
        args: list[Operand] = []
        while (operand := self._operand()) is not None:
            args.append(operand)
            follower = self._peek()
            if follower.kind in (TokenKind.CLOSE, TokenKind.RIGHT, TokenKind.PIPE):
                break
            if not follower.spaced:
                raise self._unexpected(follower, "operand")
        if not args:
            raise self._unexpected(self._peek(), context)
        if self._peek().kind is TokenKind.PIPE:
            self._next()  # Go accepts a trailing bar
        return CommandNode(line, tuple(args))

    def _operand(self) -> Operand | None:
        node = self._term()
        if node is None or self._peek().kind is not TokenKind.FIELD or self._peek().spaced:
            return node
        if isinstance(node, Literal | Dot | Nil):
            raise self._error(f"unexpected {self._peek()} after a constant", self._peek())
        path = self._path()
        if isinstance(node, Field):
            return Field(node.line, node.path + path)
        if isinstance(node, Variable):
            return Variable(node.line, node.name, path)
        return ChainNode(node.line, node, path)

    def _path(self) -> tuple[str, ...]:
        path: list[str] = []
        while self._peek().kind is TokenKind.FIELD and not self._peek().spaced:
            path.append(self._next().text[1:])
        return tuple(path)

    def _term(self) -> Operand | None:
        token = self._peek()
        if token.kind not in _STARTS_TERM:
            return None
        self._next()
        if token.kind is TokenKind.LEFT:
            self._deeper(token)
            pipe = self._pipe("parenthesized pipeline", TokenKind.RIGHT)
            self._depth -= 1
            return pipe
        if token.kind is TokenKind.DOT:
            return Dot(token.line)
        if token.kind is TokenKind.FIELD:
            return Field(token.line, (token.text[1:],))
        if token.kind is TokenKind.VARIABLE:
            if token.text not in self._variables:
                raise self._error(f'undefined variable "{token.text}"', token)
            return Variable(token.line, token.text)
        if token.kind is TokenKind.WORD:
            return self._word(token)
        return Literal(
            token.line, self._string(token) if token.kind in (TokenKind.STRING, TokenKind.RAW) else self._number(token)
        )

    def _word(self, token: Token) -> Operand:
        if token.text == "nil":
            return Nil(token.line)
        if token.text in _CONSTANTS:
            return Literal(token.line, _CONSTANTS[token.text])
        if token.text not in self._functions:
            raise self._error(f'function "{token.text}" not defined', token)
        return Identifier(token.line, token.text)

    def _string(self, token: Token) -> str:
        if token.kind is TokenKind.RAW:
            return token.text[1:-1].replace("\r", "")
        return self._unquoted(token)

    def _number(self, token: Token) -> int | float:
        if token.kind is TokenKind.CHAR:
            text = self._unquoted(token)
            if len(text) != 1:
                raise self._error(f"malformed character constant: {token.text}", token)
            return ord(text)
        try:
            return number(token.text)
        except ValueError as error:
            raise self._error(f"{error}: {token.text!r}", token) from None

    def _unquoted(self, token: Token) -> str:
        try:
            return unquote(token.text)
        except ValueError:
            raise self._error(f"invalid syntax in {token.text}", token) from None

    # Tokens

    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        if token.kind is not TokenKind.EOF:
            self._at += 1
        return token

    def _expect(self, kind: TokenKind, context: str) -> None:
        token = self._next()
        if token.kind is not kind:
            raise self._unexpected(token, context)

    def _deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._error(f"more than {MAX_NESTING} levels of nesting", token)

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        return self._error(f"unexpected {token} in {context}", token)

    def _error(self, what: str, token: Token) -> TemplateError:
        return TemplateError(f"template line {token.line}: {what}")


_STARTS_TERM = {
    TokenKind.LEFT, TokenKind.DOT, TokenKind.FIELD, TokenKind.VARIABLE, TokenKind.WORD, TokenKind.STRING,
    TokenKind.RAW, TokenKind.CHAR, TokenKind.NUMBER,
}  # fmt: skip


def _blank(block: Block) -> bool:
    return all(isinstance(node, TextNode) and not node.text.strip() for node in block)
