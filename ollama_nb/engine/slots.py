"""Places in the model's memory: who lives where, what earlier tenants left, and whose beginning can be shared.

Rule: pure decisions. A choice is returned as memory operations, which the engine carries out in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_nb.engine.adapters import Adapters
from ollama_nb.engine.sequence import Sequence, State

MIN_SHARED = 16
"""A shorter common beginning is not worth waiting for, nor worth keeping whose it is."""
MIN_TAKEN = 4
"""From so many tokens on, what lies in another slot is taken: that costs less than reading one."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Forget everything of a slot from position ``start`` on."""

    slot: int
    start: int


@dataclass(frozen=True, slots=True)
class Share:
    """Let ``target`` (empty) begin with the first ``count`` cells of ``source``."""

    source: int
    target: int
    count: int


@dataclass(frozen=True, slots=True)
class Shift:
    """Drop ``count`` cells from ``start`` on and move the later ones of the slot down by as many."""

    slot: int
    start: int
    count: int


MemoryOp = Cut | Share | Shift


@dataclass(slots=True)
class Slot:
    """One place. ``left`` are the tokens that an earlier tenant left in memory; ``used`` orders slots by last use.

    ``adapters`` are those of the tenant or the earlier one: a sequence with others finds nothing here.
    """

    index: int
    owner: Sequence | None = None
    left: list[int] = field(default_factory=list)
    used: int = 0
    adapters: Adapters = ()

    def common(self, prompt: list[int], adapters: Adapters) -> int:
        """How many tokens of ``prompt`` lie in this slot's memory, ready for use."""
        if self.adapters != adapters:
            return 0
        if self.owner is None:
            return common_prefix(self.left, prompt)
        return min(common_prefix(self.owner.tokens, prompt), self.owner.reusable)

    def promised(self, prompt: list[int], adapters: Adapters) -> int:
        """How many tokens of ``prompt`` this slot's tenant will have read once its prefill is done."""
        owner = self.owner
        if owner is None or owner.state is not State.PREFILL or owner.exact is not None:
            return 0
        return common_prefix(owner.tokens, prompt) if self.adapters == adapters else 0


class SlotTable:
    """All slots of one context. ``cuttable`` False: memory that keeps no single tokens (recurrent models)."""

    def __init__(self, count: int, *, cuttable: bool = True) -> None:
        self.slots = [Slot(index) for index in range(count)]
        self.cuttable = cuttable
        self._clock = 0

    @property
    def busy(self) -> int:
        return sum(slot.owner is not None for slot in self.slots)

    def place(self, seq: Sequence) -> list[MemoryOp] | None:
        """Give ``seq`` a slot and as much of its prompt as memory holds; None: it waits.

        It waits when no slot is free, or when a running sequence is about to have read more of the same beginning
        (then ``leader`` and ``leader_at`` are set).
        """
        idle = [slot for slot in self.slots if slot.owner is None]
        if not idle or self._follows(seq):
            return None
        prompt = seq.tokens[:-1]  # the last token is always read: its logits are needed
        if not self.cuttable:
            return self._extend_whole(seq, idle, prompt)
        source = max(self.slots, key=lambda slot: (slot.common(prompt, seq.adapters), slot.owner is None))
        count = source.common(prompt, seq.adapters)
        if source.owner is None and count and (2 * count >= len(source.left) or len(idle) == 1):
            return self._settle(source, seq, count, [Cut(source.index, count)])
        target = min((slot for slot in idle if not (count >= MIN_SHARED and slot is source)), key=_oldest)
        if target is source:
            return self._settle(target, seq, count, [Cut(target.index, count)])
        ops: list[MemoryOp] = [Cut(target.index, 0)]
        if count < MIN_TAKEN:
            return self._settle(target, seq, 0, ops)
        return self._settle(target, seq, count, [*ops, Share(source.index, target.index, count)])

    def release(self, seq: Sequence) -> list[MemoryOp]:
        """The sequence leaves; what others can use of what it has read stays, the rest gives its cells back."""
        slot = self.slots[seq.slot]
        whole = self.cuttable or seq.reusable == seq.n_past  # what cannot be cut is used as a whole or not at all
        slot.owner, slot.left = None, seq.tokens[: seq.reusable] if whole else []
        slot.used = self._tick()
        seq.slot = -1
        return [Cut(slot.index, len(slot.left))] if len(slot.left) < seq.n_past else []

    def evict(self) -> Cut | None:
        """Empty the idle slot that was used longest ago; None when all idle ones are empty."""
        kept = [slot for slot in self.slots if slot.owner is None and slot.left]
        if not kept:
            return None
        oldest = min(kept, key=lambda slot: slot.used)
        oldest.left = []
        return Cut(oldest.index, 0)

    def _follows(self, seq: Sequence) -> bool:
        if not self.cuttable:
            return False
        prompt, adapters = seq.tokens[:-1], seq.adapters
        ready = max(slot.common(prompt, adapters) for slot in self.slots)
        leading = max(self.slots, key=lambda slot: slot.promised(prompt, adapters))
        at = leading.promised(prompt, adapters)
        if at - ready < MIN_SHARED:
            return False
        seq.leader, seq.leader_at = leading.owner, at
        return True

    def _extend_whole(self, seq: Sequence, idle: list[Slot], prompt: list[int]) -> list[MemoryOp]:
        """Such memory can only be continued: a slot serves if all that it holds begins this prompt."""
        fitting = [slot for slot in idle if slot.left and slot.common(prompt, seq.adapters) == len(slot.left)]
        if fitting:
            slot = max(fitting, key=lambda slot: len(slot.left))
            return self._settle(slot, seq, len(slot.left), [])
        slot = min(idle, key=_oldest)
        return self._settle(slot, seq, 0, [Cut(slot.index, 0)])

    def _settle(self, slot: Slot, seq: Sequence, count: int, ops: list[MemoryOp]) -> list[MemoryOp]:
        slot.owner, slot.left, slot.used, slot.adapters = seq, [], self._tick(), seq.adapters
        seq.slot, seq.n_past, seq.cached, seq.leader = slot.index, count, count, None
        return ops

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _oldest(slot: Slot) -> tuple[bool, int]:
    """Order of giving away: empty slots first, then the one used longest ago."""
    return bool(slot.left), slot.used


def common_prefix(one: list[int], other: list[int]) -> int:
    """Length of the common beginning; compares slices, so that C does the work."""
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
