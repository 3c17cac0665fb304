"""llguidance's view of a model's vocabulary: the bytes of every token, and how a text that must come next is split.

Where a grammar leaves one text, llguidance splits it into tokens as the model would and allows only the first of them.
Those tokens must spell exactly that text. llama.cpp's tokenizer does not guarantee this: it finds user-defined tokens
(``<tool_call>``) inside text, adds a space in front, and drops text that the merges of an incomplete vocabulary cannot
reach. ``ConstraintTokenizer`` checks its result and spells the text with other tokens where necessary.
"""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLTokenizer, TokenizerWrapper

from ollama_nb.engine.llama import LlamaModel

_MARK = "\n"
"""Written in front of a text where the tokenizer adds a space, which then comes before the mark."""


class ConstraintTokenizer(TokenizerWrapper):
    """A tokenizer written in Python, as llguidance expects it."""

    is_tokenizer_wrapper = True

    def __init__(
        self, model: LlamaModel, pieces: Sequence[bytes]
    ) -> None:  # the base class would only wrap another one
        self._model = model
        self.tokens = pieces
        self.special_token_ids = [token for token in range(len(pieces)) if model.is_markup(token)]
        self.eos_token_id = (sorted(model.eog) or [model.eos])[0]
        self.bos_token_id = None
        self._special = frozenset(self.special_token_ids)
        self._by_text = {piece: token for token, piece in enumerate(pieces) if piece and token not in self._special}
        self._longest = max(map(len, self._by_text), default=0)
        alone = model.tokenize("a", add_special=False, parse_special=False)
        self._mark = "" if [pieces[token] for token in alone] == [b"a"] else _MARK

    def __call__(self, text: str) -> list[int]:
        """Split a text into tokens without special ones; up to the first byte that no token of the model has."""
        wanted = text.encode("utf-8", "replace")
        tokens = self._model.tokenize(self._mark + text, add_special=False, parse_special=False)
        if self._mark:
            tokens = self._without_mark(tokens)
        if b"".join(self.tokens[token] for token in tokens) != wanted:
            return self._spell(wanted)
        if self._special.isdisjoint(tokens):
            return tokens
        return [part for token in tokens for part in (self._spelled(token) if token in self._special else [token])]

    def _without_mark(self, tokens: list[int]) -> list[int]:
        """Return the tokens after the mark; an empty list if it is part of a longer token."""
        written = b""
        for at, token in enumerate(tokens):
            written += self.tokens[token]
            if written.endswith(self._mark.encode()):
                return tokens[at + 1 :]
            if written.strip(b" "):
                break
        return []

    def _spelled(self, token: int) -> list[int]:
        return self._spell(self.tokens[token])

    def _spell(self, wanted: bytes) -> list[int]:
        """Split by the longest match at each position."""
        found: list[int] = []
        at = 0
        while at < len(wanted):
            ends = range(min(len(wanted), at + self._longest), at, -1)
            end = next((end for end in ends if wanted[at:end] in self._by_text), None)
            if end is None:
                break
            found.append(self._by_text[wanted[at:end]])
            at = end
        return found


def make_tokenizer(model: LlamaModel, pieces: Sequence[bytes]) -> LLTokenizer:
    """Build llguidance's tokenizer of a model whose tokens have the given bytes."""
    return LLTokenizer(ConstraintTokenizer(model, pieces), eos_token=sorted(model.eog) or model.eos, slices=None)
