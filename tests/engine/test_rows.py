"""Rounding steps up, as tables of measured times."""

from __future__ import annotations

import pytest

from ollama_nb.engine.rows import LIFETIME, TRIES, RowTimes

REPACKED = [12.6, 23.7, 32.0, 30.7, 44.2, 50.9, 59.0, 39.7, 53.4, 60.0, 67.6, 50.6, 64.3, 71.0, 79.3, 50.7]
"""Milliseconds of a step of 1 to 16 rows where kernels work in blocks of four …"""
EVEN = [6.4 * rows**0.7 for rows in range(1, 17)]
"""… and where each row costs about the same."""


def measured(table: list[float]) -> RowTimes:
    times = RowTimes(len(table))
    for rows, seconds in enumerate(table, 1):
        for _ in range(TRIES):
            times.observe(rows, seconds)
    return times


@pytest.mark.parametrize(
    ("rows", "rounded"),
    [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (6, 8), (7, 8), (8, 8), (9, 12), (11, 12), (13, 16), (15, 16), (16, 16)],
)
def test_rows_are_rounded_up_where_blocks_are_cheaper(rows: int, rounded: int) -> None:
    assert measured(REPACKED).rounded(rows) == rounded


@pytest.mark.parametrize("rows", range(1, 17))
def test_rows_stay_where_each_costs_time(rows: int) -> None:
    assert measured(EVEN).rounded(rows) == rows


def test_a_hair_less_is_not_enough() -> None:
    assert measured([1.0, 2.0, 3.0, 2.95]).rounded(3) == 3
    assert measured([1.0, 2.0, 3.0, 2.85]).rounded(3) == 4


def run(times: RowTimes, rows: int, table: list[float], steps: int) -> list[int]:
    """What is chosen, step by step, while ``table`` is the truth."""
    chosen = []
    for _ in range(steps):
        chosen.append(times.rounded(rows))
        times.observe(chosen[-1], table[chosen[-1] - 1])
    return chosen


def test_what_is_unknown_is_tried_for_two_steps() -> None:
    assert run(RowTimes(16), 6, REPACKED, 8) == [6, 6, 8, 8, 8, 8, 8, 8]
    assert run(RowTimes(16), 6, EVEN, 8) == [6, 6, 8, 8, 6, 6, 6, 6]
    assert run(RowTimes(16), 9, EVEN, 8) == [9, 9, 12, 12, 16, 16, 9, 9]


def test_a_loss_is_tried_again_less_and_less_often() -> None:
    times = RowTimes(16)
    chosen = run(times, 6, EVEN, 2 * LIFETIME)
    assert chosen.count(8) == 6 * TRIES, "six trials of two steps in a thousand"
    assert chosen[:40].count(8) == 2 * TRIES, "the first may have met a busy moment"
    assert run(times, 6, REPACKED, LIFETIME)[-1] == 8, "the truth has changed, and it was noticed"


def test_one_slow_step_changes_nothing() -> None:
    times = measured(REPACKED)
    for seconds in (REPACKED[7], 900.0, REPACKED[7]):
        times.observe(8, seconds)
    assert times.rounded(7) == 8


def test_threads_have_tables_of_their_own() -> None:
    times = measured(REPACKED)
    times.use(2)
    assert times.seconds(8) is None
    times.use(1)
    assert times.seconds(8) == 39.7 and times.seconds(17) is None


def test_never_more_rows_than_there_is_room_for() -> None:
    assert RowTimes(6).rounded(6) == 6
    assert run(RowTimes(6), 5, REPACKED, 4) == [5] * 4
