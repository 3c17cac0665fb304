"""Messages between the server and its children: tagged structs as msgpack, each after a 4-byte little-endian length.

Every request carries an ``id`` that its replies repeat. A runner ends each request exactly once: with ``Finished``,
``Failed``, or the one reply of that kind of request. A conversion process receives one job and sends its progress and
one result.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from ollama_nb.api.requests import PromptJob
from ollama_nb.engine.messages import (
    Adapter,
    Adapters,
    CompletionRequest,
    Embed,
    Embedded,
    EmbedInput,
    EngineConfig,
    EngineFacts,
    Failed,
    FillTokens,
    Finished,
    Output,
    Rank,
    Ranked,
    TextOutput,
    Tokenize,
    TokenProb,
    Tokens,
    TopToken,
)
from ollama_nb.errors import BadRequest, LoadError, OllamaError, RunnerCrashed, TemplateError

# The structs of the engine, which are sent as they are.
__all__ = [
    "Adapter",
    "Adapters",
    "CompletionRequest",
    "Embed",
    "EmbedInput",
    "Embedded",
    "EngineConfig",
    "EngineFacts",
    "Failed",
    "FillTokens",
    "Finished",
    "Output",
    "Rank",
    "Ranked",
    "TextOutput",
    "TokenProb",
    "Tokenize",
    "Tokens",
    "TopToken",
]

MAX_FRAME = 256 << 20  # bytes
_LENGTH = struct.Struct("<I")


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize", kw_only=True):
    id: int
    tokens: tuple[int, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End a request with Finished(reason="cancelled"); one that has ended is not affected."""

    id: int


class GetStats(msgspec.Struct, frozen=True, tag="stats"):
    id: int


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Check that the runner responds. It sends Pong at once, even while a step runs."""


ToRunner = EngineConfig | CompletionRequest | Embed | Rank | Tokenize | Detokenize | Cancel | GetStats | Ping


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The error that ended the load: its message, HTTP status and code."""

    message: str
    status: int = LoadError.status
    code: str = LoadError.code


class Detokenized(msgspec.Struct, frozen=True, tag="detokenized"):
    id: int
    text: str


class StatsReply(msgspec.Struct, frozen=True, tag="stats_reply"):
    """Counters since load, by name: those of ``Engine.counters``, and the runner's ``pid``."""

    id: int
    stats: dict[str, Any]


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Everything that one engine step produced, for all streams, in one message."""

    items: tuple[Output, ...]


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """``step_seconds``: how long the current step has been running; 0 between steps."""

    step_seconds: float = 0.0


FromRunner = (
    EngineFacts
    | LoadFailed
    | TextOutput
    | Finished
    | Failed
    | Embedded
    | Ranked
    | Tokens
    | Detokenized
    | StatsReply
    | Step
    | Pong
)


class Render(msgspec.Struct, frozen=True, tag="render"):
    """Render one prompt per entry of ``job.drops``, within ``seconds`` of processor time."""

    id: int
    job: PromptJob
    seconds: float


class Prompts(msgspec.Struct, frozen=True, tag="prompts"):
    id: int
    texts: tuple[str, ...]


class RenderFailed(msgspec.Struct, frozen=True, tag="render_failed"):
    """The error that ended a prompt job: its message, HTTP status and code."""

    id: int
    message: str
    status: int = TemplateError.status
    code: str = TemplateError.code


class ConvertModel(msgspec.Struct, frozen=True, tag="convert"):
    """Convert the checkpoint in ``folder`` to the GGUF ``target``, matrices of type ``output`` (F32, F16, BF16)."""

    folder: str
    target: str
    output: str


class ConvertAdapter(msgspec.Struct, frozen=True, tag="adapt"):
    """Convert the LoRA adapter in ``folder`` to the GGUF ``target``. ``base``: plain values of its model's metadata."""

    folder: str
    target: str
    base: dict[str, Any]


class Quantize(msgspec.Struct, frozen=True, tag="quantize"):
    """Convert a GGUF to ``file_type``, a number of ``llama_ftype``; None only merges the parts of a split one."""

    source: str
    target: str
    file_type: int | None
    kept: dict[str, int]


ConversionJob = ConvertModel | ConvertAdapter | Quantize


class ConversionProgress(msgspec.Struct, frozen=True, tag="working"):
    done: int
    total: int


class Converted(msgspec.Struct, frozen=True, tag="made"):
    """The target is written. ``notes`` are warnings for the user."""

    notes: tuple[str, ...] = ()


class ConversionFailed(msgspec.Struct, frozen=True, tag="not_made"):
    """The error that ended the job: its message, HTTP status and code."""

    message: str
    status: int
    code: str

    @classmethod
    def of(cls, error: OllamaError) -> ConversionFailed:
        return cls(error.message, error.status, error.code)


FromConverter = ConversionProgress | Converted | ConversionFailed


TEMPLATE_TOOK_TOO_MUCH = "template took too long or too much memory"

_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """Encode one message, preceded by its length."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def request_frame(message: msgspec.Struct) -> bytes:
    """``frame`` for a message with data from a client. Raises BadRequest if it cannot be encoded or is too large.

    Lone surrogates and integers of more than 64 bits cannot be encoded.
    """
    try:
        data = frame(message)
    except (UnicodeError, OverflowError, TypeError) as error:
        raise BadRequest(f"the request cannot be encoded: {error}") from error
    if len(data) > MAX_FRAME:
        raise BadRequest(f"the request is too large: {len(data)} bytes, at most {MAX_FRAME}")
    return data


class FrameReader:
    """Splits a byte stream into messages of one union type. Raises RunnerCrashed for an invalid frame."""

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that ``data`` completes."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise RunnerCrashed(f"invalid message frame: {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            try:
                with memoryview(self._buffer) as whole, whole[_LENGTH.size : end] as body:  # copies of it take long
                    message = self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RunnerCrashed(f"invalid message frame: {error}") from error
            del self._buffer[:end]
            yield message
