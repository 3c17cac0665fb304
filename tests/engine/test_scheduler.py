"""Simulations of the scheduler: requests arrive, steps run, and invariants are checked after each step."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.scheduler import Batch, BatchChunk, Scheduler
from ollama_nb.engine.sequence import Sequence, SequenceState
from ollama_nb.engine.slots import Cut, MemoryOp, Share, Shift


class Simulation:
    """A scheduler with a model of the KV cache, to which its memory operations are applied."""

    def __init__(self, n_slots: int = 2, n_batch: int = 64, *, chunk: int = 16, **facts: bool) -> None:
        self.scheduler = Scheduler(n_slots, n_batch, chunk=chunk, **facts)
        self.n_batch = n_batch
        self.memory: list[list[int]] = [[] for _ in range(n_slots)]
        self.ops: list[MemoryOp] = []

    def arrive(self, id: int, tokens: list[int], **limits: Any) -> Sequence:
        seq = Sequence(id, list(tokens), limit=limits.pop("limit", 10_000), **limits)
        self.scheduler.add(seq)
        return seq

    def step(self) -> Batch:
        """Admit, plan, read the batch, and add a token to every reply."""
        self.ops = self.scheduler.admit()
        self.apply(self.ops)
        batch = self.scheduler.plan()
        self.check(batch)
        for seq, start, size, _ in batch.chunks:
            cells = self.memory[seq.slot]
            assert len(cells) == start, "no gap and no overlap in memory"
            cells += seq.tokens[start : start + size]
        self.scheduler.commit(batch)
        for chunk in batch.chunks:
            if chunk.output:
                self.grow(chunk.seq)
        return batch

    def grow(self, seq: Sequence) -> None:
        seq.append(1000 + seq.n_new)
        if seq.n_new >= seq.max_new:
            self.leave(seq)
        elif seq.full:
            self.apply(self.scheduler.shift(seq))

    def leave(self, seq: Sequence) -> None:
        self.apply(self.scheduler.remove(seq))

    def apply(self, ops: list[MemoryOp]) -> None:
        for op in ops:
            if isinstance(op, Cut):
                del self.memory[op.slot][op.start :]
            elif isinstance(op, Share):
                assert not self.memory[op.target], "only an empty slot can share cells"
                assert len(self.memory[op.source]) >= op.count
                self.memory[op.target] = self.memory[op.source][: op.count]
            else:
                del self.memory[op.slot][op.start : op.start + op.count]

    def check(self, batch: Batch) -> None:
        scheduler = self.scheduler
        assert batch.size <= self.n_batch
        assert [chunk.size for chunk in batch.chunks[: batch.replies]] == [1] * batch.replies
        assert all(chunk.size > 0 and chunk.start == chunk.seq.n_past for chunk in batch.chunks)
        assert all(chunk.output == (chunk.size == chunk.seq.pending) for chunk in batch.chunks)
        owners = [slot.owner for slot in scheduler.slots.slots if slot.owner is not None]
        assert sorted(map(id, owners)) == sorted(map(id, scheduler.running)), "one slot for each running sequence"
        assert all(slot.owner is None or slot.owner.slot == slot.index for slot in scheduler.slots.slots)
        for seq in scheduler.running:
            assert self.memory[seq.slot] == seq.tokens[: seq.n_past], "memory holds the tokens that the sequence tracks"
            assert len(seq.tokens) <= seq.limit
            assert seq.pending >= 1
        if any(not seq.background for seq in scheduler.running):
            assert not any(chunk.seq.background for chunk in batch.chunks), "background requests use what others leave"
        for seq in scheduler.waiting:
            assert seq.state is SequenceState.WAITING and seq.slot == -1

    def first_output_of(self, seq: Sequence, steps: int = 1000) -> int:
        return next(n for n in range(1, steps) if any(c.seq is seq and c.output for c in self.step().chunks))


def text(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


def test_a_lone_prompt_uses_the_whole_batch() -> None:
    simulation = Simulation(n_batch=64)
    seq = simulation.arrive(1, text(0, 100))
    assert simulation.step() == Batch([BatchChunk(seq, 0, 64, False)], 0)
    assert simulation.step() == Batch([BatchChunk(seq, 64, 36, True)], 0)
    assert simulation.step() == Batch([BatchChunk(seq, 100, 1, True)], 1)


def test_a_long_prompt_does_not_stall_a_running_reply() -> None:
    simulation = Simulation(n_batch=64, chunk=16)
    first = simulation.arrive(1, text(0, 4))
    simulation.step()
    second = simulation.arrive(2, text(500, 100))
    for _ in range(6):
        batch = simulation.step()
        assert batch.chunks[0] == BatchChunk(first, batch.chunks[0].start, 1, True)
        assert batch.chunks[1].seq is second
        assert batch.size == 16, "full blocks of rows, at most the chunk"


def test_a_short_prompt_overtakes_a_long_one() -> None:
    simulation = Simulation(n_batch=64, chunk=16)
    long = simulation.arrive(1, text(0, 1000))
    simulation.step()
    short = simulation.arrive(2, text(5000, 20))
    assert simulation.first_output_of(short) == 1
    assert long.state is SequenceState.PREFILL


def test_longer_prompts_get_the_unused_share_of_short_ones() -> None:
    simulation = Simulation(n_slots=3, n_batch=60)
    a, b, c = (simulation.arrive(id, text(id * 1000, size)) for id, size in ((1, 4), (2, 100), (3, 100)))
    assert {chunk.seq.id: chunk.size for chunk in simulation.step().chunks} == {a.id: 4, b.id: 28, c.id: 28}


def test_a_prompt_progresses_beside_many_replies() -> None:
    simulation = Simulation(n_slots=4, n_batch=5, chunk=16)
    for id in range(3):
        simulation.arrive(id, text(id * 100, 2))
    while (
        any(seq.state is not SequenceState.DECODE for seq in simulation.scheduler.running)
        or not simulation.scheduler.running
    ):
        simulation.step()
    late = simulation.arrive(9, text(900, 10))
    assert simulation.first_output_of(late) <= 10


def test_requests_without_a_slot_wait_in_order() -> None:
    simulation = Simulation(n_slots=1)
    one, two, three = (simulation.arrive(id, text(id * 100, 3), max_new=2) for id in (1, 2, 3))
    finished = []
    while simulation.scheduler.running or simulation.scheduler.waiting:
        simulation.step()
        finished += [
            seq.id for seq in (one, two, three) if seq.state is SequenceState.FINISHED and seq.id not in finished
        ]
    assert finished == [1, 2, 3]


def test_a_conversation_continues_in_its_own_slot() -> None:
    simulation = Simulation()
    first = simulation.arrive(1, text(0, 30), max_new=4)
    while first.state is not SequenceState.FINISHED:
        simulation.step()
    again = simulation.arrive(2, first.tokens + text(500, 5))
    simulation.step()
    assert simulation.ops == [Cut(0, 33)], "the last token of a reply is never read"
    assert again.cached == 33


def test_a_second_prompt_with_the_same_prefix_shares_its_cells() -> None:
    simulation = Simulation(n_slots=2)
    first = simulation.arrive(1, text(0, 30))
    simulation.step()
    second = simulation.arrive(2, text(0, 25) + text(700, 5))
    simulation.step()
    assert simulation.ops == [Cut(1, 0), Share(0, 1, 25)]
    assert (first.slot, second.slot, second.cached) == (0, 1, 25)


def test_a_short_prefix_is_read_once_for_many_requests() -> None:
    simulation = Simulation(n_slots=3)
    simulation.arrive(1, text(0, 10) + text(500, 10))
    simulation.step()
    rows = [simulation.arrive(id, text(0, 10) + text(100 * id, 10), max_new=1) for id in (6, 7, 8)]
    while rows[-1].state is not SequenceState.FINISHED:
        simulation.step()
    assert [row.cached for row in rows] == [10, 10, 10]


def test_a_short_prefix_does_not_evict_a_newer_conversation() -> None:
    """The least recently used slot is evicted even if the new prompt shares a short prefix with it."""
    simulation = Simulation(n_slots=2)
    for id, begins in ((1, text(0, 6)), (2, text(900, 6))):
        seq = simulation.arrive(id, begins + text(100 * id, 30), max_new=1)
        simulation.step()
        assert seq.state is SequenceState.FINISHED
    newcomer = simulation.arrive(3, text(0, 6) + text(700, 20))
    simulation.step()
    assert (newcomer.slot, newcomer.cached, len(simulation.memory[1])) == (0, 6, 36)


def test_concurrent_requests_read_a_common_prefix_once() -> None:
    """Eight requests about one long document: seven wait until the first has read it."""
    simulation = Simulation(n_slots=8, n_batch=64, chunk=16)
    document = text(0, 200)
    everyone = [simulation.arrive(id, [*document, 900 + id, 901 + id]) for id in range(8)]
    read = 0
    while any(seq.n_new == 0 for seq in everyone):
        batch = simulation.step()
        read += batch.size - batch.replies
    assert read == len(document) + 8 * 2
    assert [seq.cached for seq in everyone] == [0] + [200] * 7


@pytest.mark.parametrize("length", [1, 2, 5, 20, 200])
@pytest.mark.parametrize("n_slots", [1, 2, 3, 8])
def test_a_group_reads_its_prompt_once(length: int, n_slots: int) -> None:
    """However short the prompt is and however few slots there are, and although others come before and behind."""
    simulation = Simulation(n_slots=n_slots, n_batch=64, chunk=16)
    others = [simulation.arrive(1, text(700, 30), max_new=3)]
    group = [simulation.arrive(10 + at, text(0, length), max_new=4 + at, group=1) for at in range(4)]
    others.append(simulation.arrive(2, text(800, 30), max_new=3))
    read = 0
    while any(seq.state is not SequenceState.FINISHED for seq in (*group, *others)):
        batch = simulation.step()
        read += sum(chunk.size for chunk in batch.chunks[batch.replies :] if chunk.seq.group)
    assert read == length + 3
    assert [seq.cached for seq in group] == [0] + [length - 1] * 3


def test_waiting_for_a_leader_does_not_block_others() -> None:
    simulation = Simulation(n_slots=3, n_batch=64)
    simulation.arrive(1, text(0, 500))
    follower = simulation.arrive(2, text(0, 500))
    stranger = simulation.arrive(3, text(9000, 5))
    simulation.step()
    assert (follower.state, stranger.n_new) == (SequenceState.WAITING, 1)


def test_followers_continue_when_their_leader_is_cancelled() -> None:
    simulation = Simulation(n_slots=3, n_batch=64)
    leader = simulation.arrive(1, text(0, 500))
    follower = simulation.arrive(2, text(0, 500))
    simulation.step()
    simulation.leave(leader)
    simulation.step()
    assert (follower.state, follower.cached) == (SequenceState.PREFILL, 64)


@pytest.mark.parametrize("n_slots", [1, 4])
def test_a_light_client_waits_at_most_twice_its_fair_share(n_slots: int) -> None:
    """G7: a heavy client always has ten times as many requests as slots; counted are the replies that end before."""
    simulation = Simulation(n_slots=n_slots)
    numbers, heavy, waits = itertools.count(), [], []
    for _ in range(40):
        heavy = [seq for seq in heavy if seq.state is not SequenceState.FINISHED]
        while len(heavy) < 10 * n_slots:
            id = next(numbers)
            heavy.append(simulation.arrive(id, text(100 * id, 5), max_new=4, client="heavy"))
        id = next(numbers)
        light = simulation.arrive(id, text(100 * id, 5), max_new=4, client="light")
        while light.state is not SequenceState.FINISHED:
            simulation.step()
        waits.append(sum(seq.state is SequenceState.FINISHED for seq in heavy))
    fair_share = 2 * n_slots  # replies: those in the slots now, and the light one with its neighbours in the slots
    assert sorted(waits)[int(0.95 * len(waits))] <= 2 * fair_share


# Background sequences


def test_others_are_served_before_background_sequences() -> None:
    simulation = Simulation(n_slots=4, n_batch=64)
    background = [simulation.arrive(at, text(1000 * at, 100), background=True) for at in range(1, 9)]
    simulation.step()
    first = simulation.arrive(20, text(0, 30), max_new=3)
    second = simulation.arrive(21, text(500, 10), max_new=3)
    assert {chunk.seq for chunk in simulation.step().chunks} == {first, second}
    assert (first.n_new, second.n_new) == (1, 1), "their first token comes as if they were alone"
    while SequenceState.FINISHED not in (first.state, second.state):
        assert all(not chunk.seq.background for chunk in simulation.step().chunks)
    for _ in range(2):
        simulation.step()
    assert all(chunk.seq.background for chunk in simulation.step().chunks)
    assert sum(seq.state is SequenceState.WAITING for seq in background) == 4


def test_a_preempted_sequence_resumes_with_its_tokens_and_cells() -> None:
    simulation = Simulation(n_slots=2, n_batch=64)
    small = simulation.arrive(1, text(1000, 20), background=True)
    large = simulation.arrive(2, text(2000, 30), background=True)
    for _ in range(5):
        simulation.step()
    written = list(small.tokens)
    other = simulation.arrive(3, text(0, 10), max_new=2)
    simulation.step()
    assert (small.state, large.state) == (SequenceState.WAITING, SequenceState.DECODE), "the one with fewer tokens"
    assert (small.slot, small.tokens, simulation.scheduler.preemptions) == (-1, written, 1)
    assert (other.slot, simulation.memory[other.slot]) == (0, text(0, 10))
    simulation.leave(other)
    while small.n_new == 4:
        simulation.step()
    assert small.tokens[: len(written)] == written
    assert small.cached == 0, "the figures are those of the first slot"


def test_preempted_sequences_come_before_later_ones() -> None:
    simulation = Simulation(n_slots=2, n_batch=64)
    one = simulation.arrive(1, text(1000, 20), background=True)
    two = simulation.arrive(2, text(2000, 30), background=True)
    late = simulation.arrive(3, text(3000, 15), background=True)
    simulation.step()
    others = [simulation.arrive(at, text(100 * at, 5), max_new=1) for at in (4, 5)]
    simulation.step()
    assert [seq.state for seq in (one, two, *others)] == [SequenceState.WAITING] * 2 + [SequenceState.FINISHED] * 2
    simulation.step()
    assert (one.n_new, two.n_new, late.state) == (2, 2, SequenceState.WAITING)


def test_cells_that_are_still_there_are_not_read_again() -> None:
    simulation = Simulation(n_slots=1, n_batch=64)
    seq = simulation.arrive(1, text(0, 50), background=True)
    simulation.step()
    simulation.arrive(2, [*text(0, 40), 900, 901], max_new=1)
    assert [chunk.size for chunk in simulation.step().chunks] == [2]
    (chunk,) = simulation.step().chunks
    assert (chunk.seq, chunk.start, chunk.size) == (seq, 40, 11), "10 of the prompt, and the first token of the reply"


def test_nothing_waits_for_a_background_prompt() -> None:
    """It would be read only when no other sequence runs."""
    simulation = Simulation(n_slots=3, n_batch=64)
    simulation.arrive(1, text(0, 500), background=True)
    simulation.step()
    follower = simulation.arrive(2, text(0, 500))
    simulation.step()
    assert (follower.state, follower.cached, follower.n_past) == (SequenceState.PREFILL, 64, 128)


def test_the_least_recently_used_slot_is_evicted() -> None:
    simulation = Simulation(n_slots=2)
    for id in (1, 2):
        seq = simulation.arrive(id, text(id * 100, 20), max_new=1)
        while seq.state is not SequenceState.FINISHED:
            simulation.step()
    again = simulation.arrive(3, text(100, 20), max_new=1)  # uses the older slot again
    simulation.step()
    assert again.cached == 19
    simulation.arrive(4, text(900, 20))
    simulation.step()
    assert simulation.ops == [Cut(1, 0)]


def test_a_cancelled_request_frees_its_slot_at_once() -> None:
    simulation = Simulation(n_slots=1, n_batch=16)
    first = simulation.arrive(1, text(0, 100))
    second = simulation.arrive(2, text(500, 3))
    simulation.step()
    simulation.leave(first)
    assert simulation.scheduler.slots.busy == 0
    simulation.step()
    assert second.n_new == 1


def test_a_full_window_drops_its_older_half() -> None:
    simulation = Simulation()
    seq = simulation.arrive(1, text(0, 10), limit=20, keep=4)
    for _ in range(12):
        simulation.step()
    assert seq.tokens[:4] == text(0, 4)
    assert (seq.exact, seq.reusable) == (4, 4), "moved cells are not a prefix for others"


def test_memory_that_cannot_shift_is_read_again() -> None:
    simulation = Simulation(can_shift=False)
    seq = simulation.arrive(1, text(0, 10), limit=20, keep=4)
    for _ in range(10):
        simulation.step()
    assert seq.state is SequenceState.PREFILL and seq.n_past == 4
    simulation.step()
    assert seq.state is SequenceState.DECODE and seq.exact is None


def test_memory_that_cannot_be_cut_is_only_continued() -> None:
    simulation = Simulation(n_slots=2, cuttable=False)
    first = simulation.arrive(1, text(0, 30), max_new=4)
    while first.state is not SequenceState.FINISHED:
        simulation.step()
    whole = simulation.arrive(2, [*text(0, 30), 1000, 1001, 1002, 7, 8])
    part = simulation.arrive(3, text(0, 20))
    simulation.step()
    assert (whole.cached, part.cached) == (33, 0)


def test_a_slot_that_lost_its_memory_is_read_from_the_start() -> None:
    simulation = Simulation()
    seq = simulation.arrive(1, text(0, 10))
    simulation.step()
    simulation.scheduler.recompute(seq.slot)
    simulation.memory[seq.slot] = []
    assert simulation.step().chunks == [BatchChunk(seq, 0, 11, True)]


def test_a_batch_without_room_for_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="room for every reply"):
        Scheduler(4, 4)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    n_slots=st.integers(1, 5),
    cuttable=st.booleans(),
    can_shift=st.booleans(),
)
def test_every_request_ends_once(seed: int, n_slots: int, cuttable: bool, can_shift: bool) -> None:
    """T15: random arrivals of several clients with shared prefixes, and random cancels: invariants hold, all end once,
    no cell leaks."""
    dice = random.Random(seed)
    simulation = Simulation(
        n_slots, n_slots + dice.randrange(1, 40), chunk=dice.choice((8, 16)), cuttable=cuttable, can_shift=can_shift
    )
    active: list[Sequence] = []
    arrivals = 0
    for _ in range(400):
        if arrivals < 12 and dice.random() < 0.2:
            shared, own = dice.randrange(0, 60), dice.randrange(1, 30)
            tokens = text(0, shared) + [dice.randrange(2000, 2003) for _ in range(own)]
            limit = len(tokens) + dice.randrange(2, 20)
            active.append(
                simulation.arrive(
                    arrivals,
                    tokens,
                    limit=limit,
                    keep=dice.randrange(0, 3),
                    max_new=dice.randrange(1, 60),
                    background=dice.random() < 0.4,
                    client=dice.choice("abc"),
                )
            )
            arrivals += 1
        if active and dice.random() < 0.05:
            simulation.leave(dice.choice(active))
        simulation.step()
        active = [seq for seq in active if seq.state is not SequenceState.FINISHED]
        if arrivals == 12 and not active:
            break
    for _ in range(5000):
        if not simulation.scheduler.running and not simulation.scheduler.waiting:
            break
        simulation.step()
    assert not simulation.scheduler.running and not simulation.scheduler.waiting
    assert simulation.scheduler.slots.busy == 0
    for slot in simulation.scheduler.slots.slots:
        assert simulation.memory[slot.index] == slot.cached, "memory holds the cached prefixes and nothing else"


def test_shift_is_an_operation_on_the_slot() -> None:
    scheduler = Scheduler(1, 8)
    seq = Sequence(1, text(0, 6), limit=6, keep=2)
    scheduler.add(seq)
    scheduler.admit()
    scheduler.commit(Batch([BatchChunk(seq, 0, 5, True)], 0))
    assert scheduler.shift(seq) == [Shift(0, 2, 2)]
    assert seq.tokens == [0, 1, 4, 5]
