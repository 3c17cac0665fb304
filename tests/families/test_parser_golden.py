"""Every parser against Ollama's own: golden/parsers/cases.json, and the recorded output of Ollama's parsers.

``outputs.json`` has the output for the whole text, and for pieces of 1, 3 and 7 characters where it differs.
``ours.json`` lists the intended differences with their reasons; all other outputs are equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.replies import in_pieces, outcome, read_all

from ollama_nb import families
from ollama_nb.api.messages import Message
from ollama_nb.reply.output import ReplyContext

FOLDER = Path(__file__).parent.parent / "golden" / "parsers"
FILE = json.loads((FOLDER / "cases.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = FILE["cases"]
THEIRS: dict[str, Any] = {row["name"]: row for row in json.loads((FOLDER / "outputs.json").read_text("utf-8"))}
OURS: dict[str, Any] = json.loads((FOLDER / "ours.json").read_text("utf-8"))

REASONS = {
    "end": "white space or an incomplete tag at the end of a reply is text; Ollama drops it",
    "malformed": "a malformed call is content with a tool_error; Ollama drops it or ends the reply",
    "unclosed": "a complete call without its closing marker is a call; Ollama drops it",
    "more": "several calls where Ollama finds one, or fails",
    "text": "text between calls, or where none is expected, is content; Ollama drops it",
    "null": "arguments are always an object",
    "string": "arguments as a string of JSON are parsed; Ollama ends the reply with an error",
    "written": "a value is taken as written, or parsed by the rules of its notation",
    "repaired": "a missing tag is inserted; Ollama drops the argument",
    "bare": "a call without special tokens is found in the whole reply; Ollama searches the last piece only",
    "offered": "bare JSON is a call only if it names an offered tool; Ollama accepts any, or fails",
}


def parse(case: dict[str, Any], size: int) -> dict[str, Any]:
    last = case["last"] and Message(case["last"]["role"], case["last"]["content"], case["last"].get("thinking", ""))
    context = ReplyContext(tuple(FILE["tools"][case["tools"]]), case["think"], last)
    return outcome(read_all(families.parser(case["parser"]).create(context), in_pieces(case["text"], size)))


@pytest.mark.parametrize("name", families.parsers())
def test_output_equals_ollama_s_except_for_listed_differences(name: str) -> None:
    for case in (case for case in CASES if case["parser"] == name):
        expected = OURS.get(case["name"], {}).get("reads", THEIRS[case["name"]]["whole"])
        for size in (0, 1, 2, 3, 7):
            assert parse(case, size) == expected, (case, size)


def test_every_parser_has_cases() -> None:
    assert {case["parser"] for case in CASES} == families.parsers().keys()


def test_every_listed_difference_is_real_and_has_a_reason() -> None:
    for name, row in OURS.items():
        assert row["why"] in REASONS, name
        assert row["reads"] != THEIRS[name]["whole"], name


def test_replies_that_ollama_rejects_keep_their_text() -> None:
    """The text is content with a tool_error, or calls."""
    failed = [name for name, row in THEIRS.items() if "error" in row["whole"]]
    assert len(failed) > 40
    for name in failed:
        reads = OURS[name]["reads"]
        assert reads.get("calls") or (reads["content"] and (reads.get("tool_error") or OURS[name]["why"] == "offered"))


def test_malformed_calls_have_a_tool_error() -> None:
    for name, row in OURS.items():
        assert (row["why"] == "malformed") == ("tool_error" in row["reads"]), name
