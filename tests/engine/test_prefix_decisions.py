"""The decisions of the prefix cache on disk: what is loaded, what is stored, what is evicted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.prefix_cache import choose_prefix, worth_storing
from ollama_nb.engine.prefix_store import MAX_AGE, Prefix, PrefixFile, files_to_evict, superseded

DAY = 86_400.0


def stored(count: int, *, first: int = 0, size: int = 1000, seconds: float = 0.01, name: str = "") -> Prefix:
    return Prefix(name or f"{first}+{count}", list(range(first, first + count)), size, seconds)


@pytest.mark.parametrize(
    ("known", "prompt", "held", "facts", "expected"),
    [
        ([], 500, 0, {}, None),
        ([stored(400)], 500, 0, {}, ("0+400", 400)),
        ([stored(400), stored(300)], 500, 0, {}, ("0+400", 400)),
        ([stored(900)], 500, 0, {}, ("0+900", 500)),
        ([stored(900)], 500, 0, {"cuttable": False}, None),
        ([stored(400), stored(900)], 500, 0, {"cuttable": False}, ("0+400", 400)),
        ([stored(400, first=1)], 500, 0, {}, None),
        ([stored(400)], 500, 390, {}, None),  # memory has nearly as much
        ([stored(400)], 500, 384, {}, ("0+400", 400)),
        ([stored(10)], 500, 0, {}, None),
        ([stored(400, size=1 << 30)], 500, 0, {}, None),  # computing is as fast as reading
        ([stored(400, seconds=1e-5)], 500, 0, {}, None),
        ([stored(400, size=1 << 30)], 500, 0, {"rate": 1e10}, ("0+400", 400)),
        ([stored(900)], 500, 0, {"limit": 800}, None),  # larger than this context
        (
            [stored(900, size=1 << 29), stored(480, size=1000)],
            500,
            0,
            {},
            ("0+480", 480),
        ),  # few more tokens for much more reading
    ],
)
def test_choose_prefix(
    known: list[Prefix], prompt: int, held: int, facts: dict[str, float], expected: tuple[str, int] | None
) -> None:
    found = choose_prefix(known, list(range(prompt)), held, **{"cuttable": True, "limit": 4096, **facts})
    assert (found and (found[0].name, found[1])) == expected


@pytest.mark.parametrize(
    ("known", "count", "seconds", "cuttable", "expected"),
    [
        ([], 500, 0.01, True, True),
        ([], 500, 0.0001, True, False),  # fast to compute
        ([], 63, 1.0, True, False),
        ([stored(500)], 500, 0.01, True, False),
        ([stored(900)], 500, 0.01, True, False),  # a longer one covers it
        ([stored(900)], 500, 0.01, False, True),  # ... but not if it cannot be cut
        ([stored(400)], 500, 0.01, True, False),  # a fifth is new
        ([stored(370)], 500, 0.01, True, True),
        ([stored(400, first=9)], 500, 0.01, True, True),
    ],
)
def test_worth_storing(known: list[Prefix], count: int, seconds: float, cuttable: bool, expected: bool) -> None:
    assert worth_storing(known, list(range(count)), seconds, cuttable=cuttable, min_gain=0.5) is expected


def test_a_longer_prefix_replaces_those_that_it_continues() -> None:
    known = [stored(100), stored(200), stored(300), stored(100, first=5)]
    tokens = list(range(200))
    assert [p.name for p in superseded(known, tokens, cuttable=True)] == ["0+100"]
    assert superseded(known, tokens, cuttable=False) == []


@pytest.mark.parametrize(
    ("files", "cap", "incoming", "expected"),
    [
        ([], 100, 200, []),
        ([PrefixFile("a", 50, DAY), PrefixFile("b", 50, 2 * DAY)], 100, 0, []),
        ([PrefixFile("a", 50, 2 * DAY), PrefixFile("b", 50, DAY)], 100, 1, ["b"]),
        ([PrefixFile("a", 50, 2 * DAY), PrefixFile("b", 50, DAY)], 100, 51, ["b", "a"]),
        ([PrefixFile("old", 1, 8 * DAY - MAX_AGE - 1)], 100, 0, ["old"]),
        ([PrefixFile("future", 1, 99 * DAY)], 100, 0, []),
        (
            [PrefixFile(".part-1", 90, 8 * DAY - 60), PrefixFile("a", 10, DAY)],
            100,
            10,
            ["a"],
        ),  # being written: kept and counted
        ([PrefixFile(".part-1", 90, 7 * DAY)], 100, 0, [".part-1"]),
    ],
)
def test_files_to_evict(files: list[PrefixFile], cap: int, incoming: int, expected: list[str]) -> None:
    assert files_to_evict(files, cap=cap, incoming=incoming, now=8 * DAY) == expected


@settings(max_examples=100)
@given(
    st.lists(st.builds(PrefixFile, st.uuids().map(str), st.integers(0, 100), st.floats(2 * DAY, 8 * DAY)), unique=True),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_the_remaining_files_fit_and_were_used_last(files: list[PrefixFile], cap: int, incoming: int) -> None:
    gone = set(files_to_evict(files, cap=cap, incoming=incoming, now=8 * DAY))
    remaining = [file for file in files if file.name not in gone]
    assert not remaining or sum(file.size for file in remaining) + incoming <= cap
    evicted = [file.used for file in files if file.name in gone]
    assert not remaining or not evicted or max(evicted) <= min(file.used for file in remaining)
