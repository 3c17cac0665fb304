"""Context windows: which tokens of a prompt are kept, and how long a reply may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_nb.engine.sequence import Sequence, fit_prompt, max_reply_tokens, protected_tokens
from ollama_nb.engine.slots import common_prefix
from ollama_nb.errors import ContextOverflow


@pytest.mark.parametrize(
    ("num_keep", "n_prompt", "limit", "bos", "kept"),
    [
        (4, 100, 64, True, 5),
        (4, 100, 64, False, 4),
        (4, 3, 64, True, 3),
        (-1, 30, 64, True, 30),
        (-1, 100, 64, True, 62),
    ],
)
def test_protected_tokens(num_keep: int, n_prompt: int, limit: int, bos: bool, kept: int) -> None:
    assert protected_tokens(num_keep, n_prompt, limit, bos=bos) == kept


def test_a_prompt_that_fits_is_unchanged() -> None:
    assert fit_prompt(list(range(63)), 64, 5, may_drop=False) == list(range(63))


def test_a_long_prompt_loses_its_middle() -> None:
    fitted = fit_prompt(list(range(100)), 64, 5, may_drop=True)
    assert len(fitted) == 64 - (64 - 5) // 2
    assert fitted[:5] == [0, 1, 2, 3, 4] and fitted[5:] == list(range(100 - 30, 100))


def test_a_long_prompt_is_refused_where_nothing_may_be_dropped() -> None:
    with pytest.raises(ContextOverflow, match="the prompt is longer than the context length currently available"):
        fit_prompt(list(range(64)), 64, 5, may_drop=False)


@given(n=st.integers(1, 300), limit=st.integers(4, 200), num_keep=st.integers(-1, 400), bos=st.booleans())
def test_any_prompt_is_made_to_fit(n: int, limit: int, num_keep: int, bos: bool) -> None:
    keep = protected_tokens(num_keep, n, limit, bos=bos)
    fitted = fit_prompt(list(range(n)), limit, keep, may_drop=True)
    assert 0 < len(fitted) < limit
    assert fitted[:keep] == list(range(keep)) and fitted[-1] == n - 1


@given(limit=st.integers(4, 60), num_keep=st.integers(-1, 80), n=st.integers(1, 59))
def test_a_shift_keeps_the_protected_tokens(limit: int, num_keep: int, n: int) -> None:
    keep = protected_tokens(num_keep, n, limit, bos=True)
    seq = Sequence(1, fit_prompt(list(range(n)), limit, keep, may_drop=True), limit=limit, keep=keep)
    for _ in range(200):
        seq.n_past = len(seq.tokens)
        seq.append(999)
        if seq.full:
            seq.discard_half()
        assert seq.tokens[:keep] == list(range(keep))
        assert 0 <= seq.n_past < len(seq.tokens) < limit


@pytest.mark.parametrize(("num_predict", "limit"), [(-1, 1000), (-2, 1000), (5, 5), (0, 0), (9999, 1000)])
def test_max_reply_tokens(num_predict: int, limit: int) -> None:
    assert max_reply_tokens(num_predict, 100) == limit


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_common_prefix_equals_a_plain_loop(one: list[int], other: list[int]) -> None:
    expected = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        expected += 1
    assert common_prefix(one, other) == expected
