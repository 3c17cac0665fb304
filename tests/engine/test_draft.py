"""Guessing what follows from the text itself, and when reading a guess pays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.draft import CREDIT, LONGEST_REST, Forecast, Habit, Lookup, Prescribed, choose
from ollama_nb.engine.rows import TRIES, RowTimes

REPACKED = {1: 12.6, 4: 30.7, 8: 39.7, 12: 50.6, 16: 50.7}
STEEP = {1: 6.4, 4: 25.0, 8: 50.0, 12: 75.0, 16: 100.0}


def times(table: dict[int, float], most: int = 16) -> RowTimes:
    known = RowTimes(most)
    for rows, seconds in table.items():
        for _ in range(TRIES):
            known.observe(rows, seconds)
    return known


def lookup(prompt: Iterable[int], said: Iterable[int] = (), most: int = 15) -> Lookup:
    made = Lookup(prompt, most)
    for token in said:
        made.feed(token)
    return made


# The guess


@pytest.mark.parametrize(
    ("prompt", "said", "guess"),
    [
        (range(10, 20), [10, 11, 12], [13, 14, 15, 16]),
        (range(10, 20), [10, 11, 12, 13], [14, 15, 16, 17]),
        (range(10, 20), [10, 11], []),
        (range(10, 20), [12, 11, 10], []),
        ([1, 2, 3, 4, 1, 2, 3, 5], [1, 2, 3], [5, 1, 2, 3]),  # the latest place counts
        ([7, 8], [1, 2, 3, 1, 2, 3], [1, 2, 3, 1]),  # a loop goes on
        ([], [5, 5, 5, 5], [5, 5, 5, 5]),
        (range(10, 20), [10, 11, 12, 13, 99], [15, 16, 17, 18]),  # one token was replaced
        (range(10, 20), [10, 11, 12, 99, 98], []),
        (range(10, 20), range(10, 20), [10, 11, 12, 13]),  # at the end of the copied text, it starts over
    ],
    ids=str,
)
def test_what_followed_before_is_guessed(prompt: Iterable[int], said: Iterable[int], guess: list[int]) -> None:
    assert lookup(prompt, said).guess(4) == guess


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40), st.integers(1, 15))
def test_any_text_gives_a_guess_of_its_own_tokens(prompt: list[int], said: list[int], count: int) -> None:
    made = lookup(prompt, said)
    guess, chances = made.guess(count), made.chances(count)
    assert len(guess) in (0, count) and set(guess) <= {*prompt, *said}
    assert len(chances) in (0, count) and (guess or not chances)
    assert all(0 < later <= sooner < 1 for sooner, later in itertools.pairwise(chances))


# The chances


def test_trust_grows_with_what_came_true() -> None:
    text = list(range(100))
    chances = [sum(lookup(text, text[:said]).chances(7)) for said in (3, 4, 6, 10, 20, 60)]
    assert chances[0] == 0.0, "nothing came true yet"
    assert chances == sorted(chances)
    assert chances[-1] > 6.5


def test_trust_is_lost_where_repeats_end_soon() -> None:
    """Every phrase of four tokens comes back, and goes on differently."""
    made = Lookup([], 15)
    for n in range(60):
        for token in (1, 2, 3, 4, 100 + n, 200 + n, 300 + n):
            made.feed(token)
    for token in (1, 2, 3, 4):
        made.feed(token)
    assert sum(made.chances(7)) < 0.2


def test_what_lost_too_much_is_over() -> None:
    made = lookup(range(100), range(50))
    assert made.chances(3)
    made.balance = -CREDIT - 10
    assert made.chances(3) == []
    made.balance = -CREDIT
    assert made.chances(3), "a long reply may lose its share"


def test_a_draft_is_as_long_as_allowed() -> None:
    made = lookup(range(100), range(50), most=2)
    assert len(made.chances(9)) == 2 and made.chances(0) == made.chances(-1) == []


def test_a_draft_model_is_trusted_as_far_as_its_guesses_came_true() -> None:
    made = Forecast(7)
    first = made.chances(7)
    assert len(first) == 7 and first[0] > 0.7, "enough to be tried"
    for _ in range(40):
        made.settle(7, 2, 0.1)
    chances = made.chances(7)
    assert chances[1] > 0.8 and chances[2] < 0.5 and chances[6] < 0.1
    for _ in range(40):
        made.settle(7, 7, 0.1)
    assert made.chances(7)[6] > 0.6


def test_a_draft_model_that_loses_is_over_until_the_reply_is_long() -> None:
    made = Forecast(7)
    made.balance = -CREDIT - 1
    assert made.chances(7) == []
    for _ in range(200):
        made.feed()
    assert made.chances(7)


def test_a_draft_model_rests_longer_each_time_it_did_not_pay() -> None:
    habit, asked = Habit(), []
    for _ in range(4 * LONGEST_REST):
        asked.append(habit.asks())
        if asked[-1]:
            habit.learn(-1.0)
    assert asked[:12] == [True, False, True] + [False] * 3 + [True] + [False] * 5
    assert sum(asked) < 9
    while not habit.asks():
        pass
    habit.learn(1.0)
    assert habit.asks()


# The choice


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
    ids=["copy", "short copy", "half a copy", "no copy", "nothing", "rows are dear", "one of four", "two of four",
         "no room", "cheap company", "dear company"],
)  # fmt: skip
def test_drafts_are_read_where_they_pay(
    offers: list[list[float]], table: dict[int, float], rows: int, sizes: tuple[int, ...]
) -> None:
    plan = choose(offers, times(table))
    assert (plan.rows, plan.sizes) == (rows, sizes) if plan else not rows


def test_a_draft_has_its_price() -> None:
    plan = choose([SURE[:7]], times(REPACKED))
    assert plan is not None
    assert plan.price * 7 == pytest.approx(39.7 / 12.6 - 1), "in plain steps"


@pytest.mark.parametrize(("toll", "sizes"), [(0.0, (6, 0)), (1.0, (6, 0)), (2.0, (2, 0)), (30.0, None)], ids=str)
def test_guesses_of_a_draft_model_pay_for_their_making(toll: float, sizes: tuple[int, ...] | None) -> None:
    plan = choose([FAIR[:7], []], times(REPACKED | {2: 23.7}), [0], toll)
    assert (plan and plan.sizes) == sizes


def test_what_costs_nothing_to_guess_pays_no_toll() -> None:
    assert choose([SURE[:7]], times(REPACKED), [], 99.0) == choose([SURE[:7]], times(REPACKED))


def test_nothing_is_drafted_before_a_plain_step_is_known() -> None:
    assert choose([SURE], RowTimes(16)) is None


def test_an_unknown_size_is_tried_when_it_promises_enough() -> None:
    known = times({1: 6.4})
    plan = choose([SURE], known)
    assert plan is not None and plan.rows == 12
    for rows in (16, 12, 8, 4):
        for _ in range(TRIES):
            known.observe(rows, rows * 7.0)
    assert choose([SURE], known) is None, "it was measured, and does not pay"


def test_what_a_format_prescribes_is_trusted_until_the_model_cuts_it_otherwise() -> None:
    prescribed = Prescribed(8)
    assert prescribed.chances(8) == [], "nothing is prescribed"
    prescribed.tokens = [4, 5, 6]
    assert prescribed.guess(2) == [4, 5]
    first = prescribed.chances(8)
    assert len(first) == 3 and first[0] > 0.9
    assert prescribed.chances(-1) == []
    for _ in range(20):
        prescribed.settle(3, 0, 0.3)
    assert prescribed.chances(8) == [], "it has cost too much"
