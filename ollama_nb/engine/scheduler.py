"""Continuous batching: which sequences run, and which tokens the next decode reads.

Theory of operation
===================

The engine decodes one batch per step. Sequences join and leave between steps; nothing here touches native memory.

``admit`` gives slots to waiting sequences: to the client that has been served least (``fairness``), and within a client
in the order of arrival. A sequence that waits for a prefix, because another sequence is computing it (``leader``) or it
is being loaded from disk (``loading``), does not block those behind it.

``plan`` describes the next batch:

- One token of every running reply. A reply never waits for a prompt.
- Prompt tokens. Without running replies they fill the batch; beside replies there are about ``chunk`` of them, so that
  a long prompt does not stall the replies (chunked prefill), and the batch is filled up to full blocks of rows.
- Prompts share these tokens max-min fairly: each gets the same number, and what a short one does not need goes to the
  longer ones. So short prompts are read first, and long ones cannot hold them up.
- A decode has one set of LoRA adapters. If running sequences have several sets, these take turns.

Background sequences are admitted and read only while no other sequence runs. When another sequence needs a slot, a
background one is preempted. It keeps its tokens, and its cells remain as an idle prefix. When it is admitted again, it
computes only what other sequences have overwritten.

``commit`` records that the batch was read. If decoding failed, the engine does not call it, and the next ``plan``
returns the same tokens again.

States of a sequence::

    state     event                                          next state
    --------  ---------------------------------------------  ----------------------------------------
    WAITING   admit: a slot is free                          PREFILL
    PREFILL   commit: prompt tokens remain                   PREFILL
              commit: the last prompt token was read         DECODE
    DECODE    commit: the reply's newest token was read      DECODE
              shift: memory can move cells                   DECODE, with half of the window
              shift: memory cannot                           PREFILL, of the remaining window
    PREFILL,  recompute: memory lost the sequence            PREFILL, from the first token
    DECODE    preempt: another sequence needs the slot       WAITING, with all its tokens
    any       remove: finished, failed or cancelled          FINISHED
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ollama_nb.engine.fairness import FairQueue
from ollama_nb.engine.messages import Adapters
from ollama_nb.engine.sequence import Sequence, SequenceState
from ollama_nb.engine.slots import Cut, MemoryOp, Shift, SlotTable

CHUNK = 128  # prompt tokens of a step beside running replies
ROW_BLOCK = 8  # matrix kernels process rows in blocks of this size


class BatchChunk(NamedTuple):
    """Read ``seq.tokens[start : start + size]``; ``output``: the last of them gets logits."""

    seq: Sequence
    start: int
    size: int
    output: bool


class Batch(NamedTuple):
    """One decode with ``adapters``. The first ``replies`` chunks continue replies; the others are prompt tokens."""

    chunks: list[BatchChunk]
    replies: int
    adapters: Adapters = ()

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)


class Scheduler:
    """Schedules ``n_slots`` sequences in batches of ``n_batch`` tokens.

    ``cuttable``: see ``SlotTable``; ``can_shift`` False: after a shift the window is read again. The other work of this
    model uses the same accounts of clients, ``shares``.
    """

    def __init__(
        self, n_slots: int, n_batch: int, *, chunk: int = CHUNK, cuttable: bool = True, can_shift: bool = True
    ) -> None:
        if n_batch <= n_slots:
            raise ValueError("a batch must have room for every reply and one prompt token")
        self.slots = SlotTable(n_slots, cuttable=cuttable)
        self.shares = FairQueue()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._n_batch = n_batch
        self._chunk = chunk
        self._can_shift = can_shift
        self._turns: dict[Adapters, int] = {}
        self.preemptions = 0

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; background ones wait behind all others."""
        self.waiting.insert(len(self.waiting) if seq.background else self._first_background(), seq)

    def remove(self, seq: Sequence) -> list[MemoryOp]:
        """Remove a finished, failed or cancelled sequence in any state; its slot is free at once."""
        ops: list[MemoryOp] = []
        if seq.state is SequenceState.WAITING:
            self.waiting.remove(seq)
        elif seq.state is not SequenceState.FINISHED:
            self.running.remove(seq)
            ops = self.slots.release(seq)
        seq.state, seq.leader = SequenceState.FINISHED, None
        return ops

    def admit(self) -> list[MemoryOp]:
        """Give slots to waiting sequences; return the memory operations that this needs."""
        ops: list[MemoryOp] = []
        remaining = [seq for seq in self.waiting if not _waits_for_prefix(seq)]
        while remaining:
            seq = self.shares.choose(remaining)
            remaining.remove(seq)
            if seq.background and not self.admits_background:
                break
            seq.leader = None
            if not seq.background and self.slots.busy == len(self.slots.slots):
                ops += self._preempt()
            placed = self.slots.place(seq)
            if placed is not None:
                ops += placed
                self.waiting.remove(seq)
                self.running.append(seq)
                seq.state = SequenceState.PREFILL
                self.shares.charge(seq, seq.pending)
            elif seq.leader is None:
                break  # no free slot
        return ops

    def plan(self) -> Batch:
        """Return the next batch; empty if nothing runs."""
        active = self._active()
        adapters = self._next_adapters(active)
        served = [seq for seq in active if seq.adapters == adapters]
        chunks = [BatchChunk(seq, seq.n_past, 1, True) for seq in served if seq.state is SequenceState.DECODE]
        replies = len(chunks)
        if replies < len(served):
            prompts = [seq for seq in served if seq.state is SequenceState.PREFILL]
            budget = self._prompt_budget(replies, any(seq.state is SequenceState.DECODE for seq in active))
            for seq, count in fair_shares(prompts, budget):
                chunks.append(BatchChunk(seq, seq.n_past, count, count == seq.pending))
        return Batch(chunks, replies, adapters)

    def commit(self, batch: Batch) -> None:
        """Record that the batch was read."""
        for seq, start, size, output in batch.chunks:
            seq.n_past = start + size
            if seq.state is SequenceState.DECODE:
                self.shares.charge(seq, size)
            if output:
                seq.state = SequenceState.DECODE

    def shift(self, seq: Sequence) -> list[MemoryOp]:
        """Drop the older half of a full window."""
        count = seq.discard_half()
        if self._can_shift:
            return [Shift(seq.slot, seq.keep, count)]
        seq.n_past, seq.state, seq.exact = min(seq.keep, seq.n_past), SequenceState.PREFILL, None
        return [Cut(seq.slot, seq.n_past)]

    def recompute(self, slot: int) -> None:
        """Record that a slot has lost its cells; its owner reads its window again."""
        place = self.slots.slots[slot]
        place.cached = []
        seq = place.owner
        if seq is not None:
            seq.n_past, seq.cached, seq.exact, seq.state = 0, 0, None, SequenceState.PREFILL

    @property
    def admits_background(self) -> bool:
        """Whether background sequences may get a slot: no other sequence runs."""
        return all(seq.background for seq in self.running)

    def _active(self) -> list[Sequence]:
        """Return the running sequences that the next step serves."""
        return [seq for seq in self.running if not seq.background] or self.running

    def _first_background(self) -> int:
        return sum(not seq.background for seq in self.waiting)

    def _preempt(self) -> list[MemoryOp]:
        """Take the slot of the background sequence with the fewest tokens in memory, if there is one."""
        seq = min((seq for seq in self.running if seq.background), key=lambda seq: seq.n_past, default=None)
        if seq is None:
            return []
        self.preemptions += 1
        self.running.remove(seq)
        ops = self.slots.release(seq)
        seq.state, seq.n_past, seq.exact, seq.preempted = SequenceState.WAITING, 0, None, True
        self.waiting.insert(self._first_background(), seq)
        return ops

    def _next_adapters(self, active: list[Sequence]) -> Adapters:
        """Return the set of adapters of the active sequences that was served longest ago."""
        sets = dict.fromkeys(seq.adapters for seq in active)
        if len(sets) < 2:
            return next(iter(sets), ())
        chosen = min(sets, key=lambda adapters: self._turns.get(adapters, 0))
        newest = max(self._turns.values(), default=0)
        self._turns = {adapters: turn for adapters, turn in self._turns.items() if adapters in sets}
        self._turns[chosen] = newest + 1
        return chosen

    def _prompt_budget(self, replies: int, beside_replies: bool) -> int:
        """Return the prompt tokens of this step."""
        if not beside_replies:
            return self._n_batch
        return min(self._n_batch, (replies + self._chunk) // ROW_BLOCK * ROW_BLOCK or ROW_BLOCK) - replies


def _waits_for_prefix(seq: Sequence) -> bool:
    """Return whether another sequence is computing the beginning of the prompt, or it is being loaded from disk."""
    leader = seq.leader
    computing = leader is not None and leader.state is SequenceState.PREFILL and leader.n_past < seq.leader_at
    return computing or seq.loading


def fair_shares(prompts: list[Sequence], budget: int) -> Iterator[tuple[Sequence, int]]:
    """Distribute ``budget`` tokens max-min fairly; yield each prompt, shortest first, with its number of tokens."""
    for place, seq in enumerate(sorted(prompts, key=lambda seq: seq.pending)):
        share = -(-budget // (len(prompts) - place))
        count = min(share, seq.pending)
        if count > 0:
            budget -= count
            yield seq, count
