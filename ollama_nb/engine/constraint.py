"""Constrained decoding: JSON, JSON Schemas, GBNF grammars, regular expressions, choices and tool calls, by llguidance.

A reply matches its format, or the request is refused with the reason; no keyword is ignored. The sampler draws freely
and the drawn token is checked; only if it is not allowed, a mask over the vocabulary is computed and a second token
drawn. JSON is written on one line, as by ``json.dumps``: a small model that may write whitespace can do so forever.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from ollama_nb.engine import call_constraint
from ollama_nb.engine.constraint_tokenizer import make_tokenizer
from ollama_nb.engine.grammars import check_regex, choices_to_regex, gbnf_to_lark
from ollama_nb.engine.json_schema import find_innermost, find_keyword, parse_schema
from ollama_nb.engine.json_watch import JsonTables, JsonWatch
from ollama_nb.engine.llama import Floats, LlamaModel
from ollama_nb.engine.sampler import Sampler
from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.reply import call_grammar
from ollama_nb.reply.call_grammar import CallGrammar

MAX_REASON = 300  # characters of an error of the compiler
CACHE_SIZE = 16  # compiled formats per model
_COMPILER_STACK = 256 << 20  # bytes of address space; memory is only used as far as the compiler recurses
_FIRST_TOKENS = 4  # tokens tried to find out whether a grammar can match anything
_JSON_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}


_CALL_STYLE: Any = {**_JSON_STYLE, "item_separator": ", ?", "key_separator": ": ?"}
"""In tool calls, with or without a space after commas and colons: models were trained with one of both."""


class Constraint:
    """The state of one reply in its grammar."""

    def __init__(
        self,
        matcher: LLMatcher,
        model: LlamaModel,
        escapes: EscapeTable | None = None,
        watch: JsonWatch | None = None,
    ) -> None:
        self._matcher = matcher
        self._escapes, self._after_backslash = escapes, 0
        self._watch = watch
        self._n_vocab, self._eog = model.n_vocab, model.eog
        self._bits = np.zeros((model.n_vocab + 31) // 32, np.int32)

    def sample(self, sampler: Sampler, row: Floats, history: list[int]) -> int:
        """Sample a token that the grammar allows. Raises OllamaError when the grammar exceeds its limits."""
        token = sampler.sample(row, history)
        if not self.allows(token):
            allowed = self.allowed()
            token = sampler.sample_from(row, allowed) if len(allowed) else token
        if token in self._eog and not self._matcher.is_accepting():  # llguidance ends where no token is possible
            raise OllamaError("the format constraint failed: no token of this model can follow")
        if not self._matcher.consume_token(token):
            raise OllamaError(f"the format constraint failed: {_error_line(self._matcher.get_error())}")
        self._follow(token)
        return token

    def _follow(self, token: int) -> None:
        if self._escapes is not None:
            self._after_backslash = int(self._escapes.ends_in_backslash[self._after_backslash, token])
        if self._watch is not None:
            self._watch.consume(token)

    def allows(self, token: int) -> bool:
        """Return whether a token may come next; also False for some tokens that ``allowed`` includes if it must."""
        if self._escapes is not None and self._escapes.has_unicode[self._after_backslash, token]:
            return False
        if self._watch is not None and self._watch.refuses(token):
            return False
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> npt.NDArray[np.intp]:
        """Return all tokens that may come next, in ascending order."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        found = np.flatnonzero(np.unpackbits(self._bits.view(np.uint8), count=self._n_vocab, bitorder="little"))
        if self._watch is not None:
            found = self._watch.permitted(found)
        if self._escapes is None:
            return found
        plain = found[~self._escapes.has_unicode[self._after_backslash, found]]
        return plain if len(plain) else found  # some control characters have no other form

    def forced(self) -> list[int]:
        """Return the text that must come next, as the tokenizer splits it; the model might split it differently."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def forced_ending(self, max_tokens: int) -> list[int]:
        """Consume and return the rest of the reply where it is determined, up to ``max_tokens`` tokens.

        Return an empty list where there is still a choice or the end is further away. With this, a label costs only
        the decodes of its first, distinguishing tokens.
        """
        forced = self.forced()
        if not 0 < len(forced) <= max_tokens:
            return []
        consumed = self._matcher.try_consume_tokens(forced)
        if consumed == len(forced) and self.complete:
            for token in forced:
                self._follow(token)
            return forced
        self._matcher.rollback(consumed)
        return []

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())


class ConstraintCompiler:
    """Compiles formats for one model.

    llguidance's tokenizer is built on first use (0.7 s for 150,000 tokens). Any thread may call it.
    """

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._tokenizer: LLTokenizer | None = None
        self._pieces: list[bytes] = []
        self._escapes: EscapeTable | None = None
        self._tables: JsonTables | None = None
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, format: str) -> Constraint:
        """Return a constraint at its start. Raises BadRequest with the reason.

        ``format``: ``json``, the text of a JSON Schema, or a grammar, a regular expression, a JSON list of choices or
        a grammar of tool calls after the prefix ``grammar:``, ``regex:``, ``choices:`` or ``call:``.
        """
        with self._lock:
            matcher = self._cache.get(format)
            if matcher is None:
                matcher = self._cache[format] = self._compile(format)
                if len(self._cache) > CACHE_SIZE:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(format)
            matcher = matcher.deep_copy()
            if format.startswith(call_grammar.PREFIX):
                return self._of_calls(matcher, call_grammar.decode(format.removeprefix(call_grammar.PREFIX)))
            if format.startswith(("grammar:", "regex:", "choices:")):
                return Constraint(matcher, self._model)
            return self._of_json(matcher)

    def _of_calls(self, matcher: LLMatcher, grammar: CallGrammar) -> Constraint:
        return self._of_json(matcher, grammar.unquotable) if grammar.quoted else Constraint(matcher, self._model)

    def _of_json(self, matcher: LLMatcher, unquotable: Sequence[str] = ()) -> Constraint:
        assert self._tables is not None
        return Constraint(matcher, self._model, self._escapes, JsonWatch(self._tables, unquotable))

    def _compile(self, format: str) -> LLMatcher:
        is_call = format.startswith(call_grammar.PREFIX)
        kind, grammar = ("tools", self._translate_calls(format)) if is_call else translate_format(format)
        if self._tokenizer is None:
            self._pieces = self._model.pieces()
            self._escapes = EscapeTable(self._pieces)
            self._tables = JsonTables(self._pieces)
            self._tokenizer = make_tokenizer(self._model, self._pieces)
        matcher = _make_matcher(self._tokenizer, grammar)
        if matcher.is_error():
            text = matcher.get_error()
            if is_call:
                self._find_schema_error(format)
            reason = self._schema_error(text, format) if kind == "format" else _error_line(text)
            raise BadRequest(f"invalid {kind}: {reason}")
        if not self._can_start(matcher):
            raise BadRequest(f"invalid {kind}: it is too large, or nothing that this model can write matches it")
        return matcher

    def _translate_calls(self, format: str) -> str:
        grammar = call_grammar.decode(format.removeprefix(call_grammar.PREFIX))
        return LLMatcher.grammar_from_lark(call_constraint.to_lark(grammar, self._split_markup, _CALL_STYLE))

    def _split_markup(self, text: str) -> list[str | int]:
        """Special tokens of the model, and the text between them."""
        found: list[str | int] = []
        for token in self._model.tokenize(text, add_special=False):
            name = self._model.raw_piece(token).decode("utf-8", "replace")
            if self._model.is_markup(token) and name in text:
                before, _, text = text.partition(name)
                found += [before, token] if before else [token]
        return [*found, text] if text else found

    def _find_schema_error(self, format: str) -> None:
        """Raise BadRequest for the first schema of a call grammar that does not compile by itself."""
        assert self._tokenizer is not None
        grammar = call_grammar.decode(format.removeprefix(call_grammar.PREFIX))
        for value in call_constraint.json_values(grammar.body):
            if text := self._compiler_error(call_constraint.prepared(value)):
                raise BadRequest(f'tool "{value.tool}": {self._schema_error(text, value.schema, value.path)}')

    def _schema_error(self, text: str, format: str, place: str = "$") -> str:
        """Reduce an error of llguidance to one line with the keyword at fault and the path of its schema.

        ``place`` is the path of the schema ``format`` itself.
        """
        schema = {"type": "object"} if format == "json" else parse_schema(format)
        line = _error_line(text)
        if (found := re.match(r'Unimplemented keys: \["(.*?)"', line)) is not None:
            return f'unsupported schema keyword "{found[1]}" at {place}{find_keyword(found[1], schema)[1:]}'
        text, path = find_innermost(schema, self._compiler_error, text)
        line = _error_line(text)
        reason = next((message.format(line) for pattern, message in _SCHEMA_ERRORS if pattern.search(text)), line)
        return f"{reason} (at {place}{path[1:]})"

    def _compiler_error(self, schema: dict[str, Any]) -> str:
        """Return why a prepared schema does not compile, empty if it does."""
        assert self._tokenizer is not None
        text = json.dumps(schema, ensure_ascii=False)
        matcher = _make_matcher(self._tokenizer, LLMatcher.grammar_from_json_schema(text, overrides=_CALL_STYLE))
        return str(matcher.get_error()) if matcher.is_error() else ""

    def _can_start(self, matcher: LLMatcher) -> bool:
        """Return whether any token can come first. This is also what makes llguidance report an oversized pattern."""
        if matcher.is_accepting():
            return True
        allowed = Constraint(matcher.deep_copy(), self._model).allowed().tolist()
        first = [token for token in allowed if token not in self._model.eog][:_FIRST_TOKENS]
        return any(matcher.deep_copy().consume_token(token) for token in first)


class EscapeTable:
    """Which tokens write a character of a JSON string as ``\\u0061``, which the constraint refuses.

    The constraint compares property names as written, a parser after decoding: ``{"\\u0061": 1}`` would evade what a
    schema requires of the property ``a``. Strings need such escapes only for some control characters.

    The first index of both tables is 1 after text that ends in an open backslash, else 0; the second is the token.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.has_unicode: npt.NDArray[np.bool_] = np.zeros((2, len(pieces)), np.bool_)
        self.ends_in_backslash: npt.NDArray[np.bool_] = np.zeros((2, len(pieces)), np.bool_)
        for token, piece in enumerate(pieces):
            if b"\\" in piece or piece.startswith(b"u"):
                for after in (0, 1):
                    self.has_unicode[after, token], self.ends_in_backslash[after, token] = _scan(piece, bool(after))
            elif not piece:
                self.ends_in_backslash[1, token] = True


def _scan(piece: bytes, open_backslash: bool) -> tuple[bool, bool]:
    """Return whether a piece writes a Unicode escape and whether it ends in an open backslash."""
    has_unicode = False
    for byte in piece:
        has_unicode |= open_backslash and byte == ord("u")
        open_backslash = not open_backslash and byte == ord("\\")
    return has_unicode, open_backslash


def translate_format(format: str) -> tuple[str, str]:
    """Return the kind of a format, for error messages, and its grammar for llguidance. Raises BadRequest."""
    kind, colon, text = format.partition(":")
    if colon:
        match kind:
            case "grammar":
                return kind, LLMatcher.grammar_from_lark(gbnf_to_lark(text))
            case "regex":
                return kind, LLMatcher.grammar_from_regex(check_regex(text))
            case "choices":
                return kind, LLMatcher.grammar_from_regex(choices_to_regex(text))
    schema = {"type": "object"} if format == "json" else parse_schema(format)
    try:
        return "format", LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_STYLE)
    except ValueError as error:
        raise BadRequest(f"invalid format: {_error_line(str(error))}") from error


def _make_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compile on a thread with a large stack: the compiler recurses for each rule that a rule refers to.

    Raises BadRequest where the compiler raises, panics included.
    """
    found: list[LLMatcher] = []
    failures: list[BaseException] = []

    def compile() -> None:
        try:
            found.append(LLMatcher(tokenizer, grammar, log_level=0))
        except BaseException as error:  # a panic of native code is not an Exception
            failures.append(error)

    usual = threading.stack_size(_COMPILER_STACK)
    try:
        thread = threading.Thread(target=compile)
        thread.start()
    finally:
        threading.stack_size(usual)
    thread.join()
    if failures:
        raise BadRequest(f"invalid format: it cannot be compiled: {_error_line(str(failures[0]))}")
    return found[0]


_SCHEMA_ERRORS = (
    (re.compile(r"Regex is empty"), "no text matches pattern, format, lengths and enum of a string together"),
    (re.compile(r"oneOf constraints are not supported"), "oneOf: its choices may overlap; use anyOf"),
    (re.compile(r"'multipleOf' has too many digits"), "multipleOf: this step is not exact in binary; use 0.01 or 0.05"),
    (re.compile(r"regex parse error|in regex /|if regex is|nested parentheses"), "pattern: {}"),
    (re.compile(r"Failed to generate regex for (?:float|integer) range"), "minimum, maximum: {}"),
)
"""llguidance reports errors as text only; these patterns find the keyword at fault."""


def _error_line(text: str) -> str:
    """Return the line of a multi-line error that has the reason: the first with "error:", else the first one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("error:")]
    return (reasons or lines or ["unknown reason"])[0].removeprefix("error: ")[:MAX_REASON]
