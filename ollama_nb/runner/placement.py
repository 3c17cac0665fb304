"""How a model is loaded: context, sequences, batch, layers on a GPU. Pure: header and facts in, Load out.

Rule: what the user asked for is never changed but to what the model can do; only automatic values look at memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest
from ollama_nb.runner import wire
from ollama_nb.runner.machine import Machine
from ollama_nb.settings import Settings

MOST_SEQUENCES = 8
KV_SHARE = 0.25
"""Of the memory that the weights leave free, the part that automatic sequences may fill with their context."""
LEAST_CONTEXT = 4
MOST_BATCH = 2048

_GIB = 1 << 30
_BIGGEST = 1 << 31
_CONTEXT_TIERS = ((47 * _GIB, 262_144), (23 * _GIB, 32_768), (0, 4096))
_BATCH_TIERS = ((32_768, 2048), (4096, 1024), (0, 512))
_CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
                "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placement:
    """How to load a model, and about how many bytes that takes."""

    load: wire.Load
    need: int


def place(model: Model, gguf: GGUF, options: Options, settings: Settings, machine: Machine) -> Placement:
    """Decide how ``model`` is loaded for a request with ``options``. Raises BadRequest for a model without weights."""
    if model.weights is None:
        raise BadRequest(f"model '{model.name.short}' has no weights on this machine")
    n_ctx = context(gguf, options, settings, machine)
    n_batch = batch(gguf, options, n_ctx)
    weights = _weight_bytes(model)
    cell = cache_bytes_per_token(gguf, settings.kv_cache_type)
    cell += cell * _draft_bytes(model) // max(1, weights - _draft_bytes(model))
    work = _work_bytes(gguf, n_batch)
    n_seq = 1 if is_embedding(gguf) else sequences(settings, machine.free_memory - weights - work, n_ctx * cell)
    load = wire.Load(
        path=str(model.weights),
        draft="" if model.draft is None or options.draft_num_predict == 0 else str(model.draft),
        n_ctx=n_ctx,
        n_seq=n_seq,
        n_batch=n_batch,
        n_threads=options.num_thread,
        n_gpu_layers=options.num_gpu,
        main_gpu=options.main_gpu,
        use_mmap=options.use_mmap is not False,
        flash_attention=settings.flash_attention,
        kv_cache_type=settings.kv_cache_type,
        prefix_folder=str(settings.home / "prefixes") if settings.prefix_cache > 0 else "",
        prefix_bytes=settings.prefix_cache,
    )
    return Placement(load, weights + work + n_seq * n_ctx * cell)


def serves(loaded: wire.Load, wanted: wire.Load, options: Options) -> bool:
    """Whether a runner that was loaded as ``loaded`` answers a request that by itself would load ``wanted``.

    A smaller context is served by a larger one; what the options leave open is served by anything. Adapters are a
    matter of each request.
    """
    asked = (
        (options.num_batch is not None and options.num_batch > 0, "n_batch"),
        (options.num_gpu >= 0, "n_gpu_layers"),
        (options.main_gpu is not None, "main_gpu"),
        (options.use_mmap is not None, "use_mmap"),
        (options.num_thread > 0, "n_threads"),
    )
    return (
        loaded.path == wanted.path
        and wanted.draft in ("", loaded.draft)
        and wanted.n_ctx <= loaded.n_ctx
        and all(getattr(loaded, field) == getattr(wanted, field) for is_asked, field in asked if is_asked)
    )


def context(gguf: GGUF, options: Options, settings: Settings, machine: Machine) -> int:
    """Tokens of one sequence: asked for, else by the environment, else by graphics memory; at most as trained."""
    asked = options.num_ctx or settings.context_length
    n_ctx = asked or next(tier for least, tier in _CONTEXT_TIERS if machine.vram >= least)
    trained = _count(gguf, "context_length")
    return max(LEAST_CONTEXT, min(n_ctx, trained) if trained > 0 else n_ctx)


def batch(gguf: GGUF, options: Options, n_ctx: int) -> int:
    """Tokens of one decode, never more than a context needs. Embedding models see an input as a whole: it must fit."""
    if options.num_batch is not None and options.num_batch > 0:
        return min(options.num_batch, max(MOST_BATCH, n_ctx))
    if is_embedding(gguf):
        return min(MOST_BATCH, n_ctx)
    return next(size for above, size in _BATCH_TIERS if n_ctx > above)


def sequences(settings: Settings, free: int, context_bytes: int) -> int:
    """How many are served at once: as the environment says, else as many full contexts as fit a share of ``free``."""
    if settings.num_parallel > 0:
        return settings.num_parallel
    if context_bytes <= 0:
        return MOST_SEQUENCES
    return max(1, min(MOST_SEQUENCES, int(free * KV_SHARE) // context_bytes))


def is_embedding(gguf: GGUF) -> bool:
    """Whether the model pools its output into vectors and writes no text."""
    return gguf.arch("pooling_type") is not None


def cache_bytes_per_token(gguf: GGUF, cache_type: str) -> int:
    """Bytes of key and value cache for one token of one sequence over all layers; 0 for models that keep none."""
    heads = _counts(gguf, "attention.head_count")
    if not any(heads) or gguf.arch("attention.causal") is False:
        return 0
    kv_heads = _counts(gguf, "attention.head_count_kv") or heads
    layers = _count(gguf, "block_count")
    all_kv_heads = kv_heads[0] * layers if len(kv_heads) == 1 else sum(kv_heads)
    width = _count(gguf, "embedding_length") // max(heads)
    key = _count(gguf, "attention.key_length") or width
    value = _count(gguf, "attention.value_length") or width
    return int(all_kv_heads * (key + value) * _CACHE_BYTES.get(cache_type, 2.0))


def _counts(gguf: GGUF, key: str) -> tuple[int, ...]:
    """One count, or one a layer; none when the header does not say or the array was not read."""
    value = gguf.arch(key)
    values = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(count for count in values if isinstance(count, int) and 0 <= count < _BIGGEST)


def _count(gguf: GGUF, key: str) -> int:
    """A count of the header; 0 when it is missing or no count. The header is untrusted."""
    return max(_counts(gguf, key), default=0)


def _weight_bytes(model: Model) -> int:
    return sum(
        layer.size for layer in model.manifest.layers if layer.kind in ("model", "adapter", "projector", "draft")
    )


def _draft_bytes(model: Model) -> int:
    return sum(layer.size for layer in model.manifest.layers if layer.kind == "draft")


def _work_bytes(gguf: GGUF, n_batch: int) -> int:
    """About what one decode works in: the activations of a batch, and buffers of a fixed size."""
    widest = max(_count(gguf, "feed_forward_length"), _count(gguf, "embedding_length"))
    return 8 * 4 * n_batch * widest + (64 << 20)
