"""Where a long text may be cut, so that the tokens of its pieces are the tokens of the whole text. Pure.

Theory of operation
===================

Native tokenizers read a text in one call that cannot be stopped, and some need quadratic time or a stack frame for each
character. ``LlamaModel.tokenize_pieces`` therefore gives them one piece of about ``PIECE`` characters after the other.

A cut between the characters ``a`` and ``b`` changes no token if no token contains ``a`` followed by ``b``: every token
that a tokenizer makes by merging neighbours, and every special token that it finds in the text, is in the vocabulary.
What else is needed depends on the type of the vocabulary:

- SPM (SentencePiece with scores) merges neighbours over the whole text, and nothing else looks across a cut. It puts a
  space before each text that it is given and after each special token. Unless the piece before ends in a special token
  (``Marker``), a piece therefore gets a character in front that is in no token (``sentinel``), whose tokens are removed
  again.
- BPE first splits the text by a regular expression of the model, then merges within the parts. Expressions differ, but
  none of them looks back, and they look ahead only within digits and white space. A cut is therefore made only where a
  word ends before a space and a word or before a line break, or after a single line break before a word.
- WPM (BERT) splits at white space before all else; a cut is made where white space begins.
- The other types (UGM, RWKV, PLaMo-2) read a text in linear time from left to right and are given the whole text.

Special tokens may remove white space around them (attributes LSTRIP and RSTRIP). With LSTRIP in a vocabulary no cut
follows white space; after an RSTRIP token at the end of a piece, the white space that begins the next one is removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

PIECE = 4096  # characters of a piece, more where no cut is safe
MAX_UNSPLIT = 1 << 18  # characters of a BPE text without a safe cut; native code needs 323 bytes of stack for each
SPM, BPE, WPM = 1, 2, 3  # of enum llama_vocab_type
STRIPPED = " \t\n\v\f\r"  # what RSTRIP and LSTRIP remove

_LETTER = r"[^\W\d_]"
_CUTS = {
    SPM: re.compile(r"(?<=.)(?=.)", re.DOTALL),
    BPE: re.compile(rf"(?<={_LETTER})(?= {_LETTER}|\n)|(?<=\S\n)(?={_LETTER})"),
    WPM: re.compile(r"(?<=\S)(?=[ \n])"),
}
_SPACE = "▁"  # how SentencePiece writes a space
_SENTINELS = "\U0010fffd", "\U0010fffc", "\U000ffffd"  # private use


class Marker(NamedTuple):
    """A token that is found as a whole in a text, before all else: ``always``, or only if special tokens are parsed."""

    text: str
    always: bool
    rstrip: bool

    def ends(self, piece: str, parse_special: bool) -> bool:
        """Return whether a piece with this last token ends in the marker, not in characters with the same token."""
        return (self.always or parse_special) and (piece.rstrip(STRIPPED) if self.rstrip else piece).endswith(self.text)


class TextSplitter:
    """Splits texts for one vocabulary. ``texts`` are its tokens as written in the file."""

    def __init__(self, kind: int, texts: Iterable[bytes], *, lstrip: bool = False, piece: int = PIECE) -> None:
        self._kind, self._lstrip, self._piece = kind, lstrip, piece
        self._texts = b"\0".join(texts)
        self.sentinel = next((char for char in _SENTINELS if char.encode() not in self._texts), "")
        """A character that is in no token; empty if every one of ``_SENTINELS`` is."""
        self.joins = lru_cache(1 << 16)(self._joins)

    def split(self, text: str) -> Iterator[str]:
        """Yield the pieces of a text, in order."""
        start, cuts = 0, _CUTS.get(self._kind)
        if self._kind == SPM and not self.sentinel:
            cuts = None
        while cuts is not None and len(text) - start > self._piece:
            end = self._next_cut(text, start + self._piece, cuts)
            if end == len(text):
                break
            yield text[start:end]
            start = end
        yield text[start:]

    def _next_cut(self, text: str, start: int, cuts: re.Pattern[str]) -> int:
        """Return the first safe cut from ``start`` on, or the length of the text."""
        for cut in cuts.finditer(text, start):
            at = cut.start()
            before, after = text[at - 1], text[at]
            if not (self._lstrip and before.isspace()) and not self.joins(before, after):
                return at
        return len(text)

    def _joins(self, before: str, after: str) -> bool:
        """Return whether a token contains ``before`` followed by ``after``."""
        pair = (before + after).encode("utf-8", "replace")
        if pair in self._texts:
            return True
        if self._kind == SPM:
            return pair.replace(b" ", _SPACE.encode()) in self._texts
        if self._kind == BPE:
            last, first = before.encode("utf-8", "replace")[-1], after.encode("utf-8", "replace")[0]
            return (_BYTE_TEXT[last] + _BYTE_TEXT[first]).encode() in self._texts
        return False


def _byte_texts() -> list[str]:
    """Return how BPE vocabularies write each byte: printable ones of Latin-1 as they are, the others from U+0100 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in range(256)]


_BYTE_TEXT = _byte_texts()
