"""The vocabulary of a checkpoint in llama.cpp's format, with one token per row of the embedding matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
from gguf import TokenType

from ollama_nb.errors import BadRequest, CorruptModel
from ollama_nb.store.convert.checkpoint import Checkpoint

MAX_TOKENS = 1 << 22  # tokens of a vocabulary
ADDED_SCORE = -1000.0
"""Score of added tokens, which are matched before tokenization and result from no merge."""
PAD_SCORE = -10000.0  # score of tokens that never occur
SPACE = "\u2581"
"""SentencePiece's symbol for a space."""

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(slots=True)
class CheckpointVocabulary:
    """Tokens, types and scores by token id.

    ``model`` is llama.cpp's name of the algorithm (``llama``, ``gpt2``, ``bert``, ``t5``), ``pre`` its name of the
    pre-tokenizer. ``flags`` are further keys of ``tokenizer.ggml``.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    flags: dict[str, bool | bytes] = field(default_factory=dict)

    def put(self, index: int, text: str, kind: TokenType, score: float) -> None:
        """Set one token, padding the list up to its id. Raises CorruptModel if the id is out of range."""
        if not 0 <= index < MAX_TOKENS:
            raise CorruptModel(f"token {text!r} has the invalid id {index}")
        self.pad(index + 1)
        self.tokens[index], self.types[index] = text, kind
        if self.scores is not None:
            self.scores[index] = score

    def pad(self, rows: int) -> None:
        """Append unused tokens up to ``rows`` tokens."""
        for index in range(len(self.tokens), rows):
            self.tokens.append(f"[PAD{index}]")
            self.types.append(TokenType.UNUSED)
            if self.scores is not None:
                self.scores.append(PAD_SCORE)

    def fit(self, rows: int) -> None:
        """Pad or truncate to the number of rows of the embedding matrix."""
        self.pad(rows)
        del self.tokens[rows:], self.types[rows:]
        if self.scores is not None:
            del self.scores[rows:]

    def add(self, added: Mapping[int, AddedToken]) -> None:
        """Insert added tokens."""
        for index, token in sorted(added.items()):
            kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
            text = token.text if token.special else token.text.replace(SPACE, " ")
            self.put(index, text, kind, ADDED_SCORE)

    def id_of(self, text: str) -> int | None:
        """Return the id of a token, or None."""
        return self.tokens.index(text) if text in self.tokens else None

    def write(self, out: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        """Write the vocabulary, the special tokens, the chat template and the flags for BOS and EOS."""
        out.add_tokenizer_model(self.model)
        out.add_tokenizer_pre(self.pre)
        out.add_token_list(self.tokens)
        if self.scores is not None:
            out.add_token_scores(self.scores)
        out.add_token_types(self.types)
        special = gguf.SpecialVocab(checkpoint.folder, n_vocab=len(self.tokens))
        special.merges = self.merges
        for kind, text in named_special(checkpoint).items():
            if kind not in special.special_token_ids and (index := self.id_of(text)) is not None:
                special.special_token_ids[kind] = index
        special.add_to_gguf(out, quiet=True)
        for key, value in self.flags.items():
            if isinstance(value, bytes):
                out.add_array(f"tokenizer.ggml.{key}", value)
            else:
                out.add_bool(f"tokenizer.ggml.{key}", value)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the vocabulary. ``special``: it is a control token."""

    text: str
    special: bool


def added_tokens(checkpoint: Checkpoint) -> dict[int, AddedToken]:
    """Collect the added tokens by id, from the three files that may list them."""
    found: dict[int, AddedToken] = {}
    for text, index in checkpoint.json("added_tokens.json").items():
        if type(index) is int:
            found[index] = AddedToken(text, looks_special(text))
    listed = checkpoint.json("tokenizer_config.json").get("added_tokens_decoder")
    for key, entry in listed.items() if isinstance(listed, dict) else ():
        if key.isdecimal() and isinstance(entry, dict):
            found[int(key)] = _parse_added_token(entry)
    entries = checkpoint.json("tokenizer.json").get("added_tokens")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            found[entry["id"]] = _parse_added_token(entry)
    return found


def embedding_rows(checkpoint: Checkpoint) -> int:
    """Return the number of rows of the embedding matrix. Raises BadRequest if the checkpoint has none."""
    names = ("embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight")
    for tensor in checkpoint.tensors():
        if tensor.name.endswith(names) and len(tensor.shape) == 2:
            return tensor.shape[0]
    raise BadRequest("the checkpoint has no embedding matrix")


def _parse_added_token(entry: Mapping[str, Any]) -> AddedToken:
    text = str(entry.get("content", ""))
    return AddedToken(text, bool(entry.get("special")) or looks_special(text))


def looks_special(text: str) -> bool:
    """Return whether a token is markup that some checkpoints do not mark as special."""
    if text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    shapes = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return any(text.startswith(start) and text.endswith(end) for start, end in shapes)


def named_special(checkpoint: Checkpoint) -> dict[str, str]:
    """Return special tokens by role, as text, for checkpoints that do not list their ids."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = checkpoint.json(file)
        for role in _SPECIAL:
            value = content.get(f"{role}_token")
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[role] = text
    return found
