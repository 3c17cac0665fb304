"""What the next decode holds: running replies first, then pieces of prompts.

Rule: pure. ``admit`` gives waiting sequences a place and says what memory must do, ``plan`` describes the batch,
``commit`` notes that it was read. A reply never waits for somebody's long prompt: beside running replies, prompts
are read ``chunk`` tokens a step. Several prompts share a step max-min fairly: short ones are through first, and a long
one cannot hold them up. A decode has one set of adapters: where requests have several, the sets take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ollama_nb.engine.adapters import Adapters
from ollama_nb.engine.sequence import Sequence, State
from ollama_nb.engine.slots import Cut, MemoryOp, Shift, SlotTable

CHUNK = 128
BLOCK = 8
"""Matrix kernels take rows in blocks of this many."""


class Chunk(NamedTuple):
    """Read ``seq.tokens[start : start + size]``; ``output``: the last of them gives logits."""

    seq: Sequence
    start: int
    size: int
    output: bool


class Batch(NamedTuple):
    """One decode, with ``adapters`` applied. ``replies``: how many of its rows continue a reply."""

    chunks: list[Chunk]
    replies: int
    adapters: Adapters = ()

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)


class Scheduler:
    """Decides for ``n_slots`` sequences; ``can_shift`` False: after a shift the window is read again."""

    def __init__(
        self, n_slots: int, n_batch: int, *, chunk: int = CHUNK, cuttable: bool = True, can_shift: bool = True
    ) -> None:
        if n_batch <= n_slots:
            raise ValueError("a batch must have room for every reply and one prompt token")
        self.slots = SlotTable(n_slots, cuttable=cuttable)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._n_batch = n_batch
        self._chunk = chunk
        self._can_shift = can_shift
        self._turns: dict[Adapters, int] = {}

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(seq)

    def remove(self, seq: Sequence) -> list[MemoryOp]:
        """The sequence is finished or cancelled, in whatever state; its slot is free at once. Return memory's part."""
        ops: list[MemoryOp] = []
        if seq.state is State.WAITING:
            self.waiting.remove(seq)
        elif seq.state is not State.FINISHED:
            self.running.remove(seq)
            ops = self.slots.release(seq)
        seq.state, seq.leader = State.FINISHED, None
        return ops

    def admit(self) -> list[MemoryOp]:
        """Give slots to waiting sequences in the order they came; return what memory must do first.

        One that waits for a shared beginning, or for one from the disk, does not hold up those behind it.
        """
        ops: list[MemoryOp] = []
        for seq in list(self.waiting):
            leader = seq.leader
            if leader is not None and leader.state is State.PREFILL and leader.n_past < seq.leader_at:
                continue
            if seq.held:
                continue
            seq.leader = None
            placed = self.slots.place(seq)
            if placed is not None:
                ops += placed
                self.waiting.remove(seq)
                self.running.append(seq)
                seq.state = State.PREFILL
            elif seq.leader is None:
                break  # no free slot
        return ops

    def plan(self) -> Batch:
        """The next batch; empty when nothing runs."""
        adapters = self._turn()
        served = [seq for seq in self.running if seq.adapters == adapters]
        chunks = [Chunk(seq, seq.n_past, 1, True) for seq in served if seq.state is State.DECODE]
        replies = len(chunks)
        if replies < len(served):
            prompts = [seq for seq in served if seq.state is State.PREFILL]
            for seq, count in fair_shares(prompts, self._budget(replies)):
                chunks.append(Chunk(seq, seq.n_past, count, count == seq.pending))
        return Batch(chunks, replies, adapters)

    def _turn(self) -> Adapters:
        """The set of adapters that was served longest ago, of those that running sequences have."""
        sets = dict.fromkeys(seq.adapters for seq in self.running)
        if len(sets) < 2:
            return next(iter(sets), ())
        chosen = min(sets, key=lambda adapters: self._turns.get(adapters, 0))
        newest = max(self._turns.values(), default=0)
        self._turns = {adapters: turn for adapters, turn in self._turns.items() if adapters in sets}
        self._turns[chosen] = newest + 1
        return chosen

    def commit(self, batch: Batch) -> None:
        """The batch was read."""
        for seq, start, size, output in batch.chunks:
            seq.n_past = start + size
            if output:
                seq.state = State.DECODE

    def shift(self, seq: Sequence) -> list[MemoryOp]:
        """The window is full: drop its older half."""
        count = seq.discard_half()
        if self._can_shift:
            return [Shift(seq.slot, seq.keep, count)]
        seq.n_past, seq.state, seq.exact = min(seq.keep, seq.n_past), State.PREFILL, None
        return [Cut(seq.slot, seq.n_past)]

    def recompute(self, slot: int) -> None:
        """Memory could not keep what was asked: the slot is empty, its tenant reads its window from the start."""
        place = self.slots.slots[slot]
        place.left = []
        seq = place.owner
        if seq is not None:
            seq.n_past, seq.cached, seq.exact, seq.state = 0, 0, None, State.PREFILL

    def _budget(self, replies: int) -> int:
        """Prompt tokens of this step; with replies running, the whole batch is rounded to full blocks of rows."""
        if not any(seq.state is State.DECODE for seq in self.running):
            return self._n_batch
        return min(self._n_batch, (replies + self._chunk) // BLOCK * BLOCK or BLOCK) - replies


def fair_shares(prompts: list[Sequence], budget: int) -> Iterator[tuple[Sequence, int]]:
    """Split ``budget`` tokens: everyone the same, what a short one leaves goes to the longer ones."""
    for place, seq in enumerate(sorted(prompts, key=lambda seq: seq.pending)):
        share = -(-budget // (len(prompts) - place))
        count = min(share, seq.pending)
        if count > 0:
            budget -= count
            yield seq, count
