"""Batches: many requests in one file that run at low priority and survive a restart. Values and decisions, no I/O.

Theory of operation
-------------------

A client uploads a file with one request per line and creates a batch from it. The server checks every line, then runs
the requests beside those of interactive clients, which come first. Each result is appended to the batch's journal. When
every line has a result, or the client cancels the batch, or the completion window has passed, the results are written
in the order of the input into an output file (successful requests) and an error file (all others).

Everything is on disk: the record of the batch, the journal, and a mark for a requested cancellation. Any server of the
user can create or cancel a batch; the server that has locked the journal works on it. After a crash only the requests
in flight are lost: the next server that takes the lock runs the lines without a result. A broken line fails alone; the
batch fails only if no line can run.

===========  ===============================================  ===========
state        event                                            next state
===========  ===============================================  ===========
(absent)     create                                           validating
validating   checked: at least one line can run               in_progress
validating   checked: no line can run                         failed
validating   cancel                                           cancelling
in_progress  every line has a result                          finalizing
in_progress  the completion window has passed                 finalizing
in_progress  cancel                                           cancelling
finalizing   files written, every line has a result           completed
finalizing   files written, a line has no result              expired
cancelling   requests stopped, files written                  cancelled
===========  ===============================================  ===========

The record of a cancelled batch does not change until the files are written: the mark makes it ``cancelling``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from ollama_nb.errors import Busy, InvalidBatchFile, InvalidBatchLine, OllamaError, RunnerCrashed

VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING = "validating", "in_progress", "finalizing", "cancelling"
COMPLETED, FAILED, EXPIRED, CANCELLED = "completed", "failed", "expired", "cancelled"
UNFINISHED = frozenset({VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING})

MAX_LINES = 50_000  # requests in one batch, as at OpenAI
MAX_PROBLEMS = 100  # broken lines that the record of a failed batch lists
MAX_WINDOW = 30 * 86_400.0  # seconds; longest completion window
BUSY_SECONDS = 5.0  # before a request is repeated that the full queue refused
MAX_CRASHES = 2  # of the runner during one request; then the request fails


@dataclass(frozen=True, slots=True)
class BatchProblem:
    """Why a line, or the whole input file (``line`` 0), cannot run. ``field`` is the path of the wrong field."""

    message: str
    line: int = 0
    field: str = ""
    code: str = InvalidBatchLine.code


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """The record of a batch. Times are Unix seconds; ``times`` has the time at which each state was entered.

    ``window`` is the completion window as the client wrote it. ``output_file`` and ``error_file`` are the ids of the
    files with the results, empty before they are written and if no line belongs into them.
    """

    id: str
    endpoint: str
    input_file: str
    window: str
    created_at: float
    expires_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: str = VALIDATING
    times: Mapping[str, float] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file: str = ""
    error_file: str = ""
    problems: tuple[BatchProblem, ...] = ()

    @property
    def ended_at(self) -> float | None:
        """When the batch reached its last state; None while it is unfinished."""
        return None if self.status in UNFINISHED else self.times.get(self.status, self.created_at)

    def enter(self, status: str, now: float, **changes: Any) -> BatchJob:
        """The record in its next state."""
        return replace(self, status=status, times={**self.times, status: now}, **changes)


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line of an input file: its number (from 1), place in bytes, and what is wrong with it (None: it can run)."""

    number: int
    offset: int
    size: int
    custom_id: str | None = None
    model: str = ""
    problem: BatchProblem | None = None


class LineResult(msgspec.Struct, frozen=True):
    """The reply to one line: HTTP status and JSON body. ``status`` is written first, so that results can be counted."""

    status: int
    number: int
    custom_id: str | None
    request_id: str
    body: msgspec.Raw


class BatchDialect(Protocol):
    """Runs requests and writes results in the format of one API."""

    async def run(self, endpoint: str, body: bytes, request_id: str) -> bytes:
        """The body of the reply to a request at low priority. Raises OllamaError."""

    def encode_error(self, error: OllamaError) -> bytes:
        """The body of an error reply."""

    def encode_result(self, job: BatchJob, result: LineResult) -> bytes:
        """One line of the output file or the error file."""

    def encode_unfinished(self, job: BatchJob, line: BatchLine, status: str) -> bytes:
        """The line of the error file for a request that did not run; ``status`` is ``cancelled`` or ``expired``."""


# The state machine


def with_cancellation(job: BatchJob, requested_at: float) -> BatchJob:
    """The record of a batch whose cancellation was requested; a batch that is finalizing or has ended is unchanged."""
    return job.enter(CANCELLING, requested_at) if job.status in (VALIDATING, IN_PROGRESS) else job


def checked(job: BatchJob, lines: Sequence[BatchLine], now: float) -> BatchJob:
    """The record after all lines have been checked."""
    problems = [line.problem for line in lines if line.problem]
    if len(problems) < len(lines):
        models = dict.fromkeys(line.model for line in lines if not line.problem)
        return job.enter(IN_PROGRESS, now, total=len(lines), models=tuple(models))
    message = "no line of the input file can run" if lines else "the input file has no requests"
    return unusable(job, BatchProblem(message, code=InvalidBatchFile.code), now, lines=problems, total=len(lines))


def unusable(
    job: BatchJob, problem: BatchProblem, now: float, *, lines: Sequence[BatchProblem] = (), total: int = 0
) -> BatchJob:
    """The record of a batch whose input file cannot be used."""
    return job.enter(FAILED, now, total=total, failed=total, problems=(problem, *lines[:MAX_PROBLEMS]))


def next_status(job: BatchJob, results: int, now: float) -> str:
    """The state of a checked batch of which ``results`` lines have a result."""
    if job.status == IN_PROGRESS and (results >= job.total or now >= job.expires_at):
        return FINALIZING
    return job.status


def final_status(job: BatchJob, results: int, total: int) -> str:
    """The state of a batch once its files are written."""
    if job.status == CANCELLING:
        return CANCELLED
    return COMPLETED if results >= total else EXPIRED


def retry_delay(error: OllamaError, attempts: int) -> float | None:
    """Seconds until a request of a batch is repeated that has failed ``attempts`` times; None: the line fails."""
    if isinstance(error, Busy):
        return BUSY_SECONDS
    return 0.0 if isinstance(error, RunnerCrashed) and attempts < MAX_CRASHES else None


# The input file


class _LineObject(msgspec.Struct):
    """A line as JSON. The types of all fields are checked by hand, so that each wrong one is named."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _BodyFields(msgspec.Struct):
    """The fields of a request's body that a batch needs; the other ones are checked when the request runs."""

    model: Any = None
    stream: Any = None


_decode_line = msgspec.json.Decoder(_LineObject).decode
_decode_body = msgspec.json.Decoder(_BodyFields).decode


def parse_lines(lines: Iterable[bytes], endpoint: str) -> list[BatchLine]:
    """Check the lines of an input file. Blank lines are skipped. Raises InvalidBatchFile for too many lines."""
    found: list[BatchLine] = []
    known: set[str] = set()
    offset = 0
    for number, data in enumerate(lines, 1):
        if data.strip():
            if len(found) == MAX_LINES:
                raise InvalidBatchFile(f"the input file has more than {MAX_LINES} requests: split it")
            found.append(_parse_line(data, number, offset, endpoint, known))
        offset += len(data)
    return found


def body_of(data: bytes) -> bytes:
    """The JSON text of the body in a line that has been checked."""
    return bytes(_decode_line(_without_mark(data)).body)


def _parse_line(data: bytes, number: int, offset: int, endpoint: str, known: set[str]) -> BatchLine:
    custom_id, model, problem = None, "", None
    try:
        line = _decode_line(_without_mark(data))
        custom_id = line.custom_id if isinstance(line.custom_id, str) and line.custom_id else None
        _check_line(line, endpoint, known)
        model = _model_of(line.body)
    except InvalidBatchLine as error:
        problem = BatchProblem(f"line {number}: {error.message}", number, error.field)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = BatchProblem(f"line {number}: not a JSON object: {error}", number)
    if custom_id is not None:
        known.add(custom_id)
    return BatchLine(number, offset, len(data), custom_id, model, problem)


def _check_line(line: _LineObject, endpoint: str, known: set[str]) -> None:
    custom_id = line.custom_id
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidBatchLine("`custom_id` must be a text that only this line has", field="custom_id")
    if custom_id in known:
        raise InvalidBatchLine(f'`custom_id` "{custom_id[:64]}" is used by an earlier line', field="custom_id")
    if line.method != "POST":
        raise InvalidBatchLine('`method` must be "POST"', field="method")
    if line.url != endpoint:
        raise InvalidBatchLine(f'`url` must be the endpoint of the batch, "{endpoint}"', field="url")


def _model_of(body: msgspec.Raw) -> str:
    try:
        fields = _decode_body(body)
    except msgspec.MsgspecError:
        raise InvalidBatchLine("`body` is missing or not a JSON object", field="body") from None
    if fields.stream is True:
        raise InvalidBatchLine("`stream` must not be true: a batch has no streams", field="body.stream")
    return fields.model if isinstance(fields.model, str) else ""


def _without_mark(data: bytes) -> bytes:
    """A line without the byte order mark that some editors write at the start of a file."""
    return data.removeprefix(b"\xef\xbb\xbf")


def in_running_order(lines: Iterable[BatchLine]) -> list[BatchLine]:
    """The lines that can run, one model after another in the order of their first lines, so that each loads once."""
    runnable = [line for line in lines if not line.problem]
    first = {model: place for place, model in enumerate(dict.fromkeys(line.model for line in runnable))}
    return sorted(runnable, key=lambda line: first[line.model])
