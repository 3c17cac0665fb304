"""Build the parts of an engine from its configuration: model, context, draft model, prefix cache, facts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ollama_nb.api.models import TokenizerVocabulary, draft_mismatch
from ollama_nb.api.options import RANGES
from ollama_nb.engine.embedder import Embedder
from ollama_nb.engine.llama import BUILD, KV_TYPES, MAX_SEQUENCES, Context, LlamaModel
from ollama_nb.engine.messages import MIN_CONTEXT, Adapters, EngineConfig, EngineFacts, FillTokens
from ollama_nb.engine.prefix_cache import PrefixCache
from ollama_nb.engine.prefix_store import PrefixStore, state_identity
from ollama_nb.engine.scheduler import Scheduler
from ollama_nb.engine.speculation import DraftModel
from ollama_nb.engine.threads import MIN_LIMIT, ThreadTuner, Watchdog, default_threads, usable_processors
from ollama_nb.errors import LoadError

MICRO_BATCH = 512  # rows
MAX_CALIBRATED = 2 << 30  # bytes of weights; one step of a larger model on one thread takes too long


@dataclass(frozen=True, slots=True)
class ContextShape:
    """Context length, number of sequences and threads: as configured, within what the model supports."""

    n_ctx: int
    n_seq: int
    n_threads: int

    @classmethod
    def of(cls, config: EngineConfig, model: LlamaModel) -> ContextShape:
        trained = model.n_ctx_train or config.n_ctx
        return cls(
            n_ctx=max(MIN_CONTEXT, min(config.n_ctx, trained, RANGES["num_ctx"][1])),
            n_seq=max(1, min(config.n_seq, MAX_SEQUENCES)),
            n_threads=min(config.n_threads, usable_processors())
            if config.n_threads > 0
            else default_threads(model.n_params),
        )

    @property
    def cells(self) -> int:
        return self.n_ctx * self.n_seq


def load_model(config: EngineConfig, path: str = "") -> LlamaModel:
    """Load the model of ``config``, or the one at ``path`` with the same settings. Raises LoadError."""
    if config.kv_cache_type not in KV_TYPES:
        raise LoadError(f'KV cache type "{config.kv_cache_type}" is not one of {", ".join(KV_TYPES)}')
    return LlamaModel(
        path or config.path,
        vocab_only=config.vocab_only,
        n_gpu_layers=config.n_gpu_layers,
        main_gpu=config.main_gpu,
        use_mmap=config.use_mmap,
    )


def make_context(config: EngineConfig, model: LlamaModel, shape: ContextShape) -> Context:
    """Raises LoadError."""
    if model.two_part:
        raise LoadError("encoder-decoder models (such as T5) cannot be run")
    n_batch = max(min(config.n_batch, RANGES["num_batch"][1]), 2 * shape.n_seq, 32)
    return Context(
        model,
        cells=shape.cells,
        n_seq=shape.n_seq,
        n_batch=n_batch,
        n_ubatch=min(n_batch, MICRO_BATCH),
        n_threads=shape.n_threads,
        flash_attention=config.flash_attention,
        kv_type=config.kv_cache_type,
    )


def make_draft_model(config: EngineConfig, model: LlamaModel, shape: ContextShape) -> DraftModel:
    """Load the draft model of ``config``. Raises LoadError if it does not fit ``model``."""
    try:
        draft = load_model(config, config.draft)
        reason = mismatch(model, draft)
        if not reason:
            small = replace(shape, n_threads=min(shape.n_threads, default_threads(draft.n_params)))
            return DraftModel(make_context(config, draft, small), model.n_vocab, small.n_threads)
        draft.close()
    except LoadError as error:
        reason = error.message
    raise LoadError(f"the draft model cannot be used: {reason} (without it: option draft_num_predict 0)")


def mismatch(model: LlamaModel, draft: LlamaModel) -> str:
    """Return why a model cannot draft for another one; empty if it can."""
    if draft.embeds_only or draft.two_part or draft.recurrent:
        return f'a model of the architecture "{draft.architecture}" cannot draft'
    known = (TokenizerVocabulary(str(one.vocabulary_type), one.texts(), one.is_control) for one in (model, draft))
    return draft_mismatch(*known)


def make_embedder(config: EngineConfig, model: LlamaModel, shape: ContextShape) -> Embedder:
    return Embedder(
        model,
        n_ctx=shape.n_ctx,
        n_threads=shape.n_threads,
        flash_attention=config.flash_attention,
    )


def make_scheduler(context: Context | None, shape: ContextShape) -> Scheduler:
    if context is None:
        return Scheduler(1, 2)
    cuttable = not context.model.recurrent
    return Scheduler(shape.n_seq, context.n_batch, cuttable=cuttable, can_shift=context.can_shift)


def make_prefix_cache(
    config: EngineConfig, context: Context | None, scheduler: Scheduler, shape: ContextShape
) -> PrefixCache | None:
    """Return the prefix cache on disk, None where it is switched off."""
    if context is None or not config.prefix_folder or config.prefix_bytes <= 0:
        return None
    model, folder = context.model, Path(config.prefix_folder)
    cuttable = not model.recurrent
    facts: dict[str, str | bool] = {
        "kv_type": config.kv_cache_type, "flash": str(config.flash_attention), "gpu": model.offloaded > 0
    }  # fmt: skip

    def open_store(adapters: Adapters) -> PrefixStore:
        identity = state_identity(BUILD, config.path, adapters, **facts)
        return PrefixStore(folder, identity, config.prefix_bytes, cuttable=cuttable)

    return PrefixCache(
        context, scheduler, open_store, limit=shape.n_ctx, min_gain=config.prefix_gain, cuttable=cuttable
    )


def warm_up(context: Context, tuner: ThreadTuner, watchdog: Watchdog) -> None:
    """Read the weights into memory, and measure a step with one thread and with all unless the model is large."""
    if tuner.max_threads == 1 or context.model.size > MAX_CALIBRATED:
        context.time_one()
        return
    context.set_threads(1)
    alone = min(context.time_one() for _ in range(2))
    context.set_threads(tuner.max_threads)
    watchdog.arm(2 * alone + MIN_LIMIT)
    together = min(context.time_one() for _ in range(2))
    watchdog.disarm()
    context.rearm()
    tuner.calibrate(together, alone)
    context.set_threads(tuner.threads)


def gather_facts(
    config: EngineConfig,
    model: LlamaModel,
    context: Context | None,
    draft: LlamaModel | None,
    shape: ContextShape,
    seconds: float,
) -> EngineFacts:
    cells = shape.cells if context is not None else 0
    loaded = [] if model.vocab_only else [model] if draft is None else [model, draft]
    size = sum(one.size + one.kv_bytes(cells, config.kv_cache_type) for one in loaded)
    return EngineFacts(
        n_ctx=shape.n_ctx,
        n_ctx_train=model.n_ctx_train,
        n_seq=shape.n_seq,
        n_vocab=model.n_vocab,
        n_embd=model.n_embd,
        size=size,
        size_vram=int(size * model.offloaded),
        add_bos=model.add_bos,
        add_eos=model.add_eos,
        bos=model.bos_text,
        eos=model.eos_text,
        pooling=model.pooling,
        load_seconds=seconds,
        build=BUILD,
        n_threads=shape.n_threads,
        fim=FillTokens(*model.fill_tokens) if model.fill_tokens else None,
    )
