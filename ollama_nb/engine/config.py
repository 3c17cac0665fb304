"""What an engine is told, what it found, and what it counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, tag="load", kw_only=True):
    """What to load and how. ``n_ctx`` is per sequence, ``n_seq`` of them are served at once; 0 threads: from facts.

    ``draft``: the file of a small model that guesses for the large one (empty: none).
    Long prefixes are kept in ``prefix_folder`` (empty: not at all), ``prefix_bytes`` for all models together, where
    they save at least ``prefix_gain`` seconds of computing another time.
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


class EngineFacts(msgspec.Struct, frozen=True, tag="loaded", kw_only=True):
    """What was loaded. Sizes in bytes, weights and context memory together.

    ``pooling`` is ``none``, ``mean``, ``cls``, ``last`` or ``rank``.
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


@dataclass(slots=True)
class Counters:
    """Since load. ``rows``: number of replies continued at once → decodes; ``seconds`` within llama.cpp.

    ``drafted`` tokens were read on trust, ``accepted`` of them kept; ``model_drafted`` and ``model_accepted`` are those
    that a draft model guessed. ``padded`` rows only rounded steps up.
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
