"""Slots of the KV cache: which sequence uses which slot, and where its prefix is taken from.

Theory of operation
===================

A context has one KV cache with a fixed number of slots. A slot holds the cells of one sequence, its owner. When the
owner leaves, the cells stay: they are the prefix cache in memory. A later sequence whose prompt begins with the same
tokens (and has the same LoRA adapters) reuses them and computes only the rest.

Every decision here is pure: it changes the table and returns memory operations, which the engine carries out in order.
``Cut`` removes the end of a slot, ``Share`` makes an empty slot refer to the first cells of another one (nothing is
copied), ``Shift`` removes tokens in the middle and moves the later ones. If memory cannot carry out an operation, the
engine calls ``Scheduler.recompute`` and the sequence reads its tokens again.

``place`` gives a sequence a slot:

1. No slot is idle: the sequence waits.
2. A running sequence is reading a longer part of this prompt than any slot holds now: the sequence waits for it
   (``leader``), so that a prefix shared by many requests is computed once. Within a ``group`` one token is enough.
3. The best match is in an idle slot, and is most of its tokens or this is the only idle slot: the sequence takes over
   that slot.
4. Otherwise it gets the idle slot that was used longest ago, and shares the cells of the best match.

States of a slot::

    state   owner     cached         transitions (memory operations)
    ------  --------  -------------  -----------------------------------------------------------------------
    empty   None      no tokens      place:   -> busy (Cut to 0; Share if another slot has the prefix)
    idle    None      tokens         place:   -> busy (Cut to the matching tokens, or as for an empty slot)
                                     evict:   -> empty (Cut to 0)
    busy    sequence  no tokens      release: -> idle, or empty if nothing is reusable (Cut to what is reusable)

The memory of recurrent models (``cuttable`` False) holds one state per sequence and cannot be cut or shared: a slot can
only be continued, by a prompt that begins with all of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_nb.engine.messages import Adapters
from ollama_nb.engine.sequence import Sequence, SequenceState

MIN_SHARED = 16  # tokens; shorter common prefixes are neither waited for nor kept in their slot
MIN_TAKEN = 4  # tokens; from here on, sharing cells of another slot costs less than computing them


@dataclass(frozen=True, slots=True)
class Cut:
    """Remove everything of a slot from position ``start`` on."""

    slot: int
    start: int


@dataclass(frozen=True, slots=True)
class Share:
    """Make ``target`` (empty) refer to the first ``count`` cells of ``source``."""

    source: int
    target: int
    count: int


@dataclass(frozen=True, slots=True)
class Shift:
    """Remove ``count`` cells from position ``start`` on and move the later ones of the slot down."""

    slot: int
    start: int
    count: int


MemoryOp = Cut | Share | Shift


@dataclass(slots=True)
class Slot:
    """One slot. ``cached``: tokens of an earlier owner; ``used`` orders slots by last use.

    ``adapters``: those of the owner, or of the earlier owner. Only sequences with the same adapters can match.
    """

    index: int
    owner: Sequence | None = None
    cached: list[int] = field(default_factory=list)
    used: int = 0
    adapters: Adapters = ()

    def matching(self, prompt: list[int], adapters: Adapters) -> int:
        """Return how many tokens of ``prompt`` can be reused from this slot now."""
        if self.adapters != adapters:
            return 0
        if self.owner is None:
            return common_prefix(self.cached, prompt)
        return min(common_prefix(self.owner.tokens, prompt), self.owner.reusable)

    def upcoming(self, prompt: list[int], seq: Sequence) -> int:
        """Return how many tokens of ``prompt``, which is that of ``seq``, can be reused after the owner's prefill.

        Only background sequences wait for a background one.
        """
        owner = self.owner
        if owner is None or owner.state is not SequenceState.PREFILL or owner.exact is not None:
            return 0
        if self.adapters != seq.adapters or (owner.background and not seq.background):
            return 0
        return common_prefix(owner.tokens, prompt)


class SlotTable:
    """All slots of one context. ``cuttable`` False: the memory of a recurrent model."""

    def __init__(self, count: int, *, cuttable: bool = True) -> None:
        self.slots = [Slot(index) for index in range(count)]
        self.cuttable = cuttable
        self._clock = 0

    @property
    def busy(self) -> int:
        return sum(slot.owner is not None for slot in self.slots)

    def place(self, seq: Sequence) -> list[MemoryOp] | None:
        """Give ``seq`` a slot with as much of its prompt as memory has. None: it waits.

        If it waits for another sequence to read the same prefix, ``leader`` and ``leader_at`` are set.
        """
        idle = [slot for slot in self.slots if slot.owner is None]
        if not idle or self._wait_for_leader(seq):
            return None
        prompt = seq.tokens[:-1]  # the last token is always read: its logits are needed
        if not self.cuttable:
            return self._continue_slot(seq, idle, prompt)
        source = max(self.slots, key=lambda slot: (slot.matching(prompt, seq.adapters), slot.owner is None))
        count = source.matching(prompt, seq.adapters)
        if source.owner is None and count and (2 * count >= len(source.cached) or len(idle) == 1):
            return self._assign(source, seq, count, [Cut(source.index, count)])
        target = min((slot for slot in idle if not (count >= MIN_SHARED and slot is source)), key=_eviction_order)
        if target is source:
            return self._assign(target, seq, count, [Cut(target.index, count)])
        ops: list[MemoryOp] = [Cut(target.index, 0)]
        if count < (1 if seq.group else MIN_TAKEN):
            return self._assign(target, seq, 0, ops)
        return self._assign(target, seq, count, [*ops, Share(source.index, target.index, count)])

    def release(self, seq: Sequence) -> list[MemoryOp]:
        """Free the slot of a sequence; what others can reuse stays in memory."""
        slot = self.slots[seq.slot]
        keep = self.cuttable or seq.reusable == seq.n_past
        slot.owner, slot.cached = None, seq.tokens[: seq.reusable] if keep else []
        slot.used = self._tick()
        seq.slot = -1
        return [Cut(slot.index, len(slot.cached))] if len(slot.cached) < seq.n_past else []

    def evict(self) -> Cut | None:
        """Empty the idle slot that was used longest ago; None if all idle slots are empty."""
        idle = [slot for slot in self.slots if slot.owner is None and slot.cached]
        if not idle:
            return None
        oldest = min(idle, key=lambda slot: slot.used)
        oldest.cached = []
        return Cut(oldest.index, 0)

    def _wait_for_leader(self, seq: Sequence) -> bool:
        if not self.cuttable:
            return False
        prompt = seq.tokens[:-1]
        ready = max(slot.matching(prompt, seq.adapters) for slot in self.slots)
        leading = max(self.slots, key=lambda slot: (slot.upcoming(prompt, seq), _same_group(slot.owner, seq)))
        at = leading.upcoming(prompt, seq)
        if at - ready < (1 if _same_group(leading.owner, seq) else MIN_SHARED):
            return False
        seq.leader, seq.leader_at = leading.owner, at
        return True

    def _continue_slot(self, seq: Sequence, idle: list[Slot], prompt: list[int]) -> list[MemoryOp]:
        """Place a sequence in memory that cannot be cut: the prompt must begin with all tokens of the slot."""
        fitting = [slot for slot in idle if slot.cached and slot.matching(prompt, seq.adapters) == len(slot.cached)]
        if fitting:
            slot = max(fitting, key=lambda slot: len(slot.cached))
            return self._assign(slot, seq, len(slot.cached), [])
        slot = min(idle, key=_eviction_order)
        return self._assign(slot, seq, 0, [Cut(slot.index, 0)])

    def _assign(self, slot: Slot, seq: Sequence, count: int, ops: list[MemoryOp]) -> list[MemoryOp]:
        slot.owner, slot.cached, slot.used, slot.adapters = seq, [], self._tick(), seq.adapters
        seq.slot, seq.n_past, seq.leader = slot.index, count, None
        if not seq.preempted:
            seq.cached = count
        return ops

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _same_group(one: Sequence | None, other: Sequence) -> bool:
    return one is not None and other.group != 0 and one.group == other.group


def _eviction_order(slot: Slot) -> tuple[bool, int]:
    """Sort key: empty slots first, then the one that was used longest ago."""
    return bool(slot.cached), slot.used


def common_prefix(one: list[int], other: list[int]) -> int:
    """Return the length of the common prefix, by comparing slices, which is done in C."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
