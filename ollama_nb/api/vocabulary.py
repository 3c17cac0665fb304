"""Whether one model can guess another one's tokens: only where both number the same texts alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PADDING = 128
"""Models of one family fill up their vocabularies to different round numbers; so far may they be apart."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``kind`` of the tokenizer, all tokens as their file spells them, and which of them are ``markup``, not text."""

    kind: str
    texts: Sequence[bytes]
    markup: Callable[[int], bool]


def misfit(model: Vocabulary, draft: Vocabulary) -> str:
    """Why a model of the vocabulary ``draft`` cannot guess for one of ``model``; empty when it can."""
    if draft.kind != model.kind:
        return "it has a tokenizer of another kind than the model"
    if abs(len(draft.texts) - len(model.texts)) > PADDING:
        return f"it knows {len(draft.texts)} tokens, the model {len(model.texts)}"
    for token, pair in enumerate(zip(draft.texts, model.texts, strict=False)):
        if pair[0] != pair[1] and not (draft.markup(token) and model.markup(token)):
            guess, text = (spelling.decode("utf-8", "replace") for spelling in pair)
            return f'its token {token} is "{guess}", that of the model is "{text}"'
    return ""
