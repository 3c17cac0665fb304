"""Run a job over rows: find the distinct questions, skip the answered ones, ask the others in parallel.

A thread pool keeps the engine's batch full. An answer is recorded (on disk, unless switched off) before it is counted,
and however a run ends, none of its requests continues on the server.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from IPython.core.getipython import get_ipython

from ollama_nb.api.names import ModelName
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.client.ollama import Ollama, TextsTruncated
from ollama_nb.client.question import STRICT
from ollama_nb.client.warn import warn_caller
from ollama_nb.errors import BadRequest, Busy, ConnectError, ContextOverflow, InvalidName, OllamaError
from ollama_nb.notebook.display import Interrupted, Page, Screen, screen_for
from ollama_nb.notebook.frame.bar import RowProgress
from ollama_nb.notebook.frame.ledger import Entry, Ledger, MemoryRecord, Record, hash_of
from ollama_nb.settings import Settings

DEFAULT_SLOTS = 4  # assumed when the server does not report how many requests it computes at once
MAX_PARALLEL = 64  # requests at once
NAMED = 10  # rows that a warning names
TICK = 0.1  # seconds after which the caller gets control even without an answer
PAUSES = (0.3, 1.0, 3.0, 9.0)  # seconds to wait before a busy server is asked again

Body = Any
"""A prompt, messages, or a text to embed."""
RowInput = Body | None | BadRequest
"""The body of one row; None for a row with a missing value, BadRequest for one that cannot be sent."""
Outcome = Entry | OllamaError | None
OnInterrupt = Callable[[list[Outcome]], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One question. ``rows`` are the positions of all rows that its answer is for."""

    key: str
    body: Body
    rows: tuple[int, ...]


Send = Callable[[Client, Sequence[Task]], list[Entry]]
TaskOutcome = tuple[Task, Entry | OllamaError]


@dataclass(frozen=True, slots=True)
class Job:
    """What the rows of a run have in common.

    verb: Past participle for the progress line, such as ``generated``.
    identity: Everything besides the body that the answer depends on.
    deterministic: The same question has the same answer, so duplicates are asked once and later runs reuse answers.
    load: Loads the model.
    send: Answers up to ``chunk`` tasks with one request.
    needs_all: The result would be wrong without one of the rows, so errors cannot be kept.
    """

    verb: str
    model: str
    identity: Any
    deterministic: bool
    load: Callable[[Client], object]
    send: Send
    chunk: int = 1
    needs_all: bool = False


@dataclass(frozen=True, slots=True)
class FrameOptions:
    """The keywords of every accessor method that control the run, not the request.

    errors: ``raise`` the first error of a row, or ``keep`` errors in the result.
    parallel: Requests at once; 0 for as many as keep the engine's batch full.
    ledger: Record answers on disk and resume from them.
    progress: Show a progress bar; None for notebooks and IPython only.
    """

    errors: str = "raise"
    parallel: int = 0
    ledger: bool = True
    progress: bool | None = None
    client: Client | Ollama | None = None

    def __post_init__(self) -> None:
        if self.errors not in ("raise", "keep"):
            raise BadRequest(f'errors must be "raise" or "keep", not "{self.errors}"')
        if type(self.parallel) is not int or not 0 <= self.parallel <= MAX_PARALLEL:
            raise BadRequest(f"parallel must be a number between 1 and {MAX_PARALLEL}, not {self.parallel!r}")

    @property
    def server(self) -> Client:
        """The given client, or one of the server that `connect` finds."""
        return self.client.client if isinstance(self.client, Ollama) else self.client or connect()


def run(
    job: Job, inputs: Sequence[RowInput], options: FrameOptions, labels: Sequence[Any], on_interrupt: OnInterrupt
) -> list[Outcome]:
    """Return the outcome of each row, in the order of ``inputs``. ``labels`` name the rows in error messages.

    Raises OllamaError for a row's error unless errors are kept. When the user interrupts the run, ``on_interrupt``
    receives the outcomes so far and Interrupted is raised.
    """
    outcomes: list[Outcome] = [given if isinstance(given, BadRequest) else None for given in inputs]
    for row, outcome in enumerate(outcomes):
        _raise_error(outcome, row, labels, options, job)
    client = options.server
    tasks = plan(inputs, deterministic=job.deterministic)
    if not tasks:
        return outcomes
    identity = [digest(client, job.model), job.identity]
    name = hash_of(identity) if job.deterministic else hash_of(identity, [task.key for task in tasks])
    with ExitStack() as ending:
        record = _open(options, name, deterministic=job.deterministic)
        ending.callback(record.close)
        todo = [task for task in tasks if task.key not in record.done]
        total = sum(len(task.rows) for task in tasks)
        progress = RowProgress(job.verb, total, known=total - sum(len(task.rows) for task in todo))
        screen = _screen(options)
        ending.callback(screen.finish, progress)
        try:
            failed = _ask(job, todo, options, client, record, progress, screen, labels)
        except KeyboardInterrupt:
            progress.interrupt()
            on_interrupt(_merged(outcomes, tasks, record, {}))
            raise Interrupted(_interrupt_message(progress, options)) from None
        except BaseException:
            progress.fail()
            raise
        progress.finish()
        if not failed:
            record.finish()
        _warn_truncated(_merged(outcomes, tasks, record, failed), labels)
        return outcomes


def plan(inputs: Sequence[RowInput], *, deterministic: bool) -> list[Task]:
    """One task per question. In a deterministic job, rows with the same question share a task."""
    rows: dict[str, list[int]] = {}
    bodies: dict[str, Body] = {}
    seen: Counter[str] = Counter()
    for row, body in enumerate(inputs):
        if body is None or isinstance(body, BadRequest):
            continue
        key = hash_of(body)
        if not deterministic:
            seen[key] += 1
            key = f"{key}-{seen[key]}"
        rows.setdefault(key, []).append(row)
        bodies[key] = body
    return [Task(key, bodies[key], tuple(found)) for key, found in rows.items()]


def digest(client: Client, model: str) -> str:
    """The digest of the model, so that answers of an older model of the same name are not reused.

    Raises ModelNotFound.
    """
    wanted = _key(model)
    for listed in client.list()["models"]:
        if _key(listed["name"]) == wanted:
            return str(listed.get("digest", ""))
    client.show(model)  # raises the server's own error
    return model


def default_parallel(client: Client, model: str) -> int:
    """The number of requests that keeps the batch of a loaded model full: all its slots, and some that wait."""
    wanted = _key(model)
    slots = next((found.get("slots") for found in client.ps()["models"] if _key(found["name"]) == wanted), None)
    slots = slots or DEFAULT_SLOTS
    return min(MAX_PARALLEL, slots + max(2, slots // 2))


def _ask(
    job: Job,
    todo: Sequence[Task],
    options: FrameOptions,
    client: Client,
    record: Record,
    progress: RowProgress,
    screen: Screen,
    labels: Sequence[Any],
) -> dict[str, OllamaError]:
    """Ask the tasks that have no answer yet. Returns the errors by task, if errors are kept."""
    failed: dict[str, OllamaError] = {}
    if not todo:
        return failed
    screen.show(progress)
    job.load(client.twin(STRICT))
    width = options.parallel or default_parallel(client, job.model)
    with WorkerPool(client, todo, job.send, record, width=width, chunk=job.chunk) as pool:
        for outcome in pool.outcomes():
            if outcome is not None:
                task, found = outcome
                if isinstance(found, OllamaError):
                    _raise_error(found, task.rows[0], labels, options, job)
                    failed[task.key] = found
                    progress.add(len(task.rows), failed=True)
                else:
                    progress.add(len(task.rows), cut_off=found.get("reason") == "length")
            screen.show(progress)
    return failed


def _merged(
    outcomes: list[Outcome], tasks: Sequence[Task], record: Record, failed: dict[str, OllamaError]
) -> list[Outcome]:
    for task in tasks:
        for row in task.rows:
            outcomes[row] = record.done.get(task.key) or failed.get(task.key)
    return outcomes


def _warn_truncated(outcomes: Sequence[Outcome], labels: Sequence[Any]) -> None:
    """Warn once about all rows of which only the beginning was used."""
    rows = [repr(labels[at]) for at, found in enumerate(outcomes) if isinstance(found, dict) and found.get("truncated")]
    if rows:
        named = ", ".join(rows[:NAMED]) + (f" and {len(rows) - NAMED} more" * (len(rows) > NAMED))
        text = f"{len(rows)} texts are longer than the model reads and were cut: row {named}; split longer texts"
        warn_caller(text, TextsTruncated)


def _raise_error(outcome: Outcome, row: int, labels: Sequence[Any], options: FrameOptions, job: Job) -> None:
    """Raise the error of a row, with the row's label in its message, unless errors are kept."""
    if isinstance(outcome, OllamaError) and options.errors == "raise":
        ways = ['`on_overflow="truncate"` cuts such texts'] * isinstance(outcome, ContextOverflow)
        ways += ['`errors="keep"` continues with the other rows'] * (not job.needs_all)
        advice = f" ({', '.join(ways)})" if ways else ""
        raise outcome.with_message(f"row {labels[row]!r}: {outcome.message}{advice}")


def _interrupt_message(progress: RowProgress, options: FrameOptions) -> str:
    if not progress.done:
        return "Interrupted before a row was done."
    text = f"Interrupted: {progress.done:,} of {progress.total:,} rows are done."
    shell = get_ipython()
    if shell is not None:
        text += " They are in `_ollama`."
    return text + (" Run it again to resume." if options.ledger else "")


def _open(options: FrameOptions, name: str, *, deterministic: bool) -> Record:
    if not options.ledger:
        return MemoryRecord()
    return Ledger(Settings.from_env().home / "ledgers", name, deterministic=deterministic)


class _NoScreen:
    def show(self, page: Page, *, now: bool = False) -> None:
        pass

    def finish(self, page: Page) -> None:
        pass


def _screen(options: FrameOptions) -> Screen:
    shell = get_ipython()
    if options.progress is False or (shell is None and not options.progress):
        return _NoScreen()
    return screen_for(shell)  # type: ignore[arg-type]  # without a shell it is a terminal


def _key(model: str) -> str:
    try:
        return ModelName.parse(model).key
    except InvalidName:
        return model.lower()


# the thread pool


class WorkerPool:
    """``width`` threads that call ``send`` with ``chunk`` tasks at a time. Use it as a context manager."""

    def __init__(
        self, client: Client, tasks: Sequence[Task], send: Send, record: Record, *, width: int, chunk: int = 1
    ) -> None:
        self._client, self._send, self._record = client.twin(STRICT), send, record
        chunks = [tuple(tasks[at : at + chunk]) for at in range(0, len(tasks), chunk)]
        self._todo, self._left = iter(chunks), len(tasks)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._outcomes: SimpleQueue[TaskOutcome | BaseException] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"ollama-nb-row-{number}", daemon=True)
            for number in range(min(width, len(chunks)))
        ]

    def __enter__(self) -> WorkerPool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._left:
            self._client.hang_up()
        for thread in self._threads:
            thread.join()

    def outcomes(self) -> Iterator[TaskOutcome | None]:
        """Yield each task with its answer or error, in the order of completion; None after every idle ``TICK``.

        Raises OllamaError for an error that concerns all rows: no server, no such model, no permission.
        """
        while self._left:
            try:
                outcome = self._outcomes.get(timeout=TICK)
            except Empty:
                yield None
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            self._left -= 1
            yield outcome

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                chunk = next(self._todo, None)
            if chunk is None:
                return
            try:
                self._do(chunk)
            except BaseException as error:  # the caller's thread raises it
                self._outcomes.put(error)
                return

    def _do(self, chunk: Sequence[Task]) -> None:
        try:
            entries = self._send_with_retries(chunk)
        except OllamaError as error:
            if _concerns_all(error):
                raise
            if len(chunk) > 1:  # one of the tasks caused the error: halve the chunk until it is found
                middle = len(chunk) // 2
                self._do(chunk[:middle])
                self._do(chunk[middle:])
            elif not self._stop.is_set():
                self._outcomes.put((chunk[0], error))
            return
        with self._lock:
            self._record.add(entries)
        for task, entry in zip(chunk, entries, strict=True):
            self._outcomes.put((task, entry))

    def _send_with_retries(self, chunk: Sequence[Task]) -> list[Entry]:
        """Send, and after a pause once more if the server was busy or restarted, or its runner crashed."""
        for tried in itertools.count():
            try:
                return self._send(self._client, chunk)
            except OllamaError as error:
                if tried >= _retries(error) or self._stop.wait(PAUSES[tried]):
                    raise
        raise AssertionError


def _retries(error: OllamaError) -> int:
    if isinstance(error, Busy) or error.status == Busy.status:
        return len(PAUSES)
    if isinstance(error, ConnectError):
        return 2
    return 1 if error.status >= 500 else 0


def _concerns_all(error: OllamaError) -> bool:
    return isinstance(error, ConnectError) or error.status in (401, 403, 404)
