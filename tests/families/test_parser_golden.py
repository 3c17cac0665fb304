"""Every family against Ollama's own parsers: golden/parsers/cases.json, and what those parsers made of it.

``outputs.json`` holds their outcome for the whole text, and for pieces of 1, 3 and 7 characters where it differs.
``ours.json`` lists where we part from them on purpose, with the reason; everywhere else the outcomes are the same.
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
    "end": "white space, or an unfinished tag, at the end of a reply is text; they drop it",
    "malformed": "a call that cannot be read is content with a tool_error; they drop it or end the reply",
    "unclosed": "a complete call whose closing marker is missing is a call; they drop it",
    "more": "several calls where they see one, or an error",
    "text": "text between calls, or where none is expected, is content; they drop it",
    "null": "arguments are always an object",
    "string": "arguments as a string of JSON are read; they end the reply with an error",
    "written": "a value is taken as it was written, or read by the rules of its notation",
    "repaired": "a tag that was left out is put back; they drop the argument",
    "bare": "a call without marks is found in the whole reply; they look at the last piece only",
    "offered": "bare JSON is a call only if it names an offered tool; they take any, or end with an error",
}


def read(case: dict[str, Any], size: int) -> dict[str, Any]:
    last = case["last"] and Message(case["last"]["role"], case["last"]["content"], case["last"].get("thinking", ""))
    context = ReplyContext(tuple(FILE["tools"][case["tools"]]), case["think"], last)
    return outcome(read_all(families.parser(case["parser"]).create(context), in_pieces(case["text"], size)))


@pytest.mark.parametrize("name", families.parsers())
def test_a_family_reads_as_ollama_does_but_for_what_is_listed(name: str) -> None:
    for case in (case for case in CASES if case["parser"] == name):
        expected = OURS.get(case["name"], {}).get("reads", THEIRS[case["name"]]["whole"])
        for size in (0, 1, 2, 3, 7):
            assert read(case, size) == expected, (case, size)


def test_every_family_has_cases() -> None:
    assert {case["parser"] for case in CASES} == families.parsers().keys()


def test_every_difference_is_one_and_has_a_reason() -> None:
    for name, row in OURS.items():
        assert row["why"] in REASONS, name
        assert row["reads"] != THEIRS[name]["whole"], name


def test_no_reply_ends_with_an_error_of_theirs() -> None:
    """Where they give up, the text is there: as content with a tool_error, or as calls."""
    failed = [name for name, row in THEIRS.items() if "error" in row["whole"]]
    assert len(failed) > 40
    for name in failed:
        reads = OURS[name]["reads"]
        assert reads.get("calls") or (reads["content"] and (reads.get("tool_error") or OURS[name]["why"] == "offered"))


def test_what_is_malformed_is_told() -> None:
    for name, row in OURS.items():
        assert (row["why"] == "malformed") == ("tool_error" in row["reads"]), name
