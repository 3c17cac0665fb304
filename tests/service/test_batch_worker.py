"""Batches on a real disk with a scripted dialect: order, crashes, cancellation, expiry, two servers, a full disk."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop

from ollama_nb.disk import InPlaceFile
from ollama_nb.errors import BadRequest, Busy, ModelNotFound, NotFound, OllamaError, RunnerCrashed, StoreError
from ollama_nb.service import batch_store, batch_worker, batches
from ollama_nb.service.batch_store import BatchStore
from ollama_nb.service.batch_worker import BatchWorker
from ollama_nb.service.batches import BatchJob, BatchLine, LineResult

CHAT = "/v1/chat/completions"
HOUR = 3600.0


class ScriptedDialect:
    """Replies with the body of the request. ``script`` of a custom id is raised, awaited or called first."""

    def __init__(self) -> None:
        self.script: dict[str, list[Any]] = {}
        self.ran: list[str] = []
        self.most = self.now = 0

    async def run(self, endpoint: str, body: bytes, request_id: str) -> bytes:
        content = json.loads(body)["content"]
        self.ran.append(content)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            for step in self.script.get(content, [])[:1]:
                self.script[content].remove(step)
                if isinstance(step, Exception):
                    raise step
                await step()
            return json.dumps({"echo": content}, indent=1, ensure_ascii=False).encode()
        finally:
            self.now -= 1

    def encode_error(self, error: OllamaError) -> bytes:
        return json.dumps({"error": {"message": error.message, "code": error.code}}).encode()

    def encode_result(self, job: BatchJob, result: LineResult) -> bytes:
        body = json.loads(bytes(result.body))
        return json.dumps([result.number, result.custom_id, result.status, body]).encode() + b"\n"

    def encode_unfinished(self, job: BatchJob, line: BatchLine, status: str) -> bytes:
        return json.dumps([line.number, line.custom_id, status]).encode() + b"\n"


class Batch:
    """A state folder, workers on it, and batches in it."""

    def __init__(self, home: Path, slots: int = 1) -> None:
        self.home, self.slots = home, slots
        self.store = BatchStore(home)
        self.dialect = ScriptedDialect()

    @asynccontextmanager
    async def worker(self, dialect: ScriptedDialect | None = None) -> AsyncIterator[BatchWorker]:
        worker = BatchWorker(self.home, lambda model: self.slots)
        worker.start(dialect or self.dialect)
        try:
            yield worker
        finally:
            await worker.stop()

    def upload(self, *lines: str | bytes) -> str:
        upload = self.store.upload()
        for one in lines:
            upload.write((one if isinstance(one, bytes) else request(one)) + b"\n")
        return upload.commit("input 中文.jsonl", "batch").id

    def create(self, *lines: str | bytes, seconds: float = HOUR) -> str:
        return self.store.create(self.upload(*lines), CHAT, "1h", seconds, {}).id

    async def until(self, id: str, status: str) -> BatchJob:
        await until(lambda: self.store.batch(id).status == status)
        return self.store.batch(id)

    def lines_of(self, file: str) -> list[Any]:
        if not file:
            return []
        with self.store.open_data(self.store.file(file)) as data:
            return [json.loads(line) for line in data]


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until ``condition`` is true."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.005)


def request(content: str, model: str = "m") -> bytes:
    whole = {"custom_id": content, "method": "POST", "url": CHAT, "body": {"model": model, "content": content}}
    return json.dumps(whole, ensure_ascii=False).encode()


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    monkeypatch.setattr(batch_worker, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(batch_worker, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(batches, "BUSY_SECONDS", 0.01)
    return Batch(tmp_path / "nb", slots=4)


@in_loop
async def test_results_are_in_the_order_of_the_input(batch: Batch) -> None:
    gate = asyncio.Event()

    async def open_gate() -> None:
        gate.set()

    async def all_slots_are_used() -> None:
        await until(lambda: batch.dialect.most == batch.slots)

    batch.dialect.script = {"一": [gate.wait], "五": [open_gate], **{text: [all_slots_are_used] for text in "二三四"}}
    broken = [b"{", request("二"), b'{"custom_id":"z"}']
    id = batch.create("一", "二", "三", *broken, "四", "五")
    async with batch.worker():
        job = await batch.until(id, "completed")
    assert (job.total, job.completed, job.failed, job.models) == (8, 5, 3, ("m",))
    assert [*job.times] == ["in_progress", "finalizing", "completed"]
    output = [
        [number, text, 200, {"echo": text}] for number, text in ((1, "一"), (2, "二"), (3, "三"), (7, "四"), (8, "五"))
    ]
    assert batch.lines_of(job.output_file) == output
    errors = batch.lines_of(job.error_file)
    assert [one[:3] for one in errors] == [[4, None, 400], [5, "二", 400], [6, "z", 400]]
    assert all(one[3]["error"]["code"] == "invalid_batch_line" for one in errors)
    assert sorted(batch.dialect.ran) == sorted("一二三四五") and batch.dialect.most == 4, "no more than there are slots"


@in_loop
async def test_failures(batch: Batch) -> None:
    batch.dialect.script = {
        "busy": [Busy("full"), Busy("full"), Busy("full")],
        "crash": [RunnerCrashed("gone")],
        "crashes": [RunnerCrashed("gone"), RunnerCrashed("gone")],
        "missing": [ModelNotFound("no model")],
        "bug": [ValueError("bug")],
    }
    id = batch.create(*batch.dialect.script)
    async with batch.worker():
        job = await batch.until(id, "completed")
    assert [one[1] for one in batch.lines_of(job.output_file)] == ["busy", "crash"]
    errors = {one[1]: (one[2], one[3]["error"]["code"]) for one in batch.lines_of(job.error_file)}
    assert errors == {
        "crashes": (500, "runner_crashed"), "missing": (404, "model_not_found"), "bug": (500, "internal_error"),
    }  # fmt: skip
    assert (job.completed, job.failed) == (2, 3)


@in_loop
async def test_one_model_at_a_time_and_the_oldest_batch_first(batch: Batch) -> None:
    first = batch.create(*(request(f"{model}{n}", model) for n in range(3) for model in "ab"))
    second = batch.create("x")
    async with batch.worker() as worker:
        await batch.until(second, "completed")
        assert batch.store.batch(first).status == "completed"
        await until(lambda: not worker.active)
    ran = "".join(content[0] for content in batch.dialect.ran)
    assert ran == "aaabbbx"
    assert batch.store.batch(first).models == ("a", "b")


@in_loop
async def test_a_new_batch_is_checked_while_another_one_runs(batch: Batch) -> None:
    batch.dialect.script = {"slow": [asyncio.Event().wait]}
    first = batch.create("slow")
    async with batch.worker() as worker:
        await batch.until(first, "in_progress")
        broken = (await worker.create(batch.upload(b"{"), CHAT, "24h", HOUR, {"a": "b"})).id
        assert (await batch.until(broken, "failed")).metadata == {"a": "b"}
        waiting = (await worker.create(batch.upload("x", "y"), CHAT, "24h", HOUR, {})).id
        assert (await batch.until(waiting, "in_progress")).total == 2
        await worker.cancel(waiting)
        job = await batch.until(waiting, "cancelled")
        assert batch.lines_of(job.error_file) == [[1, "x", "cancelled"], [2, "y", "cancelled"]]
        late = batch.create("z", seconds=0.01)
        assert (await batch.until(late, "expired")).completed == 0
        await until(lambda: worker.active == 1)
        with pytest.raises(NotFound):
            await worker.create("file-" + "0" * 24, CHAT, "24h", HOUR, {})


@in_loop
async def test_cancelled_in_the_middle(batch: Batch) -> None:
    stopped = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(True)

    batch.slots, batch.dialect.script = 2, {"c": [forever], "d": [forever]}
    id = batch.create("a", "b", "c", "d", "e")
    async with batch.worker() as worker:
        await until(lambda: len(batch.dialect.ran) == 4 and batch.store.batch(id).completed == 2)
        with pytest.raises(BadRequest):
            batch.store.delete_file(batch.store.batch(id).input_file)
        assert (await worker.cancel(id)).status == "cancelling"
        assert (await worker.cancel(id)).status == "cancelling", "twice is allowed"
        job = await batch.until(id, "cancelled")
        with pytest.raises(BadRequest):
            await worker.cancel(id)
    assert stopped == [True, True]
    assert [*job.times] == ["in_progress", "cancelling", "cancelled"]
    assert [one[1] for one in batch.lines_of(job.output_file)] == ["a", "b"]
    assert batch.lines_of(job.error_file) == [[3, "c", "cancelled"], [4, "d", "cancelled"], [5, "e", "cancelled"]]
    assert (job.total, job.completed, job.failed) == (5, 2, 0)
    batch.store.delete_file(job.input_file)
    with pytest.raises(NotFound):
        batch.store.file(job.input_file)


@in_loop
async def test_expired(batch: Batch) -> None:
    batch.dialect.script = {"b": [asyncio.Event().wait]}
    id = batch.create("a", "b", "c", seconds=0.3)
    batch.slots = 1
    async with batch.worker():
        job = await batch.until(id, "expired")
    assert [*job.times] == ["in_progress", "finalizing", "expired"] and job.times["finalizing"] >= job.expires_at
    assert [one[1] for one in batch.lines_of(job.output_file)] == ["a"]
    assert batch.lines_of(job.error_file) == [[2, "b", "expired"], [3, "c", "expired"]]


@in_loop
async def test_a_stopped_server_loses_only_the_requests_in_flight(batch: Batch) -> None:
    batch.slots = 1
    id = batch.create(*"abcdef")
    batch.dialect.script = {"d": [asyncio.Event().wait]}
    async with batch.worker():
        await until(lambda: batch.dialect.ran[-1:] == ["d"])
    job = batch.store.batch(id)
    assert (job.status, job.completed) == ("in_progress", 3)
    journal = batch.store.root / f"{id}.results"
    with journal.open("ab") as file:
        file.write(b'{"status":200,"number":4,"custom_id":"d"')  # the machine lost power within a write
    later = ScriptedDialect()
    async with batch.worker(later):
        job = await batch.until(id, "completed")
    assert later.ran == [*"def"]
    assert [one[1] for one in batch.lines_of(job.output_file)] == [*"abcdef"]
    assert not journal.exists()


@pytest.mark.parametrize("step", range(8))
@in_loop
async def test_interrupted_while_the_files_are_written(
    batch: Batch, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change of the disk after the last result fails once; the next try gives the same files."""
    id = batch.create("a", b"{", "b")
    commit, calls = batch_store.TempFile.commit, 0

    def failing(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        job = batch.store.batch(id)
        if job.completed + job.failed == 3:
            calls += 1
            if calls == step + 1:
                raise StoreError("no space left on the disk")
        commit(*args, **kwargs)

    monkeypatch.setattr(batch_store.TempFile, "commit", failing)
    async with batch.worker():
        job = await batch.until(id, "completed")
    assert [one[1] for one in batch.lines_of(job.output_file)] == ["a", "b"]
    assert [one[0] for one in batch.lines_of(job.error_file)] == [2]
    assert sorted(batch.dialect.ran) == ["a", "b"]
    assert len(batch.store.files()) == 3, "the input and two results"
    assert not [path for path in batch.store.root.iterdir() if path.name.startswith(".")]


@in_loop
async def test_a_full_disk_delays_a_batch(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    id = batch.create("a", "b", "c")
    full, write = True, InPlaceFile.write_at
    tries = 0

    def write_at(file: InPlaceFile, data: bytes, offset: int) -> None:
        nonlocal tries
        if full:
            tries += 1
            write(file, data[: len(data) // 2], offset)
            raise StoreError("no space left on the disk")
        write(file, data, offset)

    monkeypatch.setattr(InPlaceFile, "write_at", write_at)
    async with batch.worker():
        await until(lambda: tries >= 3)
        job = batch.store.batch(id)
        assert (job.status, job.completed, (batch.store.root / f"{id}.results").stat().st_size) == ("in_progress", 0, 0)
        full = False
        job = await batch.until(id, "completed")
    assert sorted(batch.dialect.ran) == [*"abc"], "nothing runs twice"
    assert [one[1] for one in batch.lines_of(job.output_file)] == [*"abc"]


@in_loop
async def test_two_servers_share_a_state_folder(batch: Batch) -> None:
    gate = asyncio.Event()
    first, second = ScriptedDialect(), ScriptedDialect()
    first.script = second.script = {"a": [gate.wait]}
    id = batch.create(*"abcdef")
    async with batch.worker(first) as one, batch.worker(second) as two:
        await until(lambda: first.ran or second.ran)
        await asyncio.sleep(0.2)
        assert sorted((one.active, two.active)) == [0, 1], "one of them works on it"
        gate.set()
        job = await batch.until(id, "completed")
        other = two if one.active else one
        cancelled = (await other.create(batch.upload("g"), CHAT, "24h", HOUR, {})).id
        await batch.until(cancelled, "completed")
    assert sorted(first.ran + second.ran) == [*"abcdefg"], "every line once"
    assert [text[1] for text in batch.lines_of(job.output_file)] == [*"abcdef"]


@in_loop
async def test_another_server_cancels(batch: Batch) -> None:
    batch.dialect.script = {"a": [asyncio.Event().wait]}
    id = batch.create("a")
    async with batch.worker():
        await batch.until(id, "in_progress")
        await until(lambda: batch.dialect.ran)
        other = BatchWorker(batch.home, lambda model: 1)
        assert (await other.cancel(id)).status == "cancelling"
        await batch.until(id, "cancelled")


@in_loop
async def test_an_input_file_that_is_missing_or_has_too_many_lines(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_LINES", 2)
    many, gone = batch.create("a", "b", "c"), batch.create("a")
    (batch.store.root / f"{batch.store.batch(gone).input_file}.json").unlink()
    async with batch.worker():
        for id in (many, gone):
            job = await batch.until(id, "failed")
            assert len(job.problems) == 1 and job.problems[0].line == 0


def test_only_this_user_can_read(batch: Batch) -> None:
    batch.store.request_cancel(batch.create("a"))
    assert batch.store.lock(batch.store.batches()[0].id) is not None
    assert stat.S_IMODE(batch.store.root.stat().st_mode) == 0o700
    paths = [*batch.store.root.iterdir()]
    assert len(paths) == 5 and {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_old_files_and_batches_are_removed(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    store = batch.store
    ended, running = batch.create("a"), batch.create("b")
    job = store.batch(ended)
    store.end(job.enter("cancelled", time.time()))
    loose = store.upload().commit("x", "vision", lifetime=HOUR)
    store.upload().write(b"abandoned")
    damaged = store.root / f"batch_{'0' * 24}.json"
    damaged.write_bytes(b"{")
    assert store.stale() == [] and {one.id for one in store.batches()} == {ended, running}
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * HOUR)
    with pytest.raises(NotFound):
        store.file(loose.id)
    assert {path.stem for path in store.stale()} == {loose.id, *(p.stem for p in store.root.glob(".part-*"))}
    store.remove_stale()
    assert not [*store.root.glob(f"{loose.id}*"), *store.root.glob(".part-*")]
    monkeypatch.setattr(time, "time", lambda: real() + batch_store.RETENTION + 2 * HOUR)
    store.remove_stale()
    assert {one.id for one in store.batches()} == {running}
    names = {path.name for path in store.root.iterdir()}
    kept = store.batch(running).input_file
    assert names == {f"{running}.json", f"{kept}.json", f"{kept}.data", damaged.name}, (
        "what a batch needs, and the damaged record"
    )


@pytest.mark.parametrize(
    "id", ["", "..", "file-x", "../../etc/passwd", f"file-{'0' * 23}/", f"file-{'0' * 24}\n", "batch_1"]
)
def test_ids_are_no_paths(batch: Batch, id: str) -> None:
    for look in (batch.store.file, batch.store.batch, batch.store.delete_file, batch.store.request_cancel):
        with pytest.raises(NotFound):
            look(id)


def test_a_read_only_folder_is_reported(batch: Batch) -> None:
    if os.geteuid() == 0:
        batch.home.parent.mkdir(exist_ok=True)
        batch.home.write_bytes(b"")  # a file where the folder should be
    else:
        batch.home.mkdir(mode=0o500)
    with pytest.raises(StoreError):
        batch.create("a")
