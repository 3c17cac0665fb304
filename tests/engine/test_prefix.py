"""What is kept on disk, what comes back, what goes: tables of decisions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.prefix import OLDEST, File, Prefix, choose, outdated, superseded, worth_keeping

DAY = 86_400.0


def kept(count: int, *, first: int = 0, size: int = 1000, pace: float = 0.01, name: str = "") -> Prefix:
    return Prefix(name or f"{first}+{count}", list(range(first, first + count)), size, pace)


@pytest.mark.parametrize(
    ("known", "prompt", "held", "facts", "expected"),
    [
        ([], 500, 0, {}, None),
        ([kept(400)], 500, 0, {}, ("0+400", 400)),
        ([kept(400), kept(300)], 500, 0, {}, ("0+400", 400)),
        ([kept(900)], 500, 0, {}, ("0+900", 500)),
        ([kept(900)], 500, 0, {"cuttable": False}, None),
        ([kept(400), kept(900)], 500, 0, {"cuttable": False}, ("0+400", 400)),
        ([kept(400, first=1)], 500, 0, {}, None),
        ([kept(400)], 500, 390, {}, None),  # memory holds nearly as much
        ([kept(400)], 500, 384, {}, ("0+400", 400)),
        ([kept(10)], 500, 0, {}, None),
        ([kept(400, size=1 << 30)], 500, 0, {}, None),  # computing is as fast as reading
        ([kept(400, pace=1e-5)], 500, 0, {}, None),
        ([kept(400, size=1 << 30)], 500, 0, {"rate": 1e10}, ("0+400", 400)),
        ([kept(900)], 500, 0, {"limit": 800}, None),  # it does not fit this context
        (
            [kept(900, size=1 << 29), kept(480, size=1000)],
            500,
            0,
            {},
            ("0+480", 480),
        ),  # little more for much more reading
    ],
)
def test_choose(
    known: list[Prefix], prompt: int, held: int, facts: dict[str, float], expected: tuple[str, int] | None
) -> None:
    found = choose(known, list(range(prompt)), held, **{"cuttable": True, "limit": 4096, **facts})
    assert (found and (found[0].name, found[1])) == expected


@pytest.mark.parametrize(
    ("known", "count", "pace", "cuttable", "expected"),
    [
        ([], 500, 0.01, True, True),
        ([], 500, 0.0001, True, False),  # computed at once
        ([], 63, 1.0, True, False),
        ([kept(500)], 500, 0.01, True, False),
        ([kept(900)], 500, 0.01, True, False),  # a longer one serves
        ([kept(900)], 500, 0.01, False, True),  # … but not where it cannot be cut
        ([kept(400)], 500, 0.01, True, False),  # a fifth is new
        ([kept(370)], 500, 0.01, True, True),
        ([kept(400, first=9)], 500, 0.01, True, True),
    ],
)
def test_worth_keeping(known: list[Prefix], count: int, pace: float, cuttable: bool, expected: bool) -> None:
    assert worth_keeping(known, list(range(count)), pace, cuttable=cuttable, least=0.5) is expected


def test_a_longer_one_takes_the_place_of_those_it_continues() -> None:
    known = [kept(100), kept(200), kept(300), kept(100, first=5)]
    tokens = list(range(200))
    assert [p.name for p in superseded(known, tokens, cuttable=True)] == ["0+100"]
    assert superseded(known, tokens, cuttable=False) == []


@pytest.mark.parametrize(
    ("files", "cap", "incoming", "expected"),
    [
        ([], 100, 200, []),
        ([File("a", 50, DAY), File("b", 50, 2 * DAY)], 100, 0, []),
        ([File("a", 50, 2 * DAY), File("b", 50, DAY)], 100, 1, ["b"]),
        ([File("a", 50, 2 * DAY), File("b", 50, DAY)], 100, 51, ["b", "a"]),
        ([File("old", 1, 8 * DAY - OLDEST - 1)], 100, 0, ["old"]),
        ([File("future", 1, 99 * DAY)], 100, 0, []),
        ([File(".part-1", 90, 8 * DAY - 60), File("a", 10, DAY)], 100, 10, ["a"]),  # being written: it stays and counts
        ([File(".part-1", 90, 7 * DAY)], 100, 0, [".part-1"]),
    ],
)
def test_outdated(files: list[File], cap: int, incoming: int, expected: list[str]) -> None:
    assert outdated(files, cap=cap, incoming=incoming, now=8 * DAY) == expected


@settings(max_examples=100)
@given(
    st.lists(st.builds(File, st.uuids().map(str), st.integers(0, 100), st.floats(2 * DAY, 8 * DAY)), unique=True),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_what_stays_fits_and_was_used_last(files: list[File], cap: int, incoming: int) -> None:
    gone = set(outdated(files, cap=cap, incoming=incoming, now=8 * DAY))
    stays = [file for file in files if file.name not in gone]
    assert not stays or sum(file.size for file in stays) + incoming <= cap
    goes = [file.used for file in files if file.name in gone]
    assert not stays or not goes or max(goes) <= min(file.used for file in stays)
