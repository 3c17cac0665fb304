"""Inputs and outputs of an engine: configuration, requests, outputs, counters.

The msgspec structs are also the messages between server and runner: ``runner.wire`` sends them as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from ollama_nb.api.options import MIN_CONTEXT as MIN_CONTEXT
from ollama_nb.api.options import Options
from ollama_nb.errors import OllamaError


class EngineConfig(msgspec.Struct, frozen=True, tag="load", kw_only=True):
    """What to load and how.

    ``n_ctx`` is the context length of each sequence, ``n_seq`` the number of sequences that are served at once;
    ``n_threads`` 0: chosen for the machine. ``draft``: file of a draft model (empty: no draft model). Long prefixes are
    stored in ``prefix_folder`` (empty: no prefix cache on disk), up to ``prefix_bytes`` for all models together, if
    each saves at least ``prefix_gain`` seconds of computing.
    """

    path: str
    draft: str = ""
    n_ctx: int = 4096
    n_seq: int = 1
    n_batch: int = 512
    n_threads: int = 0
    n_gpu_layers: int = -1
    main_gpu: int | None = None
    use_mmap: bool = True
    flash_attention: bool | None = None
    kv_cache_type: str = "f16"
    vocab_only: bool = False
    prefix_folder: str = ""
    prefix_bytes: int = 0
    prefix_gain: float = 0.5


class FillTokens(msgspec.Struct, frozen=True, array_like=True):
    """The tokens of a model that mark a gap to fill (fill in the middle).

    ``repository`` and ``separator`` begin a repository and each of its files; -1 if the model has none.
    """

    prefix: int
    suffix: int
    middle: int
    repository: int = -1
    separator: int = -1

    @property
    def marks_files(self) -> bool:
        """Whether the model was trained with the files of a repository before the gap."""
        return self.repository >= 0 and self.separator >= 0


class EngineFacts(msgspec.Struct, frozen=True, tag="loaded", kw_only=True):
    """What was loaded. Sizes are bytes of weights and KV cache together.

    ``pooling`` is ``none``, ``mean``, ``cls``, ``last`` or ``rank``. ``fim``: None if the model cannot fill a gap.
    """

    n_ctx: int
    n_ctx_train: int
    n_seq: int
    n_vocab: int
    n_embd: int
    size: int
    size_vram: int
    add_bos: bool
    add_eos: bool
    bos: str
    eos: str
    pooling: str
    load_seconds: float
    build: str
    n_threads: int = 0
    fim: FillTokens | None = None


class Adapter(msgspec.Struct, frozen=True, array_like=True):
    """A LoRA adapter: a GGUF file, and the factor for its change of the weights.

    Requests with and without adapters share the weights in memory. The KV cache of a sequence depends on its adapters,
    so that no request with other adapters can reuse it.
    """

    path: str
    scale: float = 1.0


Adapters = tuple[Adapter, ...]


EmbedInput = str | tuple[int, ...]
"""What is embedded: a text or its token ids."""


class CompletionRequest(msgspec.Struct, frozen=True, tag="complete", kw_only=True):
    """Generate a reply to ``prompt`` (special tokens are parsed) or to ``tokens``. The sender sets ``id``.

    ``num_ctx``: limit of this request, at most the loaded context (0: the loaded context). ``shift``: drop old tokens
    when the context is full. ``truncate``: drop tokens of a prompt that is too long, if ``shift`` is set too.
    ``logprobs``: number of most likely tokens to report, -1: no log probabilities. ``format``: see
    ``constraint.ConstraintCompiler.compile``; empty: no constraint. ``later_format``: the constraint of a request that
    will continue this one; it is compiled now, so that its errors come first. ``preserve``: special tokens that remain
    visible in the text. ``return_tokens``: return all tokens with the last output. Requests of one ``group`` (0: none)
    have the same prompt, which is read once: the other ones wait for the first one. ``background`` requests run only
    while no other one does. ``client``: on whose behalf, for fair shares.
    """

    id: int = 0
    prompt: str = ""
    tokens: tuple[int, ...] = ()
    options: Options = msgspec.field(default_factory=Options)
    num_ctx: int = 0
    shift: bool = True
    truncate: bool = True
    logprobs: int = -1
    format: str = ""
    later_format: str = ""
    return_tokens: bool = False
    preserve: tuple[str, ...] = ()
    adapters: Adapters = ()
    group: int = 0
    background: bool = False
    client: str = ""


class Embed(msgspec.Struct, frozen=True, tag="embed", kw_only=True):
    """Compute embeddings. With ``truncate`` false, an input that is too long fails with ContextOverflow."""

    id: int = 0
    inputs: tuple[EmbedInput, ...]
    truncate: bool = True
    num_ctx: int = 0
    adapters: Adapters = ()
    normalise: bool = True
    client: str = ""
    background: bool = False


class Rank(msgspec.Struct, frozen=True, tag="rank", kw_only=True):
    """Score documents, for models whose ``pooling`` is ``rank``. Documents are cut to the context."""

    id: int = 0
    query: str
    documents: tuple[str, ...]
    num_ctx: int = 0
    adapters: Adapters = ()
    client: str = ""
    background: bool = False


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize", kw_only=True):
    """Tokenize texts, or with ``count_only`` count their tokens."""

    id: int
    texts: tuple[str, ...]
    add_special: bool = True
    parse_special: bool = True
    count_only: bool = False


class TopToken(msgspec.Struct, frozen=True, array_like=True):
    token: bytes
    logprob: float


class TokenProb(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a sampled token, its natural log probability, and the most likely tokens at its place."""

    token: bytes
    logprob: float
    top: tuple[TopToken, ...] = ()


class TextOutput(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """New text of a request. The first one is sent with the first token, even if no text is complete then.

    ``prompt_tokens``, ``cached_tokens`` and ``prompt_tokens_dropped`` are set in the first text only; ``drafted``,
    ``accepted`` and ``output_tokens`` count up to now. They serve progress displays and replies that are interrupted.
    """

    id: int
    text: str
    logprobs: tuple[TokenProb, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_tokens_dropped: int = 0
    drafted: int = 0
    accepted: int = 0
    output_tokens: int = 0


class Finished(msgspec.Struct, frozen=True, tag="finished", kw_only=True):
    """The end of a reply. ``reason``: ``stop``, ``length`` or ``cancelled``; times in seconds.

    ``prompt_tokens`` includes the cached ones, ``prompt_seconds`` does not. ``output_tokens`` includes the token that
    ended the reply. ``drafted``: draft tokens, of which ``accepted`` were accepted. ``tokens`` (with
    ``CompletionRequest.return_tokens``): prompt and reply without the BOS that the tokenizer added. ``stop_sequence``:
    the stop string that ended the reply, if one did.
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
    stop_sequence: str = ""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The error that ended a request: its message, HTTP status and code (see ``errors.from_code``)."""

    id: int
    message: str
    status: int = OllamaError.status
    code: str = OllamaError.code

    @classmethod
    def of(cls, id: int, error: OllamaError) -> Failed:
        return cls(id, error.message, error.status, error.code)


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """``vectors``: little-endian float32, one row of ``dimensions`` per input, L2-normalised.

    ``truncated``: the indices of the inputs that were cut to ``limit`` tokens; ``model_limit``: the most tokens of an
    input with any num_ctx.
    """

    id: int
    vectors: bytes
    dimensions: int
    prompt_tokens: int
    prompt_seconds: float
    truncated: tuple[int, ...] = ()
    limit: int = 0
    model_limit: int = 0


class Ranked(msgspec.Struct, frozen=True, tag="ranked"):
    """One score from 0 to 1 per document, in their order. ``truncated`` and the limits are those of ``Embedded``."""

    id: int
    scores: tuple[float, ...]
    prompt_tokens: int
    truncated: tuple[int, ...] = ()
    limit: int = 0
    model_limit: int = 0


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """One list per text, or one count per text in ``counts``."""

    id: int
    tokens: tuple[tuple[int, ...], ...] = ()
    counts: tuple[int, ...] = ()


Output = TextOutput | Finished | Failed | Embedded | Ranked | Tokens


@dataclass(slots=True)
class Counters:
    """Counters since load.

    ``rows``: number of decodes by the number of replies that they continued; ``seconds``: time in llama.cpp;
    ``drafted`` and ``accepted``: draft tokens, of which ``model_drafted`` and ``model_accepted`` came from a draft
    model; ``padded``: rows of batch padding.
    """

    decodes: int = 0
    rows: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    model_drafted: int = 0
    model_accepted: int = 0
    padded: int = 0
    shifts: int = 0
    aborts: int = 0
    seconds: float = 0.0
