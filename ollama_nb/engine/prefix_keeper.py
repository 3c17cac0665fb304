"""Prefixes between memory and disk while the engine runs: fetched before a prompt is admitted, kept once it was read.

Rule: the engine's thread only copies states and takes decisions. Files are read, proven and written by two threads,
and no more than a few at a time: what cannot be done now is left undone. A fetch holds back only the sequence that it
is for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ollama_nb.engine.adapters import Adapters
from ollama_nb.engine.llama import Bytes, Context
from ollama_nb.engine.prefix import READ_RATE, Prefix, choose, worth_keeping
from ollama_nb.engine.prefix_files import PrefixFiles
from ollama_nb.engine.prefix_shelf import Shelf
from ollama_nb.engine.scheduler import Batch, Scheduler
from ollama_nb.engine.sequence import Sequence
from ollama_nb.engine.slots import MIN_SHARED

PENDING = 1 << 30
"""Bytes of states that wait for their sequences, and of those that wait for the disk, unless it is one alone."""
MOST_WRITES = 2
"""States on their way to the disk: that of a prompt, and that of its reply if it ends sooner than the writing."""
COPIED_BESIDE = 64 << 20
"""Largest state that is copied while others are being answered: some 20 ms, about one step of such a model."""
TIMED = 64
"""Batches of fewer prompt tokens say little about the pace of long ones."""
PAUSE = 0.01
"""Seconds between two pieces of a write while replies run: ggml's threads wait for the slowest, a piece costs 1 ms."""


@dataclass(slots=True)
class PrefixCounts:
    """Since load: prefixes restored, tokens and bytes of them, prefixes written."""

    hits: int = 0
    tokens: int = 0
    bytes: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class _Fetch:
    shelf: Shelf
    prefix: Prefix
    count: int
    state: Future[Bytes | None]


class PrefixKeeper:
    """The disk's side of one engine. ``least``: seconds of computing that a kept prefix must save another time.

    ``files`` gives those of a set of adapters; it may raise OSError.
    """

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        files: Callable[[Adapters], PrefixFiles],
        *,
        limit: int,
        least: float,
        cuttable: bool,
    ) -> None:
        self._context, self._scheduler, self._files = context, scheduler, files
        self._limit, self._least, self._cuttable = limit, least, cuttable
        self._shelves: dict[Adapters, Shelf | None] = {}
        self._shelf(())
        self._seen: set[int] = set()
        self._fetches: dict[int, _Fetch] = {}
        self._pace = 0.0
        self._rate = READ_RATE
        self._reader = ThreadPoolExecutor(1, "prefix-reader")
        self._writer = ThreadPoolExecutor(1, "prefix-writer")
        self._hurry = threading.Event()
        self._writing: dict[Future[None], tuple[Shelf, Prefix]] = {}
        self.counts = PrefixCounts()

    # Before and after admission

    def look(self) -> None:
        """Hold back the waiting sequences whose prefix is on its way from the disk; let go those whose has come."""
        slots = self._scheduler.slots
        free = len(slots.slots) - slots.busy
        for seq in self._scheduler.waiting:
            if not free:
                break
            free -= 1
            if seq.id not in self._seen:
                self._seen.add(seq.id)
                self._begin(seq)
            elif seq.held and self._fetches[seq.id].state.done():
                seq.held = False

    def wait(self, seconds: float) -> None:
        """Wait, if something is being fetched, until it is there."""
        pending = [fetch.state for fetch in self._fetches.values() if not fetch.state.done()]
        if pending:
            wait(pending, seconds, FIRST_COMPLETED)

    def restore(self, seq: Sequence) -> None:
        """Give a sequence that was just admitted what was fetched for it, unless memory had as much."""
        fetch = self._fetches.pop(seq.id, None)
        if fetch is None or fetch.count - seq.n_past < MIN_SHARED:
            return
        state = fetch.state.result()
        if state is None:
            fetch.shelf.forget(fetch.prefix)
        elif self._put(seq, fetch, state):
            seq.n_past = seq.cached = fetch.count
            self.counts.hits += 1
            self.counts.tokens += fetch.count
            self.counts.bytes += fetch.prefix.size
        else:
            self._scheduler.recompute(seq.slot)

    # After decodes

    def observe(self, batch: Batch, seconds: float) -> None:
        """A batch was read: learn what a prompt token costs, and keep the prompts that are complete."""
        size = batch.size
        if size - batch.replies >= TIMED:
            cost = seconds / size
            self._pace = (self._pace + cost) / 2 if self._pace else cost
        for chunk in batch.chunks[batch.replies :]:
            # Memory that cannot be cut is of use only while the prompt is not complete: its last token is always read.
            last = chunk.output if self._cuttable else 0 < chunk.seq.pending <= self._context.n_batch
            if last:
                self._keep(chunk.seq)

    def leave(self, seq: Sequence, *, whole: bool) -> None:
        """A sequence is about to leave its slot, or the queue; not ``whole``: its memory is in doubt."""
        self._seen.discard(seq.id)
        self._fetches.pop(seq.id, None)
        if whole and seq.slot >= 0:
            self._keep(seq)

    def flush(self, seconds: float) -> None:
        """Wait until what is being written is on the disk. Any thread."""
        self._hurry.set()
        wait(tuple(self._writing), seconds)
        self._hurry.clear()

    def close(self) -> None:
        """End both threads; what is to be written is written."""
        self._fetches.clear()
        self._hurry.set()
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def _begin(self, seq: Sequence) -> None:
        """Start to fetch what spares this sequence much more computing than memory does."""
        prompt, adapters = seq.tokens[:-1], seq.adapters  # the last token is always read: its logits are needed
        shelf = self._shelf(adapters)
        known = () if shelf is None else shelf.known
        if shelf is None or not known:
            return
        slots = self._scheduler.slots.slots
        held = max(max(slot.common(prompt, adapters), slot.promised(prompt, adapters)) for slot in slots)
        found = choose(known, prompt, held, cuttable=self._cuttable, limit=self._limit, rate=self._rate)
        if found is None:
            return
        prefix, count = found
        state = next((fetch.state for fetch in self._fetches.values() if fetch.prefix.name == prefix.name), None)
        if state is None:
            waiting = sum(fetch.prefix.size for fetch in self._fetches.values())
            if waiting and waiting + prefix.size > PENDING:
                return
            state = self._reader.submit(self._read, shelf, prefix)
        self._fetches[seq.id] = _Fetch(shelf, prefix, count, state)
        seq.held = True

    def _put(self, seq: Sequence, fetch: _Fetch, state: Bytes) -> bool:
        """Write a state into the sequence's slot. False: the slot is empty."""
        context, slot, whole = self._context, seq.slot, len(fetch.prefix.tokens)
        context.cut(slot, 0)
        if not context.restore(slot, state) or context.extent(slot)[1] != whole - 1:
            context.cut(slot, 0)
            fetch.shelf.remove(fetch.prefix)
            return False
        return fetch.count == whole or context.cut(slot, fetch.count)

    def _keep(self, seq: Sequence) -> None:
        """Copy the sequence's state and have it written, if that is worth it and can be done now."""
        self._writing = {write: kept for write, kept in self._writing.items() if not write.done()}
        shelf = self._shelf(seq.adapters)
        if shelf is None or seq.reusable != seq.n_past or not self._pace or len(self._writing) == MOST_WRITES:
            return
        tokens = seq.tokens[: seq.n_past]
        known = (*shelf.known, *(prefix for other, prefix in self._writing.values() if other is shelf))
        if not worth_keeping(known, tokens, self._pace, cuttable=self._cuttable, least=self._least):
            return
        size = self._context.state_size(seq.slot)
        pending = sum(prefix.size for _, prefix in self._writing.values())
        if (pending and pending + size > PENDING) or (size > COPIED_BESIDE and self._others(seq)):
            return
        state = self._context.save(seq.slot)
        if len(state):
            write = self._writer.submit(self._write, shelf, tokens, state, self._pace)
            self._writing[write] = shelf, Prefix("", tokens, size, self._pace)

    def _shelf(self, adapters: Adapters) -> Shelf | None:
        """The kept prefixes of a set of adapters; None: its files are gone."""
        if adapters not in self._shelves:
            try:
                self._shelves[adapters] = Shelf(self._files(adapters), cuttable=self._cuttable)
            except OSError:
                self._shelves[adapters] = None
        return self._shelves[adapters]

    def _others(self, seq: Sequence) -> bool:
        return any(other is not seq for other in self._scheduler.running)

    # In the threads

    def _read(self, shelf: Shelf, prefix: Prefix) -> Bytes | None:
        begun = time.perf_counter()
        state = shelf.read(prefix)
        if state is not None:
            self._rate = prefix.size / max(time.perf_counter() - begun, 1e-6)
        return state

    def _write(self, shelf: Shelf, tokens: list[int], state: Bytes, pace: float) -> None:
        self.counts.kept += shelf.write(tokens, state, pace, self._give_way)

    def _give_way(self) -> None:
        if self._scheduler.running:
            self._hurry.wait(PAUSE)
