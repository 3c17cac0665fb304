"""The states of a batch and the lines of its input file, without I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_nb.errors import Busy, InvalidBatchFile, ModelNotFound, RunnerCrashed
from ollama_nb.service import batches
from ollama_nb.service.batches import BatchJob, body_of, in_running_order, parse_lines

CHAT = "/v1/chat/completions"


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    whole = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"model": "m"}, **changes}
    return json.dumps({name: value for name, value in whole.items() if value is not ...}, ensure_ascii=False).encode()


def new_job(**changes: Any) -> BatchJob:
    return BatchJob(
        id="batch_1", endpoint=CHAT, input_file="f", window="24h", created_at=0.0, expires_at=100.0, **changes
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"{", ""),
        (b"[1]", ""),
        (b'{"custom_id": "\xff"}', ""),
        (b"[" * 100_000, ""),
        (b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + b"[" * 100_000, ""),
        (line(...), "custom_id"),
        (line(""), "custom_id"),
        (line(7), "custom_id"),
        (line(method="GET"), "method"),
        (line(method=...), "method"),
        (line(url="/v1/embeddings"), "url"),
        (line(body=...), "body"),
        (line(body=[]), "body"),
        (line(body={"model": "m", "stream": True}), "body.stream"),
    ],
)
def test_a_broken_line_is_named(data: bytes, field: str) -> None:
    good, broken, last = parse_lines([line("天") + b"\n", data + b"\n", line("b")], CHAT)
    assert (good.problem, good.custom_id, good.model, last.problem) == (None, "天", "m", None)
    assert broken.problem is not None and broken.problem.message.startswith("line 2: ")
    assert (broken.problem.line, broken.problem.field, broken.problem.code) == (2, field, "invalid_batch_line")


def test_lines_of_all_kinds() -> None:
    body = '{ "model" : "m", "messages": [{"content": "\\u5929 天"}] }'
    raw = b'{"custom_id":"x","method":"POST","url":"%b","body":%b}\r\n' % (CHAT.encode(), body.encode())
    data = [b"\xef\xbb\xbf" + raw, b"\n", b"  \r\n", line("x"), b"\n", line("y", body={"model": 3, "stream": False})]
    found = parse_lines(data, CHAT)
    assert [(one.number, one.custom_id, one.problem is None) for one in found] == [
        (1, "x", True), (4, "x", False), (6, "y", True),
    ]  # fmt: skip
    whole = b"".join(data)
    first = whole[found[0].offset : found[0].offset + found[0].size]
    assert body_of(first) == body.encode(), "as the client wrote it"
    assert json.loads(whole[found[2].offset :])["custom_id"] == "y"
    assert found[1].problem is not None and '"x"' in found[1].problem.message


def test_a_file_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_LINES", 3)
    parse_lines([line(str(i)) for i in range(3)], CHAT)
    with pytest.raises(InvalidBatchFile):
        parse_lines([line(str(i)) for i in range(4)], CHAT)


def test_models_run_one_after_the_other() -> None:
    lines = parse_lines([line(str(i), body={"model": model}) for i, model in enumerate("abab")] + [b"{"], CHAT)
    assert [(one.model, one.number) for one in in_running_order(lines)] == [("a", 1), ("a", 3), ("b", 2), ("b", 4)]


def test_a_batch_fails_only_if_no_line_can_run() -> None:
    job = new_job()
    some = batches.checked(job, parse_lines([line("a"), b"{"], CHAT), 5.0)
    assert (some.status, some.total, some.models, some.times) == ("in_progress", 2, ("m",), {"in_progress": 5.0})
    none = batches.checked(job, parse_lines([b"{"] * 200, CHAT), 5.0)
    assert (none.status, none.total, none.failed, none.ended_at) == ("failed", 200, 200, 5.0)
    assert [problem.line for problem in none.problems] == [0, *range(1, batches.MAX_PROBLEMS + 1)]
    empty = batches.checked(job, [], 5.0)
    assert (empty.status, len(empty.problems), empty.problems[0].code) == ("failed", 1, "invalid_batch_file")


def test_which_failures_are_repeated() -> None:
    assert [batches.retry_delay(Busy(""), attempts) for attempts in (1, 99)] == [batches.BUSY_SECONDS] * 2
    assert [batches.retry_delay(RunnerCrashed(""), attempts) for attempts in (1, 2)] == [0.0, None]
    assert batches.retry_delay(ModelNotFound(""), 1) is None


NEXT = {
    "validating": {"in_progress", "failed", "cancelling"},
    "in_progress": {"finalizing", "cancelling"},
    "finalizing": {"completed", "expired"},
    "cancelling": {"cancelled"},
}
"""The table in the module's docstring."""

EVENTS = st.lists(st.sampled_from(["check", "result", "tick", "look", "cancel", "end"]), max_size=40)


@given(EVENTS, st.lists(st.booleans(), max_size=6))
def test_every_path_follows_the_table(events: list[str], lines: list[bool]) -> None:
    """A worker that is interrupted anywhere, and a client that cancels at any time."""
    found = parse_lines([line(str(number)) if good else b"{" for number, good in enumerate(lines)], CHAT)
    job, cancelled, results, now = new_job(), False, 0, 0.0
    for event in events:
        before = batches.with_cancellation(job, now) if cancelled else job
        now += 60.0 if event == "tick" else 1.0
        if before.status not in batches.UNFINISHED:
            break
        if event == "cancel":
            cancelled = True
        elif event == "check" and before.status == "validating":
            job = batches.checked(job, found, now)
        elif event == "result" and before.status == "in_progress" and results < len(found):
            results += 1
        elif event == "look" and batches.next_status(before, results, now) == "finalizing" != before.status:
            assert results == len(found) or now >= job.expires_at
            job = before.enter("finalizing", now)
        elif event == "end" and before.status in ("finalizing", "cancelling"):
            job = before.enter(batches.final_status(before, results, len(found)), now)
        after = batches.with_cancellation(job, now) if cancelled else job
        assert after.status == before.status or after.status in NEXT[before.status]
        assert (job.status == "completed") <= (results == len(found))
        assert (job.ended_at is None) == (job.status in batches.UNFINISHED)
    assert [*job.times] == [*dict.fromkeys(job.times)]
    assert sorted(job.times.values()) == [*job.times.values()]
