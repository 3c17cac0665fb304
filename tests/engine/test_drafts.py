"""Draft sources, their acceptance rates, the size of a step, and batch padding by measured step times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.drafts import (
    LOSS_TOKENS,
    MAX_LIFETIME,
    MAX_SKIPPED,
    MIN_SAMPLES,
    DraftModelBackoff,
    DraftModelSource,
    GrammarSource,
    PromptLookup,
    StepTimes,
    plan_drafts,
)

REPACKED = {1: 12.6, 4: 30.7, 8: 39.7, 12: 50.6, 16: 50.7}
STEEP = {1: 6.4, 4: 25.0, 8: 50.0, 12: 75.0, 16: 100.0}


def times(table: dict[int, float], most: int = 16) -> StepTimes:
    known = StepTimes(most)
    for rows, seconds in table.items():
        for _ in range(MIN_SAMPLES):
            known.record(rows, seconds)
    return known


def lookup(prompt: Iterable[int], reply: Iterable[int] = (), max_tokens: int = 15) -> PromptLookup:
    made = PromptLookup(prompt, max_tokens)
    for token in reply:
        made.append(token)
    return made


# Prompt lookup


@pytest.mark.parametrize(
    ("prompt", "reply", "draft"),
    [
        (range(10, 20), [10, 11, 12], [13, 14, 15, 16]),
        (range(10, 20), [10, 11, 12, 13], [14, 15, 16, 17]),
        (range(10, 20), [10, 11], []),
        (range(10, 20), [12, 11, 10], []),
        ([1, 2, 3, 4, 1, 2, 3, 5], [1, 2, 3], [5, 1, 2, 3]),  # the latest place counts
        ([7, 8], [1, 2, 3, 1, 2, 3], [1, 2, 3, 1]),  # a loop continues
        ([], [5, 5, 5, 5], [5, 5, 5, 5]),
        (range(10, 20), [10, 11, 12, 13, 99], [15, 16, 17, 18]),  # one token was replaced
        (range(10, 20), [10, 11, 12, 99, 98], []),
        (range(10, 20), range(10, 20), [10, 11, 12, 13]),  # at the end of the copied text, it starts over
    ],
    ids=str,
)
def test_prompt_lookup_drafts_the_earlier_continuation(
    prompt: Iterable[int], reply: Iterable[int], draft: list[int]
) -> None:
    assert lookup(prompt, reply).draft(4) == draft


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40), st.integers(1, 15))
def test_a_prompt_lookup_drafts_only_tokens_of_the_text(prompt: list[int], reply: list[int], count: int) -> None:
    made = lookup(prompt, reply)
    draft, probabilities = made.draft(count), made.probabilities(count)
    assert len(draft) in (0, count) and set(draft) <= {*prompt, *reply}
    assert len(probabilities) in (0, count) and (draft or not probabilities)
    assert all(0 < later <= sooner < 1 for sooner, later in itertools.pairwise(probabilities))


# Acceptance rates


def test_probabilities_grow_with_accepted_tokens() -> None:
    text = list(range(100))
    sums = [sum(lookup(text, text[:count]).probabilities(7)) for count in (3, 4, 6, 10, 20, 60)]
    assert sums[0] == 0.0, "no expected token has come true yet"
    assert sums == sorted(sums)
    assert sums[-1] > 6.5


def test_probabilities_fall_where_repeats_are_short() -> None:
    """A phrase of four tokens recurs with a different continuation each time."""
    made = PromptLookup([], 15)
    for n in range(60):
        for token in (1, 2, 3, 4, 100 + n, 200 + n, 300 + n):
            made.append(token)
    for token in (1, 2, 3, 4):
        made.append(token)
    assert sum(made.probabilities(7)) < 0.2


def test_drafts_stop_after_losing_too_much_time() -> None:
    made = lookup(range(100), range(50))
    assert made.probabilities(3)
    made.balance = -LOSS_TOKENS - 10
    assert made.probabilities(3) == []
    made.balance = -LOSS_TOKENS
    assert made.probabilities(3), "a longer reply may lose more"


def test_the_length_of_a_draft_is_limited() -> None:
    made = lookup(range(100), range(50), max_tokens=2)
    assert len(made.probabilities(9)) == 2 and made.probabilities(0) == made.probabilities(-1) == []


def test_probabilities_of_a_draft_model_follow_its_acceptance_rate() -> None:
    made = DraftModelSource(7)
    first = made.probabilities(7)
    assert len(first) == 7 and first[0] > 0.7, "high enough to be tried"
    for _ in range(40):
        made.record(7, 2, 0.1)
    chances = made.probabilities(7)
    assert chances[1] > 0.8 and chances[2] < 0.5 and chances[6] < 0.1
    for _ in range(40):
        made.record(7, 7, 0.1)
    assert made.probabilities(7)[6] > 0.6


def test_a_draft_model_that_lost_time_is_used_again_when_the_reply_is_long() -> None:
    made = DraftModelSource(7)
    made.balance = -LOSS_TOKENS - 1
    assert made.probabilities(7) == []
    for _ in range(200):
        made.append()
    assert made.probabilities(7)


def test_a_draft_model_backs_off_longer_each_time_it_was_slow() -> None:
    backoff, asked = DraftModelBackoff(), []
    for _ in range(4 * MAX_SKIPPED):
        asked.append(backoff.allows())
        if asked[-1]:
            backoff.record(-1.0)
    assert asked[:12] == [True, False, True] + [False] * 3 + [True] + [False] * 5
    assert sum(asked) < 9
    while not backoff.allows():
        pass
    backoff.record(1.0)
    assert backoff.allows()


# The size of a step


SURE, FAIR, POOR = [0.97**n for n in range(1, 16)], [0.8**n for n in range(1, 16)], [0.4**n for n in range(1, 16)]


@pytest.mark.parametrize(
    ("offers", "table", "rows", "sizes"),
    [
        ([SURE], REPACKED, 16, (15,)),
        ([SURE[:7]], REPACKED, 8, (7,)),
        ([FAIR], REPACKED, 8, (7,)),
        ([POOR], REPACKED, 0, ()),
        ([[]], REPACKED, 0, ()),
        ([SURE], STEEP, 0, ()),
        ([SURE, [], [], []], REPACKED | {4: 30.7}, 16, (12, 0, 0, 0)),
        ([SURE, SURE, [], []], REPACKED, 16, (6, 6, 0, 0)),
        ([SURE] * 16, REPACKED, 0, ()),
        ([POOR] * 8, REPACKED, 16, (1,) * 8),
        ([POOR] * 8, STEEP, 0, ()),
    ],
    ids=["copy", "short copy", "half a copy", "no copy", "nothing", "expensive rows", "one of four", "two of four",
         "full batch", "cheap rows, eight replies", "expensive rows, eight replies"],
)  # fmt: skip
def test_drafts_are_planned_where_they_save_time(
    offers: list[list[float]], table: dict[int, float], rows: int, sizes: tuple[int, ...]
) -> None:
    plan = plan_drafts(offers, times(table))
    assert (plan.rows, plan.sizes) == (rows, sizes) if plan else not rows


def test_the_cost_of_a_draft_row_is_in_plain_steps() -> None:
    plan = plan_drafts([SURE[:7]], times(REPACKED))
    assert plan is not None
    assert plan.row_cost * 7 == pytest.approx(39.7 / 12.6 - 1)


@pytest.mark.parametrize(
    ("round_seconds", "sizes"), [(0.0, (6, 0)), (1.0, (6, 0)), (2.0, (2, 0)), (30.0, None)], ids=str
)
def test_the_time_of_the_draft_model_counts(round_seconds: float, sizes: tuple[int, ...] | None) -> None:
    plan = plan_drafts([FAIR[:7], []], times(REPACKED | {2: 23.7}), [0], round_seconds)
    assert (plan and plan.sizes) == sizes


def test_the_time_of_the_draft_model_does_not_count_for_other_sources() -> None:
    assert plan_drafts([SURE[:7]], times(REPACKED), [], 99.0) == plan_drafts([SURE[:7]], times(REPACKED))


def test_there_are_no_drafts_before_a_plain_step_is_measured() -> None:
    assert plan_drafts([SURE], StepTimes(16)) is None


def test_an_unmeasured_size_is_tried_when_it_could_be_faster() -> None:
    known = times({1: 6.4})
    plan = plan_drafts([SURE], known)
    assert plan is not None and plan.rows == 12
    for rows in (16, 12, 8, 4):
        for _ in range(MIN_SAMPLES):
            known.record(rows, rows * 7.0)
    assert plan_drafts([SURE], known) is None, "measured, and slower"


def test_dictated_text_is_drafted_until_the_model_splits_it_differently() -> None:
    source = GrammarSource(8)
    assert source.probabilities(8) == [], "the constraint leaves a choice"
    source.tokens = [4, 5, 6]
    assert source.draft(2) == [4, 5]
    first = source.probabilities(8)
    assert len(first) == 3 and first[0] > 0.9
    assert source.probabilities(-1) == []
    for _ in range(20):
        source.record(3, 0, 0.3)
    assert source.probabilities(8) == [], "too much time was lost"


# Batch padding


BLOCKWISE = [12.6, 23.7, 32.0, 30.7, 44.2, 50.9, 59.0, 39.7, 53.4, 60.0, 67.6, 50.6, 64.3, 71.0, 79.3, 50.7]
"""Milliseconds of a step of 1 to 16 rows where kernels work in blocks of four ..."""
EVEN = [6.4 * rows**0.7 for rows in range(1, 17)]
"""... and where each row takes about the same time."""


def measured(table: list[float]) -> StepTimes:
    times = StepTimes(len(table))
    for rows, seconds in enumerate(table, 1):
        for _ in range(MIN_SAMPLES):
            times.record(rows, seconds)
    return times


@pytest.mark.parametrize(
    ("rows", "padded"),
    [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (6, 8), (7, 8), (8, 8), (9, 12), (11, 12), (13, 16), (15, 16), (16, 16)],
)
def test_steps_are_padded_where_full_blocks_are_faster(rows: int, padded: int) -> None:
    assert measured(BLOCKWISE).padded(rows) == padded


@pytest.mark.parametrize("rows", range(1, 17))
def test_steps_are_not_padded_where_each_row_takes_time(rows: int) -> None:
    assert measured(EVEN).padded(rows) == rows


def test_padding_needs_a_clear_gain() -> None:
    assert measured([1.0, 2.0, 3.0, 2.95]).padded(3) == 3
    assert measured([1.0, 2.0, 3.0, 2.85]).padded(3) == 4


def run(times: StepTimes, rows: int, table: list[float], steps: int) -> list[int]:
    """Return the chosen rows of each step while ``table`` gives the true durations."""
    chosen = []
    for _ in range(steps):
        chosen.append(times.padded(rows))
        times.record(chosen[-1], table[chosen[-1] - 1])
    return chosen


def test_an_unmeasured_size_is_tried_for_two_steps() -> None:
    assert run(StepTimes(16), 6, BLOCKWISE, 8) == [6, 6, 8, 8, 8, 8, 8, 8]
    assert run(StepTimes(16), 6, EVEN, 8) == [6, 6, 8, 8, 6, 6, 6, 6]
    assert run(StepTimes(16), 9, EVEN, 8) == [9, 9, 12, 12, 16, 16, 9, 9]


def test_a_slower_size_is_tried_again_less_and_less_often() -> None:
    times = StepTimes(16)
    chosen = run(times, 6, EVEN, 2 * MAX_LIFETIME)
    assert chosen.count(8) == 6 * MIN_SAMPLES, "six trials of two steps in a thousand"
    assert chosen[:40].count(8) == 2 * MIN_SAMPLES, "the first may have been measured at a busy moment"
    assert run(times, 6, BLOCKWISE, MAX_LIFETIME)[-1] == 8, "the durations have changed"


def test_one_slow_step_changes_nothing() -> None:
    times = measured(BLOCKWISE)
    for seconds in (BLOCKWISE[7], 900.0, BLOCKWISE[7]):
        times.record(8, seconds)
    assert times.padded(7) == 8


def test_each_thread_count_has_its_own_table() -> None:
    times = measured(BLOCKWISE)
    times.select(2)
    assert times.seconds(8) is None
    times.select(1)
    assert times.seconds(8) == 39.7 and times.seconds(17) is None


def test_padding_never_exceeds_the_largest_step() -> None:
    assert StepTimes(6).padded(6) == 6
    assert run(StepTimes(6), 5, BLOCKWISE, 4) == [5] * 4
