from __future__ import annotations

import pytest

from ollama_nb.client.chunks import parse_stats
from ollama_nb.verbs.present import go_duration, stat_text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (1_500_000, "1.5ms"),
        (383_809_000, "383.809ms"),
        (1_234_567_891, "1.234567891s"),
        (2_154_458, "2.154458ms"),
        (60_000_000_000, "1m0s"),
        (61_000_000_000, "1m1s"),
        (3_661_005_000_000, "1h1m1.005s"),
        (3_600_000_000_000, "1h0m0s"),
        (-1_500_000, "-1.5ms"),
    ],
)
def test_go_duration(nanoseconds: int, text: str) -> None:
    assert go_duration(nanoseconds) == text


def test_the_figures_of_a_reply() -> None:
    final = {
        "total_duration": 5_191_566_416,
        "load_duration": 2_154_458,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 383_809_000,
        "eval_count": 298,
        "eval_duration": 4_799_921_000,
    }
    assert stat_text(parse_stats(final)) == (
        "total duration:       5.191566416s\n"
        "load duration:        2.154458ms\n"
        "prompt eval count:    26 token(s)\n"
        "prompt eval duration: 383.809ms\n"
        "prompt eval rate:     67.74 tokens/s\n"
        "eval count:           298 token(s)\n"
        "eval duration:        4.799921s\n"
        "eval rate:            62.08 tokens/s\n"
    )


def test_drafted_tokens_are_shown_if_there_are_any() -> None:
    assert (
        stat_text(parse_stats({"drafted_tokens": 24, "accepted_tokens": 18}))
        == "draft accept rate:    75% (18 of 24 tokens)\n"
    )
    assert stat_text(parse_stats({"drafted_tokens": 3})) == "draft accept rate:    0% (0 of 3 tokens)\n"
    assert stat_text(parse_stats({"drafted_tokens": 0, "accepted_tokens": 0})) == ""


def test_cached_tokens_and_thinking_are_shown_if_there_are_any() -> None:
    assert stat_text(parse_stats({"cached_tokens": 9, "reasoning_tokens": 4})) == (
        "cached tokens:        9 token(s)\nthinking tokens:      4 token(s)\n"
    )


def test_figures_that_are_zero_are_left_out() -> None:
    assert stat_text(parse_stats({"load_duration": 0, "eval_count": 3})) == "eval count:           3 token(s)\n"
