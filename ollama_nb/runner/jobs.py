"""What the server asks of a conversion process, and what comes back: one job, its progress, its end."""

from __future__ import annotations

from typing import Any

import msgspec

from ollama_nb.errors import OllamaError


class Convert(msgspec.Struct, frozen=True, tag="convert"):
    """The checkpoint in ``folder`` becomes the GGUF ``target``, its matrices of type ``output`` (F32, F16, BF16)."""

    folder: str
    target: str
    output: str


class Adapt(msgspec.Struct, frozen=True, tag="adapt"):
    """The LoRA adapter in ``folder`` becomes the GGUF ``target``. ``base``: the numbers of its model's metadata."""

    folder: str
    target: str
    base: dict[str, Any]


class Quantize(msgspec.Struct, frozen=True, tag="quantize"):
    """``file_type``: a number of ``llama_ftype``; None merges parts and changes nothing."""

    source: str
    target: str
    file_type: int | None
    kept: dict[str, int]


Job = Convert | Adapt | Quantize


class Working(msgspec.Struct, frozen=True, tag="working"):
    done: int
    total: int


class Made(msgspec.Struct, frozen=True, tag="made"):
    """The target is written. ``notes``: what the user should know about it."""

    notes: tuple[str, ...] = ()


class NotMade(msgspec.Struct, frozen=True, tag="not_made"):
    """The error that ended the job: its message, HTTP status and code."""

    message: str
    status: int
    code: str

    @classmethod
    def of(cls, error: OllamaError) -> NotMade:
        return cls(error.message, error.status, error.code)


Reply = Working | Made | NotMade
