"""The work on batches in one server: one batch at a time, the oldest first, as many requests as its model has slots.

:mod:`ollama_nb.service.batches` has the states and the decisions, :mod:`ollama_nb.service.batch_store` the files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ollama_nb.errors import InvalidBatchFile, InvalidBatchLine, NotFound, OllamaError
from ollama_nb.service import batches
from ollama_nb.service.batch_store import OUTPUT_PURPOSE, BatchStore, FileUpload, ResultJournal
from ollama_nb.service.batches import BatchDialect, BatchJob, BatchLine, BatchProblem, LineResult
from ollama_nb.service.requests import finish_in_thread

LOOK_SECONDS = 10.0  # between two searches for batches whose server was killed
CHECK_SECONDS = 1.0  # between two checks for a cancellation or the end of the completion window
TIDY_SECONDS = 3600.0  # between two clean-ups
MAX_IN_FLIGHT = 64  # requests of a batch at the same time
_log = logging.getLogger("ollama_nb.service")


class BatchWorker:
    """Creates, cancels and runs batches. ``slots``: how many requests a model handles at a time; 0 if not loaded.

    It belongs to one event loop. Until ``start`` is called it only stores.
    """

    def __init__(self, home: Path, slots: Callable[[str], int]) -> None:
        self.store = BatchStore(home)
        self.active = 0
        """The number of unfinished batches that this server works on, or will work on."""
        self._slots = slots
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._running_id = self._interrupted = ""
        self._tidied = 0.0
        self._dialect: BatchDialect

    def start(self, dialect: BatchDialect) -> None:
        """Begin to work: on the batches that earlier servers left, then on new ones."""
        self._dialect = dialect
        self._task = asyncio.ensure_future(self._work())

    async def stop(self) -> None:
        """Stop working; another server, or the next one, continues. Requests in flight are lost."""
        tasks = {task for task in (self._task, self._running) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._task = self._running = None

    async def create(
        self, input_file: str, endpoint: str, window: str, seconds: float, metadata: dict[str, str]
    ) -> BatchJob:
        """Create a batch of the requests in a file, to be finished within ``seconds``. Raises NotFound, StoreError."""
        file = await asyncio.to_thread(self.store.file, input_file)
        job = await finish_in_thread(self.store.create, file.id, endpoint, window, seconds, metadata)
        self._changed.set()
        return job

    async def cancel(self, id: str) -> BatchJob:
        """Cancel a batch of any server. Raises NotFound, and BadRequest if it has ended."""
        job = await finish_in_thread(self.store.request_cancel, id)
        self._changed.set()
        return job

    # The search for work

    async def _work(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._look()
            except OllamaError as error:
                _log.warning("batches: %s", error.message)
            except Exception:
                _log.exception("batches")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        """Check new batches, and begin to run the oldest one if none is running."""
        if time.monotonic() - self._tidied > TIDY_SECONDS or not self._tidied:
            self._tidied = time.monotonic()
            await finish_in_thread(self.store.remove_stale)
        jobs = await finish_in_thread(self.store.unfinished)
        active = 0
        for job in sorted(jobs, key=lambda job: job.id == self._interrupted):
            if self._running is None or job.id != self._running_id:
                journal = await finish_in_thread(self.store.lock, job.id)
                if journal is None:
                    continue  # another server works on it
                try:
                    await self._take(job.id, journal)
                except OllamaError as error:
                    _log.warning("batch %s waits: %s", job.id, error.message)
            active += 1
        self.active = active

    async def _take(self, id: str, journal: ResultJournal) -> None:
        """Check a new batch. Run a batch if no other one is running; one that only needs its files is ended now."""
        try:
            job = await finish_in_thread(self._check, id)
            if batches.next_status(job, job.completed + job.failed, time.time()) != batches.IN_PROGRESS:
                await self._run(journal)
            elif self._running is None:
                self._running_id = id
                self._running = asyncio.ensure_future(self._run(journal))
                self._running.add_done_callback(self._ended)
                return
        except BaseException:
            journal.close()
            raise
        journal.close()

    def _check(self, id: str) -> BatchJob:
        """Check the lines of a new batch, whose journal is locked."""
        job = self.store.batch(id)
        if job.status != batches.VALIDATING:
            return job
        try:
            job = batches.checked(job, self.store.lines(job), time.time())
        except (NotFound, InvalidBatchFile) as error:
            job = batches.unusable(job, BatchProblem(error.message, code=error.code), time.time())
        (self.store.save if job.status in batches.UNFINISHED else self.store.end)(job)
        return self.store.batch(id)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._changed.set()  # look for the next one
        else:
            self._interrupted = self._running_id  # other batches come first now
            _log.error("batch %s is interrupted", self._running_id, exc_info=error)

    # One batch

    async def _run(self, journal: ResultJournal) -> None:
        """Run a batch, whose journal is locked, from its present state to its end."""
        id = journal.batch_id
        try:
            job = await finish_in_thread(self.store.batch, id)
            if job.status not in batches.UNFINISHED:
                return
            try:
                lines = await finish_in_thread(self.store.lines, job)
            except (NotFound, InvalidBatchFile) as error:
                problem = BatchProblem(error.message, code=error.code)
                await finish_in_thread(self.store.end, batches.unusable(job, problem, time.time(), total=job.total))
                return
            await finish_in_thread(journal.recover)
            if job.status == batches.IN_PROGRESS:
                await self._run_lines(job, lines, journal)
            await finish_in_thread(self._finish, id, lines, journal)
        finally:
            journal.close()

    async def _run_lines(self, job: BatchJob, lines: Sequence[BatchLine], journal: ResultJournal) -> None:
        """Run the lines without a result, until all have one or the batch leaves its state."""
        broken = [self._refuse(job, line) for line in lines if line.problem and line.number not in journal]
        results: list[LineResult] = broken
        waiting = deque(line for line in batches.in_running_order(lines) if line.number not in journal)
        running: dict[asyncio.Task[LineResult], BatchLine] = {}
        try:
            while True:
                results = await self._record(journal, results)
                job = await finish_in_thread(self.store.batch, job.id)
                if batches.next_status(job, len(journal), time.time()) != batches.IN_PROGRESS:
                    return
                while waiting and not results and self._has_room(waiting[0], running):
                    line = waiting.popleft()
                    running[asyncio.ensure_future(self._run_line(job, line))] = line
                if not running:
                    await asyncio.sleep(CHECK_SECONDS)  # the results could not be written
                    continue
                done, _ = await asyncio.wait(running, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    results.append(task.result())
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _record(self, journal: ResultJournal, results: list[LineResult]) -> list[LineResult]:
        """Write results to the journal; return the ones that could not be written, because the disk is full, say."""
        if results:
            try:
                await finish_in_thread(journal.append, results)
            except OllamaError as error:
                _log.warning("batch %s waits: %s", journal.batch_id, error.message)
                return results
        return []

    def _has_room(self, line: BatchLine, running: dict[asyncio.Task[LineResult], BatchLine]) -> bool:
        """Whether a line can run beside the running ones: lines of one model at a time, as many as it has slots."""
        if any(other.model != line.model for other in running.values()):
            return False
        return len(running) < max(1, min(self._slots(line.model), MAX_IN_FLIGHT))

    async def _run_line(self, job: BatchJob, line: BatchLine) -> LineResult:
        body = await finish_in_thread(self.store.body, job, line)
        request_id = _request_id(job, line)
        attempts = 0
        while True:
            attempts += 1
            try:
                reply = await self._dialect.run(job.endpoint, body, request_id)
            except OllamaError as error:
                delay = batches.retry_delay(error, attempts)
                if delay is None:
                    return self._failure(job, line, error)
                await asyncio.sleep(delay)
            except Exception:
                _log.exception("request %s failed", request_id)
                message = f"internal error, see the server's log for request {request_id}"
                return self._failure(job, line, OllamaError(message))
            else:
                return LineResult(200, line.number, line.custom_id, request_id, _one_line(reply))

    def _refuse(self, job: BatchJob, line: BatchLine) -> LineResult:
        """The result of a broken line."""
        assert line.problem is not None
        return self._failure(job, line, InvalidBatchLine(line.problem.message, field=line.problem.field))

    def _failure(self, job: BatchJob, line: BatchLine, error: OllamaError) -> LineResult:
        body = _one_line(self._dialect.encode_error(error))
        return LineResult(error.status, line.number, line.custom_id, _request_id(job, line), body)

    # Its end

    def _finish(self, id: str, lines: Sequence[BatchLine], journal: ResultJournal) -> None:
        """Write the output file and the error file, then the record. May be repeated after a crash at any point."""
        job = self.store.batch(id)
        if job.status == batches.IN_PROGRESS:
            self.store.save(job := job.enter(batches.FINALIZING, time.time()))
        status = batches.final_status(job, len(journal), len(lines))
        output, errors = _ResultFile(self.store, job, "output"), _ResultFile(self.store, job, "errors")
        completed = failed = 0
        try:
            for line in lines:
                if line.number not in journal:
                    errors.write(self._dialect.encode_unfinished(job, line, status))
                    continue
                result = journal.read(line.number)
                succeeded = result.status == 200
                (output if succeeded else errors).write(self._dialect.encode_result(job, result))
                completed, failed = completed + succeeded, failed + (not succeeded)
            changes = {"output_file": output.commit(), "error_file": errors.commit()}
        finally:
            output.abort()
            errors.abort()
        counts = {"total": len(lines), "completed": completed, "failed": failed}
        self.store.end(job.enter(status, time.time(), **counts, **changes))


class _ResultFile:
    """The output file or the error file of a batch, which is created with its first line."""

    def __init__(self, store: BatchStore, job: BatchJob, kind: str) -> None:
        self._store, self._kind, self._job = store, kind, job
        self._upload: FileUpload | None = None

    def write(self, line: bytes) -> None:
        if self._upload is None:
            self._upload = self._store.upload()
        self._upload.write(line)

    def commit(self) -> str:
        """Store the file and return its id; an empty text if it has no line."""
        if self._upload is None:
            return ""
        id = f"file-{self._job.id.removeprefix('batch_')}-{self._kind}"
        return self._upload.commit(f"{self._job.id}_{self._kind}.jsonl", OUTPUT_PURPOSE, id=id).id

    def abort(self) -> None:
        if self._upload is not None:
            self._upload.abort()


def _request_id(job: BatchJob, line: BatchLine) -> str:
    return f"{job.id}-{line.number}"


def _one_line(body: bytes) -> msgspec.Raw:
    """JSON without line breaks; the texts in it contain none."""
    return msgspec.Raw(body.strip().replace(b"\n", b" "))
