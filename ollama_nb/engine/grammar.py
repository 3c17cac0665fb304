"""Constraints on a reply: JSON mode, JSON Schemas, GBNF, regular expressions and choices, by llguidance.

Rule: the reply matches, or the request is refused with the reason; nothing is dropped silently. The sampler draws
freely, that one token is checked, and only a refused one costs a mask over the vocabulary and a second draw. JSON comes
on one line, as ``json.dumps`` writes it: a small model that may write blanks can write them for ever.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from ollama_nb.engine.escapes import UnicodeEscapes
from ollama_nb.engine.gbnf import to_lark
from ollama_nb.engine.llama import Floats, Model
from ollama_nb.engine.patterns import read_choices, read_regex
from ollama_nb.engine.sampler import Sampler
from ollama_nb.engine.schema import place_of, read_schema
from ollama_nb.errors import BadRequest, OllamaError

KEPT_GRAMMARS = 16
_COMPILER_STACK = 256 << 20
"""Bytes of address space; memory is taken only as far as it is used."""
_TRIED = 4
_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}


class Constraint:
    """One reply's place in its grammar."""

    def __init__(self, matcher: LLMatcher, model: Model, escapes: UnicodeEscapes | None = None) -> None:
        self._matcher = matcher
        self._escapes, self._opened = escapes, 0
        self._n_vocab, self._eog = model.n_vocab, model.eog
        self._bits = np.zeros((model.n_vocab + 31) // 32, np.int32)

    def pick(self, sampler: Sampler, row: Floats, history: list[int]) -> int:
        """A token that the grammar allows. Raises OllamaError when the grammar grew past its limits."""
        token = sampler.pick(row, history)
        if not self.allows(token):
            allowed = self.allowed()
            token = sampler.choose_among(row, allowed) if len(allowed) else token
        if token in self._eog and not self._matcher.is_accepting():  # llguidance ends where it knows no way on
            raise OllamaError("the format constraint failed: nothing that this model can write goes on from here")
        if not self._matcher.consume_token(token):
            raise OllamaError(f"the format constraint failed: {_first_line(self._matcher.get_error())}")
        if self._escapes is not None:
            self._opened = int(self._escapes.opens[self._opened, token])
        return token

    def allows(self, token: int) -> bool:
        """Whether that token may come next; False too for an escape that ``allowed`` may still let through."""
        if self._escapes is not None and self._escapes.writes[self._opened, token]:
            return False
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> npt.NDArray[np.intp]:
        """All tokens that may come next, ascending."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        found = np.flatnonzero(np.unpackbits(self._bits.view(np.uint8), count=self._n_vocab, bitorder="little"))
        if self._escapes is None:
            return found
        plain = found[~self._escapes.writes[self._opened, found]]
        return plain if len(plain) else found  # some control characters have no other form

    def forced(self) -> list[int]:
        """The text that must come next, in the tokens of a tokenizer; the model may cut it otherwise."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def ending(self, most: int) -> list[int]:
        """The tokens up to the end where only one end is possible, of ``most`` tokens; they are taken as chosen.

        None where there is still a choice, or where the end is further away. A label is told by its first tokens.
        """
        forced = self.forced()
        if not 0 < len(forced) <= most:
            return []
        taken = self._matcher.try_consume_tokens(forced)
        if taken == len(forced) and self.complete:
            return forced
        self._matcher.rollback(taken)
        return []

    @property
    def complete(self) -> bool:
        """Nothing can follow."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles formats for one model. Its view of the vocabulary is built at first use (0.7 s for 150,000 tokens)."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokenizer: LLTokenizer | None = None
        self._escapes: UnicodeEscapes | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, format: str) -> Constraint:
        """A fresh constraint. Raises BadRequest with the reason.

        ``format``: ``json``, a JSON Schema as text, or ``grammar:`` (GBNF), ``regex:`` or ``choices:`` (a JSON list)
        and what belongs to it.
        """
        with self._lock:
            matcher = self._kept.get(format)
            if matcher is None:
                matcher = self._kept[format] = self._compile(format)
                if len(self._kept) > KEPT_GRAMMARS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(format)
            written = format.startswith(("grammar:", "regex:", "choices:"))
            return Constraint(matcher.deep_copy(), self._model, None if written else self._escapes)

    def _compile(self, format: str) -> LLMatcher:
        kind, grammar = read_format(format)
        if self._tokenizer is None:
            pieces = self._model.pieces()
            self._escapes = UnicodeEscapes(pieces)
            self._tokenizer = _tokenizer(self._model, pieces)
        matcher = _with_deep_stack(self._tokenizer, grammar)
        if matcher.is_error():
            text = matcher.get_error()
            raise BadRequest(f"invalid {kind}: {_reason(text, format) if kind == 'format' else _first_line(text)}")
        if not self._can_begin(matcher):
            raise BadRequest(f"invalid {kind}: it is too large, or nothing that this model can write matches it")
        return matcher

    def _can_begin(self, matcher: LLMatcher) -> bool:
        """Some token may come first. A pattern that is too large is noticed when it is first asked that."""
        if matcher.is_accepting():
            return True
        allowed = Constraint(matcher.deep_copy(), self._model).allowed().tolist()
        first = [token for token in allowed if token not in self._model.eog][:_TRIED]
        return any(matcher.deep_copy().consume_token(token) for token in first)


def read_format(format: str) -> tuple[str, str]:
    """What a format is called in errors, and the grammar that llguidance is to compile. Raises BadRequest."""
    kind, colon, text = format.partition(":")
    if colon:
        match kind:
            case "grammar":
                return kind, LLMatcher.grammar_from_lark(to_lark(text))
            case "regex":
                return kind, LLMatcher.grammar_from_regex(read_regex(text))
            case "choices":
                return kind, LLMatcher.grammar_from_regex(read_choices(text))
    schema = {"type": "object"} if format == "json" else read_schema(format)
    try:
        return "format", LLMatcher.grammar_from_json_schema(schema, overrides=_STYLE)
    except ValueError as error:
        raise BadRequest(f"invalid format: {_first_line(str(error))}") from error


def _with_deep_stack(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compile on a thread with room: the compiler calls itself for each rule that a rule refers to."""
    found: list[LLMatcher] = []
    usual = threading.stack_size(_COMPILER_STACK)
    try:
        thread = threading.Thread(target=lambda: found.append(LLMatcher(tokenizer, grammar, log_level=0)))
        thread.start()
    finally:
        threading.stack_size(usual)
    thread.join()
    return found[0]


def _tokenizer(model: Model, tokens: list[bytes]) -> LLTokenizer:
    """llguidance's view of a vocabulary; a leading 0xFF byte tells it that a token is no text."""
    for token, piece in enumerate(tokens):
        if model.is_markup(token):
            tokens[token] = b"\xff" + piece
    vocab, tokenize = model.native_tokenizer
    eog = sorted(model.eog) or model.eos
    make: Any = LLTokenizer.from_llamacpp  # type: ignore[attr-defined]  # missing in its stubs
    return make(tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=eog, slices=None)  # type: ignore[no-any-return]


_REASONS = (
    (re.compile(r"oneOf constraints are not supported"), "oneOf: its choices may overlap; use anyOf"),
    (re.compile(r"regex parse error|in regex /|if regex is|nested parentheses"), "pattern: {}"),
    (re.compile(r"Failed to generate regex for (?:float|integer) range"), "minimum, maximum: {}"),
)


def _reason(text: str, format: str) -> str:
    """What llguidance has against a schema, in a line that names the keyword, and its place where it cannot be kept."""
    line = _first_line(text)
    if (found := re.match(r'Unimplemented keys: \["(.*?)"', line)) is not None:
        key = found[1]
        return f'unsupported schema keyword "{key}" at {place_of(key, json.loads(format))}'
    return next((said.format(line) for found, said in _REASONS if found.search(text)), line)


def _first_line(text: str) -> str:
    """llguidance explains itself over several lines; the last one that says error, or the first, is the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("error:")]
    return (reasons or lines or ["unknown reason"])[0].removeprefix("error: ")
