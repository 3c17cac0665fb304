"""The prefix cache on disk while the engine runs: load before a prompt is admitted, store after it was read.

The engine's thread only decides and copies states. Files are read, verified and written by two worker threads, a few at
a time; what cannot be done now is skipped. A load delays only the sequence that it is for.

``choose_prefix`` and ``worth_storing`` are the pure decisions. They compare the seconds of computing that a prefix
saves with the seconds of reading it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ollama_nb.engine.llama import Bytes, Context
from ollama_nb.engine.messages import Adapters
from ollama_nb.engine.prefix_store import Prefix, PrefixStore
from ollama_nb.engine.scheduler import Batch, Scheduler
from ollama_nb.engine.sequence import Sequence
from ollama_nb.engine.slots import MIN_SHARED, common_prefix

MIN_TOKENS = 64  # shorter prefixes are not stored
MIN_NEW_SHARE = 0.25  # of the tokens; a chat is not written again every turn
READ_RATE = 300e6  # bytes per second that are read and verified, until measured
READ_DELAY = 0.005  # seconds
MIN_SPEEDUP = 2.0  # of reading over computing

MAX_PENDING = 1 << 30  # bytes of states waiting for their sequences, and of those waiting for the disk, except for one
MAX_WRITES = 2  # states being written: that of a prompt, and that of its reply if the reply is quick
MAX_COPY_BESIDE = 64 << 20  # bytes; a larger copy (20 ms, about a step of such a model) would stall running replies
MIN_TIMED = 64  # prompt tokens; smaller batches say little about the speed of long prompts
WRITE_PAUSE = 0.01  # seconds between two chunks while replies run: a chunk delays ggml's threads by 1 ms


def reusable_tokens(prefix: Prefix, prompt: list[int], *, cuttable: bool) -> int:
    """Return how many tokens of ``prompt`` a prefix covers; memory that is not ``cuttable`` needs the whole prefix."""
    count = common_prefix(prefix.tokens, prompt)
    return count if cuttable or count == len(prefix.tokens) else 0


def choose_prefix(
    known: Iterable[Prefix], prompt: list[int], held: int, *, cuttable: bool, limit: int, rate: float = READ_RATE
) -> tuple[Prefix, int] | None:
    """Return the prefix that saves the most time, and how many tokens of it to use; None: computing is as fast.

    ``held``: tokens of the prompt that memory already has; ``limit``: most tokens of a sequence; ``rate``: bytes per
    second.
    """
    best, gain = None, 0.0
    for prefix in known:
        if len(prefix.tokens) > limit:
            continue
        count = reusable_tokens(prefix, prompt, cuttable=cuttable)
        saved, cost = (count - held) * prefix.token_seconds, READ_DELAY + prefix.size / rate
        if count - held >= MIN_SHARED and saved >= MIN_SPEEDUP * cost and saved - cost > gain:
            best, gain = (prefix, count), saved - cost
    return best


def worth_storing(
    known: Iterable[Prefix], tokens: list[int], token_seconds: float, *, cuttable: bool, min_gain: float
) -> bool:
    """Return whether the new part of ``tokens`` is large enough and would save ``min_gain`` seconds of computing."""
    if len(tokens) < MIN_TOKENS:
        return False
    covered = max((reusable_tokens(prefix, tokens, cuttable=cuttable) for prefix in known), default=0)
    new = len(tokens) - covered
    return new > 0 and new * token_seconds >= min_gain and new >= MIN_NEW_SHARE * len(tokens)


@dataclass(slots=True)
class PrefixCounts:
    """Since load: prefixes restored, their tokens and bytes, and prefixes stored."""

    hits: int = 0
    tokens: int = 0
    bytes: int = 0
    stored: int = 0


@dataclass(frozen=True, slots=True)
class _Load:
    store: PrefixStore
    prefix: Prefix
    count: int
    state: Future[Bytes | None]


class PrefixCache:
    """The prefix cache of one engine.

    ``open_store`` returns the store for a set of adapters and may raise OSError; ``limit``: most tokens of a sequence;
    ``min_gain``: seconds of computing that a stored prefix must save.
    """

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        open_store: Callable[[Adapters], PrefixStore],
        *,
        limit: int,
        min_gain: float,
        cuttable: bool,
    ) -> None:
        self._context, self._scheduler, self._open_store = context, scheduler, open_store
        self._limit, self._min_gain, self._cuttable = limit, min_gain, cuttable
        self._stores: dict[Adapters, PrefixStore | None] = {}
        self._store_for(())
        self._seen: set[int] = set()
        self._loads: dict[int, _Load] = {}
        self._token_seconds = 0.0
        self._read_rate = READ_RATE
        self._reader = ThreadPoolExecutor(1, "prefix-reader")
        self._writer = ThreadPoolExecutor(1, "prefix-writer")
        for executor in (self._reader, self._writer):
            executor.submit(int)  # starts its thread: if that fails, it fails now and not in the middle of a step
        self._hurry = threading.Event()
        self._writes: dict[Future[None], tuple[PrefixStore, Prefix]] = {}
        self.counts = PrefixCounts()

    # Before and after admission

    def start_loads(self) -> None:
        """Start to load prefixes for waiting sequences, which are held back until their load has ended."""
        scheduler = self._scheduler
        idle = len(scheduler.slots.slots) - scheduler.slots.busy
        free = idle + sum(seq.background for seq in scheduler.running)  # which give up their slots
        for taken, seq in enumerate(scheduler.waiting):
            if taken >= (idle if seq.background else free) or (seq.background and not scheduler.admits_background):
                break
            if seq.id not in self._seen:
                self._seen.add(seq.id)
                self._start_load(seq)
            elif seq.loading and self._loads[seq.id].state.done():
                seq.loading = False

    def wait(self, seconds: float) -> None:
        """Wait up to ``seconds`` for a load to end, if there is one."""
        pending = [load.state for load in self._loads.values() if not load.state.done()]
        if pending:
            wait(pending, seconds, FIRST_COMPLETED)

    def restore(self, seq: Sequence) -> None:
        """Write the loaded state into the slot of a newly admitted sequence, unless memory has as much."""
        load = self._loads.pop(seq.id, None)
        if load is None or load.count - seq.n_past < MIN_SHARED:
            return
        state = load.state.result()
        if state is None:
            return
        if not self._put(seq, load, state):
            self._scheduler.recompute(seq.slot)
            return
        seq.n_past = seq.cached = load.count
        self.counts.hits += 1
        self.counts.tokens += load.count
        self.counts.bytes += load.prefix.size

    # After a step

    def record_step(self, batch: Batch, seconds: float) -> None:
        """Measure the time of a prompt token, and store the prompts that are complete."""
        size = batch.size
        if size - batch.replies >= MIN_TIMED:
            cost = seconds / size
            self._token_seconds = (self._token_seconds + cost) / 2 if self._token_seconds else cost
        for chunk in batch.chunks[batch.replies :]:
            # A state that cannot be cut is only useful before the last token, which every prompt must read.
            last = chunk.output if self._cuttable else 0 < chunk.seq.pending <= self._context.n_batch
            if last:
                self._save(chunk.seq)

    def remove(self, seq: Sequence, *, intact: bool) -> None:
        """Store a sequence that is about to leave; not ``intact``: its memory may be wrong."""
        self._seen.discard(seq.id)
        self._loads.pop(seq.id, None)
        if intact and seq.slot >= 0:
            self._save(seq)

    def flush(self, seconds: float) -> None:
        """Wait up to ``seconds`` until current writes are on disk. Any thread."""
        self._hurry.set()
        wait(tuple(self._writes), seconds)
        self._hurry.clear()

    def close(self) -> None:
        """Stop both threads after finishing the writes."""
        self._loads.clear()
        self._hurry.set()
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def _start_load(self, seq: Sequence) -> None:
        """Start to load the prefix that saves this sequence much computing, if there is one."""
        prompt, adapters = seq.tokens[:-1], seq.adapters  # the last token is always read: its logits are needed
        store = self._store_for(adapters)
        known = () if store is None else store.known
        if store is None or not known:
            return
        slots = self._scheduler.slots.slots
        held = max(max(slot.matching(prompt, adapters), slot.upcoming(prompt, seq)) for slot in slots)
        found = choose_prefix(
            known, prompt, held, cuttable=self._cuttable, limit=self._limit, rate=self._read_rate
        )  # fmt: skip
        if found is None:
            return
        prefix, count = found
        state = next((load.state for load in self._loads.values() if load.prefix.name == prefix.name), None)
        if state is None:
            pending = sum(load.prefix.size for load in self._loads.values())
            if pending and pending + prefix.size > MAX_PENDING:
                return
            state = self._reader.submit(self._load, store, prefix)
        self._loads[seq.id] = _Load(store, prefix, count, state)
        seq.loading = True

    def _put(self, seq: Sequence, load: _Load, state: Bytes) -> bool:
        """Write a state into the sequence's slot. On failure return False with an empty slot."""
        context, slot, whole = self._context, seq.slot, len(load.prefix.tokens)
        context.cut(slot, 0)
        if not context.restore(slot, state) or context.extent(slot)[1] != whole - 1:
            context.cut(slot, 0)
            load.store.remove(load.prefix)
            return False
        return load.count == whole or context.cut(slot, load.count)

    def _save(self, seq: Sequence) -> None:
        """Copy the sequence's state and start to write it, if it is worth storing and can be copied now."""
        self._writes = {write: kept for write, kept in self._writes.items() if not write.done()}
        store = self._store_for(seq.adapters)
        if (
            store is None
            or seq.reusable != seq.n_past
            or not self._token_seconds
            or len(self._writes) == MAX_WRITES
        ):  # fmt: skip
            return
        tokens = seq.tokens[: seq.n_past]
        known = (*store.known, *(prefix for other, prefix in self._writes.values() if other is store))
        if not worth_storing(known, tokens, self._token_seconds, cuttable=self._cuttable, min_gain=self._min_gain):
            return
        size = self._context.state_size(seq.slot)
        pending = sum(prefix.size for _, prefix in self._writes.values())
        if (pending and pending + size > MAX_PENDING) or (size > MAX_COPY_BESIDE and self._others_run(seq)):
            return
        state = self._context.save(seq.slot)
        if len(state):
            write = self._writer.submit(self._store, store, tokens, state, self._token_seconds)
            self._writes[write] = store, Prefix("", tokens, size, self._token_seconds)

    def _store_for(self, adapters: Adapters) -> PrefixStore | None:
        """Return the store for a set of adapters; None if a file of theirs is missing."""
        if adapters not in self._stores:
            try:
                self._stores[adapters] = self._open_store(adapters)
            except OSError:
                self._stores[adapters] = None
        return self._stores[adapters]

    def _others_run(self, seq: Sequence) -> bool:
        return any(other is not seq for other in self._scheduler.running)

    # In the worker threads

    def _load(self, store: PrefixStore, prefix: Prefix) -> Bytes | None:
        started = time.perf_counter()
        state = store.load(prefix)
        if state is not None:
            self._read_rate = prefix.size / max(time.perf_counter() - started, 1e-6)
        return state

    def _store(self, store: PrefixStore, tokens: list[int], state: Bytes, token_seconds: float) -> None:
        self.counts.stored += store.store(tokens, state, token_seconds, self._pause) is not None

    def _pause(self) -> None:
        if self._scheduler.running:
            self._hurry.wait(WRITE_PAUSE)
