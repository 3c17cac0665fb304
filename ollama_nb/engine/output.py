"""What a step of the engine gives out: tagged structs, which a runner sends as they are."""

from __future__ import annotations

import msgspec

from ollama_nb.errors import OllamaError


class TopToken(msgspec.Struct, frozen=True, array_like=True):
    token: bytes
    logprob: float


class TokenProb(msgspec.Struct, frozen=True, array_like=True):
    """A chosen token's own bytes, the natural logarithm of its probability, and the likeliest ones beside it."""

    token: bytes
    logprob: float
    top: tuple[TopToken, ...] = ()


class TextOut(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """New text of one request; may be empty while the bytes of a character are still missing.

    For those who look on, and for replies that are broken off: ``prompt_tokens``, ``cached_tokens`` and
    ``prompt_tokens_dropped`` come with the first text only; ``drafted`` and ``accepted`` count until now.
    """

    id: int
    text: str
    logprobs: tuple[TokenProb, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_tokens_dropped: int = 0
    drafted: int = 0
    accepted: int = 0


class FinishOut(msgspec.Struct, frozen=True, tag="finished", kw_only=True):
    """The end of a reply: ``stop``, ``length`` or ``cancelled``; times are seconds.

    ``prompt_tokens`` includes the cached ones, ``prompt_seconds`` does not. ``output_tokens`` counts the token that
    ended the reply. ``drafted`` tokens were read on trust, ``accepted`` of them were right.
    ``tokens`` (when asked for): prompt and reply, without the BOS that the tokenizer added.
    """

    id: int
    reason: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    output_tokens: int = 0
    output_seconds: float = 0.0
    prompt_tokens_dropped: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: tuple[int, ...] = ()


class FailOut(msgspec.Struct, frozen=True, tag="failed"):
    """The error that ended a request: its message, HTTP status and code (see ``errors.from_code``)."""

    id: int
    message: str
    status: int = OllamaError.status
    code: str = OllamaError.code

    @classmethod
    def of(cls, id: int, error: OllamaError) -> FailOut:
        return cls(id, error.message, error.status, error.code)


Output = TextOut | FinishOut | FailOut
