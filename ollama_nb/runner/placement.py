"""How a model is loaded: context, sequences, batch, layers on a GPU; and the memory of this machine.

``place`` is pure: header, options and memory in, an EngineConfig out. A value that the user set is only limited to what
the model supports; free memory decides only about values that the user left open.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.options import RANGES, Options
from ollama_nb.engine.messages import MIN_CONTEXT
from ollama_nb.errors import BadRequest
from ollama_nb.runner import wire
from ollama_nb.settings import Settings

MAX_PARALLEL = 255  # sequences that llama.cpp serves at once
MAX_SEQUENCES = 8  # sequences served at once, where the user sets no number
KV_SHARE = 0.25  # part of the memory left free by the weights that the KV cache of these sequences may take
MAX_BATCH = 2048  # tokens of one decode
UNKNOWN_MEMORY = 4 << 30  # bytes assumed to be free on systems other than Linux

_GRAPHICS = ("dev/nvidia0", "dev/nvidiactl", "dev/kfd", "dev/dri/renderD128")  # devices that can hold weights
_GIB = 1 << 30
_MAX_COUNT = 1 << 31  # larger counts of a header are not valid
_CONTEXT_TIERS = ((47 * _GIB, 262_144), (23 * _GIB, 32_768), (0, 4096))  # graphics memory from → tokens
_SMALLER_CACHE = ("attention.sliding_window", "attention.kv_lora_rank", "full_attention_interval", "ssm.state_size")
"""Keys of models whose KV cache is smaller than it is estimated here."""
_SHORTER = (32_768, 4096, 2048)  # contexts that are tried when an automatic one does not fit, in tokens
_BATCH_TIERS = ((32_768, 2048), (4096, 1024), (0, 512))  # contexts above → tokens
_CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
                "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Memory for models, in bytes: ``free_memory`` can be used without swapping, ``vram`` is graphics memory.

    A container's limits count, not the size of the host. ``binding``: a load that needs more is refused. That is not
    so where the memory cannot be measured, and where a graphics card may hold the weights.
    """

    free_memory: int
    vram: int = 0
    binding: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """How to load a model, and an estimate of the bytes that it takes.

    ``smaller``: other ways that take less, in the order in which they are tried: one sequence, then also a shorter
    context if its length was chosen automatically. ``must_fit``: a load with too little memory for it is refused.
    """

    load: wire.EngineConfig
    bytes_needed: int
    smaller: tuple[Placement, ...] = ()
    must_fit: bool = False


def place(model: Model, gguf: GGUF, options: Options, settings: Settings, machine: MachineMemory) -> Placement:
    """Decide how to load ``model`` for a request with ``options``. Raises BadRequest for a model without weights."""
    if model.weights is None:
        raise BadRequest(f"model '{model.name.short}' has no weights on this machine")
    n_ctx = context(gguf, options, settings, machine)
    n_batch = batch(gguf, options, n_ctx)
    weights = _weight_bytes(model)
    cell = cache_bytes_per_token(gguf, settings.kv_cache_type)
    cell += cell * _draft_bytes(model) // max(1, weights - _draft_bytes(model))
    work = _work_bytes(gguf, n_batch)
    n_seq = 1 if is_embedding(gguf) else sequences(settings, machine.free_memory - weights - work, n_ctx * cell)
    load = wire.EngineConfig(
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
    smaller = [msgspec.structs.replace(load, n_seq=1)]
    if not (options.num_ctx or settings.context_length):
        smaller.append(msgspec.structs.replace(load, n_seq=1, n_ctx=_shorter(n_ctx)))
    needed = [weights + work + one.n_seq * one.n_ctx * cell for one in (load, *smaller)]
    less = zip(smaller, needed[1:], strict=True)
    must_fit = machine.binding and not any(gguf.arch(key) is not None for key in _SMALLER_CACHE)
    return Placement(
        load, needed[0], tuple(Placement(one, size) for one, size in less if size < needed[0]), must_fit=must_fit
    )


def _shorter(n_ctx: int) -> int:
    """The automatic context below ``n_ctx`` tokens; the shortest one stays as it is."""
    return next((tokens for tokens in _SHORTER if tokens < n_ctx), n_ctx)


def serves(loaded: wire.EngineConfig, wanted: wire.EngineConfig, options: Options) -> bool:
    """Whether a runner loaded as ``loaded`` can serve a request for which alone ``wanted`` would be loaded.

    A larger context serves a smaller one, and any value serves an option that the request leaves open. Adapters do not
    matter, because each request names its own.
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


def context(gguf: GGUF, options: Options, settings: Settings, machine: MachineMemory) -> int:
    """Tokens of one sequence: from the options, else the settings, else graphics memory; at most as trained."""
    asked = options.num_ctx or settings.context_length
    n_ctx = asked or next(tier for least, tier in _CONTEXT_TIERS if machine.vram >= least)
    trained = _count(gguf, "context_length")
    most = RANGES["num_ctx"][1]
    return max(MIN_CONTEXT, min(n_ctx, trained if trained > 0 else most, most))


def batch(gguf: GGUF, options: Options, n_ctx: int) -> int:
    """Tokens of one decode, at most a context. An embedding model reads each input in one decode, so it must fit."""
    if options.num_batch is not None and options.num_batch > 0:
        return min(options.num_batch, max(MAX_BATCH, n_ctx), RANGES["num_batch"][1])
    if is_embedding(gguf):
        return min(MAX_BATCH, n_ctx)
    return next(size for above, size in _BATCH_TIERS if n_ctx > above)


def sequences(settings: Settings, free: int, context_bytes: int) -> int:
    """Sequences served at once: from the settings, else as many full contexts as fit into a share of ``free``."""
    if settings.num_parallel > 0:
        return min(settings.num_parallel, MAX_PARALLEL)
    if context_bytes <= 0:
        return MAX_SEQUENCES
    return max(1, min(MAX_SEQUENCES, int(free * KV_SHARE) // context_bytes))


def is_embedding(gguf: GGUF) -> bool:
    """Whether the model pools its output into vectors, and so cannot write text."""
    return gguf.arch("pooling_type") is not None


def cache_bytes_per_token(gguf: GGUF, cache_type: str) -> int:
    """Bytes of KV cache for one token of one sequence over all layers; 0 for models without one."""
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
    """One count, or one per layer; empty when the key is missing or its array was not read."""
    value = gguf.arch(key)
    values = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(count for count in values if isinstance(count, int) and 0 <= count < _MAX_COUNT)


def _count(gguf: GGUF, key: str) -> int:
    """A count of the header; 0 when it is missing or not a valid count. The header is untrusted."""
    return max(_counts(gguf, key), default=0)


def _weight_bytes(model: Model) -> int:
    return sum(
        layer.size for layer in model.manifest.layers if layer.kind in ("model", "adapter", "projector", "draft")
    )


def _draft_bytes(model: Model) -> int:
    return sum(layer.size for layer in model.manifest.layers if layer.kind == "draft")


def _work_bytes(gguf: GGUF, n_batch: int) -> int:
    """Estimated bytes for one decode: the activations of a batch, and buffers of a fixed size."""
    widest = max(_count(gguf, "feed_forward_length"), _count(gguf, "embedding_length"))
    return 8 * 4 * n_batch * widest + (64 << 20)


def measure(root: Path = Path("/")) -> MachineMemory:
    """Measure now; ``root`` is the folder that contains ``proc`` and ``sys``."""
    left = [amount for group in _cgroups(root) if (amount := _memory_left(group)) is not None]
    available = _available(root)
    known = available is not None and not any((root / device).exists() for device in _GRAPHICS)
    return MachineMemory(max(0, min([UNKNOWN_MEMORY if available is None else available, *left])), binding=known)


def _available(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) << 10
    return None


def _cgroups(root: Path) -> list[Path]:
    """This process's control group and its parents (version 2)."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, path = line.partition("::")
        if number == "0":
            top = root / "sys/fs/cgroup"
            group = top / path.strip("/")
            return [group, *(above for above in group.parents if above.is_relative_to(top))]
    return []


def _memory_left(group: Path) -> int | None:
    limit, used = _read(group / "memory.max"), _read(group / "memory.current")
    if not (limit.isdigit() and used.isdigit()):
        return None
    return int(limit) - int(used) + _reclaimable(_read(group / "memory.stat"))


def _reclaimable(stat: str) -> int:
    """Bytes of file pages: they count as used, but the kernel frees them on demand."""
    return sum(
        int(amount)
        for name, _, amount in (line.partition(" ") for line in stat.splitlines())
        if name == "inactive_file"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
