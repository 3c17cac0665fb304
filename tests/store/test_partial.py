"""Parts of a download cover a blob exactly, whatever the journal contains."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.store.transfer import partial
from ollama_nb.store.transfer.partial import BlobPart

sizes = st.integers(0, 20_000_000_000)
small = st.integers(-5, 120)
anything = st.builds(BlobPart, small, small, small, small)


def covers(parts: tuple[BlobPart, ...], total: int) -> bool:
    at = 0
    for part in parts:
        if part.offset != at or part.size <= 0 or not 0 <= part.completed <= part.size:
            return False
        at = part.end
    return at == total and len({part.number for part in parts}) == len(parts)


@given(sizes)
@settings(max_examples=200)
def test_split_covers_the_blob(total: int) -> None:
    parts = partial.split_blob(total)
    assert covers(parts, total)
    assert all(partial.MIN_PART <= part.size <= partial.MAX_PART for part in parts[:-1])
    assert len(parts) <= max(partial.TARGET_PARTS, -(-total // partial.MAX_PART))


@given(st.lists(anything, max_size=8), st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=200)
def test_a_repaired_journal_covers_the_blob_and_adds_no_bytes(found: list[BlobPart], total: int, on_disk: int) -> None:
    parts = partial.repair_parts(found, total, on_disk)
    assert covers(parts, total)
    known = {(part.number, part.offset, part.size): part.completed for part in found}
    for part in parts:
        assert part.completed <= max(0, on_disk - part.offset)
        assert part.completed <= known.get((part.number, part.offset, part.size), part.completed)
        assert not part.completed or (part.number, part.offset, part.size) in known


@given(st.integers(1, 100).flatmap(lambda total: st.tuples(st.just(total), st.sets(st.integers(1, 99), max_size=6))))
@settings(max_examples=100)
def test_missing_journal_files_are_downloaded_again(case: tuple[int, set[int]]) -> None:
    """Any subset of the parts of a complete journal keeps its state; the others start at zero."""
    total, cuts = case
    edges = [0, *sorted(cut for cut in cuts if cut < total), total]
    whole = [BlobPart(n, a, b - a, b - a) for n, (a, b) in enumerate(pairwise(edges))]
    assert partial.repair_parts(whole, total, total) == tuple(whole)
    kept = whole[::2]
    parts = partial.repair_parts(kept, total, total)
    assert covers(parts, total)
    assert sum(part.completed for part in parts) == sum(part.size for part in kept)


@given(st.binary(max_size=200))
def test_decode_accepts_any_bytes(raw: bytes) -> None:
    part = partial.decode_part(raw)
    assert part is None or partial.decode_part(partial.encode_part(part)) == part


def test_the_journal_has_the_format_of_a_real_ollama() -> None:
    assert partial.encode_part(BlobPart(3, 100, 50, 7)) == b'{"N":3,"Offset":100,"Size":50,"Completed":7}\n'
    assert partial.decode_part(b'{"N":0,"Offset":0,"Size":100000000,"Completed":123}\n') == BlobPart(
        0, 0, 100_000_000, 123
    )
    assert json.loads(partial.encode_part(BlobPart(0, 0, 1, 1, '"x"')))["ETag"] == '"x"'


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"[]", b"null", b"{}", b"\xff", b"[" * 5000, b'{"N":"0"}'),
        b'{"N":0,"Offset":-1,"Size":1,"Completed":0}',
        b'{"N":0,"Offset":0,"Size":1,"Completed":true}',
    ],
)
def test_invalid_journal_files(raw: bytes) -> None:
    assert partial.decode_part(raw) is None


@pytest.mark.parametrize(
    ("text", "range_"),
    [
        ("bytes 0-9/10", (0, 9, 10)),
        (" bytes 5-5/* ", (5, 5, None)),
        ("bytes 9-5/10", None),
        ("bytes 0-10/10", None),
        ("bytes */10", None),
        ("0-9", None),
        ("", None),
    ],
)
def test_content_range(text: str, range_: tuple[int, int, int | None] | None) -> None:
    assert partial.parse_content_range(text) == range_
