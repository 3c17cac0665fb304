"""Read ``tokenizer.model``, a SentencePiece model, from its protocol buffer.

Fields of the message: 1 the pieces (text, score, type); 2 the training parameters (3: the model type); 3 the
normalization (2: precompiled character map, 3: add a space prefix, 4: collapse repeated spaces).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gguf import TokenType

from ollama_nb.errors import CorruptModel
from ollama_nb.store.convert.vocabulary import SPACE, CheckpointVocabulary

UNIGRAM, BPE = 1, 2  # values of model_type


@dataclass(slots=True)
class _Rules:
    """Model type and normalization; the defaults are those of the format."""

    kind: int = UNIGRAM
    space_prefix: bool = True
    collapse_spaces: bool = True
    character_map: bytes = b""


def read_sentencepiece(data: bytes) -> CheckpointVocabulary:
    """Parse a SentencePiece model. Raises CorruptModel if it is not valid, or not a unigram or BPE model."""
    tokens: list[str] = []
    scores: list[float] = []
    types: list[TokenType] = []
    rules = _Rules()
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text, score, kind = _piece(value)
            tokens.append(text.replace(SPACE, " ") if kind is TokenType.USER_DEFINED else text)
            scores.append(score)
            types.append(kind)
        elif number in (2, 3) and isinstance(value, bytes):
            _read_rules(rules, number, value)
    if not tokens or rules.kind not in (UNIGRAM, BPE):
        raise CorruptModel("tokenizer.model is not a unigram or BPE model of SentencePiece")
    flags: dict[str, bool | bytes] = {"add_space_prefix": rules.space_prefix}
    if rules.kind == UNIGRAM:
        flags["remove_extra_whitespaces"] = rules.collapse_spaces
        if rules.character_map:
            flags["precompiled_charsmap"] = rules.character_map
    return CheckpointVocabulary("llama" if rules.kind == BPE else "t5", "default", tokens, types, scores, flags=flags)


def _piece(data: bytes) -> tuple[str, float, TokenType]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8", "replace")
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    try:
        return text, score, TokenType(kind)  # SentencePiece uses the same numbers
    except ValueError as error:
        raise CorruptModel(f"tokenizer.model: piece {text!r} has the unknown type {kind}") from error


def _read_rules(rules: _Rules, message: int, data: bytes) -> None:
    for number, value in _fields(data):
        match message, number, value:
            case 2, 3, int():
                rules.kind = value
            case 3, 2, bytes():
                rules.character_map = value
            case 3, 3, int():
                rules.space_prefix = bool(value)
            case 3, 4, int():
                rules.collapse_spaces = bool(value)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield the fields of a message: number and value."""
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            value: int | float | bytes
            match key & 7:
                case 0:
                    value, at = _varint(data, at)
                case 1:
                    value, at = struct.unpack_from("<q", data, at)[0], at + 8
                case 5:
                    value, at = float(struct.unpack_from("<f", data, at)[0]), at + 4
                case 2:
                    size, at = _varint(data, at)
                    if size > len(data) - at:
                        raise ValueError("a field is longer than the file")
                    value, at = data[at : at + size], at + size
                case kind:
                    raise ValueError(f"wire type {kind}")
            yield key >> 3, value
    except (ValueError, IndexError, struct.error) as error:
        raise CorruptModel(f"tokenizer.model is not a SentencePiece model: {error}") from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")
