"""What a GGUF's header says of its tokens, by which a draft model is judged before anything is loaded."""

from __future__ import annotations

from ollama_nb.api.models import GGUF
from ollama_nb.api.vocabulary import Vocabulary

_TEXT = (1, 6)
"""Types of tokens that are plain text: normal ones and single bytes."""


def vocabulary_of(gguf: GGUF) -> Vocabulary | None:
    """Of a header that was read with its arrays; None where it names no tokens.

    Everything that is no plain text counts as markup: the engine takes more tokens for that than files mark as such,
    and what it would run must not be refused.
    """
    tokens, types = (gguf.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    plain = types if isinstance(types, list) and len(types) == len(tokens) else [1] * len(tokens)
    spelled = [token.encode("utf-8", "replace") for token in tokens]
    return Vocabulary(str(gguf.metadata.get("tokenizer.ggml.model")), spelled, lambda token: plain[token] not in _TEXT)
