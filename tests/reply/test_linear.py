"""Parsing takes time in proportion to the length of a reply, whatever it repeats. Steps are counted, not timed."""

from __future__ import annotations

import random

import pytest
from fuzz.fuzz_reply import TOOLS, TURNS, check_work, words_for, work_of
from support.replies import in_pieces

from ollama_nb import families
from ollama_nb.reply.generic import TemplateReplyParser
from ollama_nb.reply.markers import MarkerMatcher


@pytest.mark.parametrize("name", families.parsers())
def test_families_parse_in_linear_time(name: str) -> None:
    rng = random.Random(name)
    words = words_for(name)
    parser = families.parser(name)
    for _ in range(10):
        check_work(lambda: parser.create(TURNS[0]), rng.choice(words), rng.choice(words), rng.choice((0, 7)))


@pytest.mark.parametrize("marker", ["<tool_call>", "{", "["])
@pytest.mark.parametrize(
    "word", ["{", "{}", '{"', "\\", "[", "<tool_call>", "<tool", " ", "get", '{"name": "now"}', "<"]
)
def test_the_generic_parser_takes_linear_time(marker: str, word: str) -> None:
    setup = {"thinking": ("<think>", "</think>"), "tools": TOOLS, "tool_marker": marker}
    check_work(lambda: TemplateReplyParser(**setup), marker, word, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["a", "ab", "a" * 299 + "z", "b"])
def test_stop_strings_take_one_step_per_character(word: str) -> None:
    """Also long and similar stop strings that partially match everywhere and never completely."""
    stops = ["a" * 300 + end for end in "bcdef"] + ["ab" * 150 + "c"]

    class Stream:
        def __init__(self) -> None:
            self._matcher = MarkerMatcher(stops)

        def feed(self, text: str) -> list[object]:
            return [self._matcher.feed(text)]

        def end(self) -> list[object]:
            return [self._matcher.end()]

    text = word * (1800 // len(word))
    assert work_of(Stream(), in_pieces(text, 5)) <= 14 * len(stops) * len(text)
