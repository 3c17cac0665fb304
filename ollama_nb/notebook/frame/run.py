"""A run over rows: which questions there are, which are answered already, and the rest asked, shown and recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from IPython.core.getipython import get_ipython

from ollama_nb.api.names import ModelName
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.client.ollama import Ollama
from ollama_nb.client.question import STRICT
from ollama_nb.errors import BadRequest, ContextOverflow, InvalidName, OllamaError
from ollama_nb.notebook.display import Interrupted, Page, Screen, screen_for
from ollama_nb.notebook.frame.bar import Bar
from ollama_nb.notebook.frame.crew import Crew, Send, Task
from ollama_nb.notebook.frame.ledger import Entry, Ledger, Memory, Record, name_of
from ollama_nb.settings import Settings

USUAL_SLOTS = 4
"""Where a server does not say how many requests it works on at once."""
MOST_AT_ONCE = 64

Body = Any
"""A prompt, messages, or a text to embed."""
Question = Body | None | BadRequest
"""Of one row; None: nothing to ask about it."""
Outcome = Entry | OllamaError | None
Stop = Callable[[list[Outcome]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What the rows of a run have in common.

    ``about``: everything beside the row's own body that the answer depends on. ``repeatable``: the same question has
    the same answer, so duplicates are asked once and a finished run is remembered. ``load`` brings the model into
    memory; ``send`` answers up to ``chunk`` tasks. ``whole``: without one of its rows the result would be wrong.
    """

    verb: str
    model: str
    about: Any
    repeatable: bool
    load: Callable[[Client], object]
    send: Send
    chunk: int = 1
    whole: bool = False


@dataclass(frozen=True, slots=True)
class How:
    """How a run is done. ``errors``: ``raise`` at a row's error, or ``keep`` it beside the results.

    ``parallel`` 0: as many requests at once as keep the engine's batch full. ``ledger``: record answers on disk and go
    on from there. ``progress`` None: shown in notebooks and IPython.
    """

    errors: str = "raise"
    parallel: int = 0
    ledger: bool = True
    progress: bool | None = None
    client: Client | Ollama | None = None

    def __post_init__(self) -> None:
        if self.errors not in ("raise", "keep"):
            raise BadRequest(f'errors must be "raise" or "keep", not "{self.errors}"')
        if type(self.parallel) is not int or not 0 <= self.parallel <= MOST_AT_ONCE:
            raise BadRequest(f"parallel must be a number between 1 and {MOST_AT_ONCE}, not {self.parallel!r}")

    @property
    def server(self) -> Client:
        """The one that was given, or the one that is found."""
        return self.client.client if isinstance(self.client, Ollama) else self.client or connect()


def run(job: Job, questions: Sequence[Question], how: How, labels: Sequence[Any], stopped: Stop) -> list[Outcome]:
    """The outcome of each row, in their order. Raises OllamaError for a row's error unless it is to be kept.

    When the user stops it, what is done is recorded, ``stopped`` is told the outcomes so far, and Interrupted raised.
    """
    outcomes: list[Outcome] = [question if isinstance(question, BadRequest) else None for question in questions]
    for row, outcome in enumerate(outcomes):
        _check(outcome, row, labels, how, job)
    client = how.server
    tasks = plan(questions, repeatable=job.repeatable)
    if not tasks:
        return outcomes
    about = [digest(client, job.model), job.about]
    name = name_of(about) if job.repeatable else name_of(about, [task.key for task in tasks])
    with ExitStack() as ending:
        record = _open(how, name, repeatable=job.repeatable)
        ending.callback(record.close)
        todo = [task for task in tasks if task.key not in record.done]
        total = sum(len(task.rows) for task in tasks)
        bar = Bar(job.verb, total, known=total - sum(len(task.rows) for task in todo))
        screen = _screen(how)
        ending.callback(screen.finish, bar)
        try:
            failed = _ask(job, todo, how, client, record, bar, screen, labels)
        except KeyboardInterrupt:
            bar.interrupt()
            stopped(_gathered(outcomes, tasks, record, {}))
            raise Interrupted(_told(bar, how)) from None
        except BaseException:
            bar.fail()
            raise
        bar.finish()
        if not failed:
            record.finish()
        return _gathered(outcomes, tasks, record, failed)


def plan(questions: Sequence[Question], *, repeatable: bool) -> list[Task]:
    """One task for each question; rows with the same question share it where one answer is as good as many."""
    rows: dict[str, list[int]] = {}
    bodies: dict[str, Body] = {}
    seen: Counter[str] = Counter()
    for row, question in enumerate(questions):
        if question is None or isinstance(question, BadRequest):
            continue
        key = name_of(question)
        if not repeatable:
            seen[key] += 1
            key = f"{key}-{seen[key]}"
        rows.setdefault(key, []).append(row)
        bodies[key] = question
    return [Task(key, bodies[key], tuple(found)) for key, found in rows.items()]


def digest(client: Client, model: str) -> str:
    """The model's digest, so that a new model of the same name starts anew. Raises ModelNotFound."""
    wanted = _key(model)
    for listed in client.list()["models"]:
        if _key(listed["name"]) == wanted:
            return str(listed.get("digest", ""))
    client.show(model)  # says in the server's words that it is not there
    return model


def places(client: Client, model: str) -> int:
    """How many requests keep a loaded model's batch full: all of its slots, and some that wait for the next one."""
    wanted = _key(model)
    slots = next((found.get("slots") for found in client.ps()["models"] if _key(found["name"]) == wanted), None)
    slots = slots or USUAL_SLOTS
    return min(MOST_AT_ONCE, slots + max(2, slots // 2))


def _ask(
    job: Job,
    todo: Sequence[Task],
    how: How,
    client: Client,
    record: Record,
    bar: Bar,
    screen: Screen,
    labels: Sequence[Any],
) -> dict[str, OllamaError]:
    """Ask what is not answered yet; the errors that are kept, by task."""
    failed: dict[str, OllamaError] = {}
    if not todo:
        return failed
    screen.show(bar)
    job.load(client.twin(STRICT))
    width = how.parallel or places(client, job.model)
    with Crew(client, todo, job.send, record, width=width, chunk=job.chunk) as crew:
        for outcome in crew.outcomes():
            if outcome is not None:
                task, found = outcome
                if isinstance(found, OllamaError):
                    _check(found, task.rows[0], labels, how, job)
                    failed[task.key] = found
                    bar.add(len(task.rows), failed=True)
                else:
                    bar.add(len(task.rows), cut_off=found.get("reason") == "length")
            screen.show(bar)
    return failed


def _gathered(
    outcomes: list[Outcome], tasks: Sequence[Task], record: Record, failed: dict[str, OllamaError]
) -> list[Outcome]:
    for task in tasks:
        for row in task.rows:
            outcomes[row] = record.done.get(task.key) or failed.get(task.key)
    return outcomes


def _check(outcome: Outcome, row: int, labels: Sequence[Any], how: How, job: Job) -> None:
    """Raise a row's error, with its place, unless errors are kept."""
    if isinstance(outcome, OllamaError) and how.errors == "raise":
        ways = ['`on_overflow="truncate"` cuts such texts'] * isinstance(outcome, ContextOverflow)
        ways += ['`errors="keep"` goes on with the other rows'] * (not job.whole)
        told = f"row {labels[row]!r}: {outcome.message}" + (f" ({', '.join(ways)})" if ways else "")
        raise outcome.with_message(told)


def _told(bar: Bar, how: How) -> str:
    """What to say to who stopped a run."""
    if not bar.done:
        return "Interrupted before a row was done."
    text = f"Interrupted: {bar.done:,} of {bar.total:,} rows are done."
    shell = get_ipython()
    if shell is not None:
        text += " They are in `_ollama`."
    return text + (" Run it again to go on from there." if how.ledger else "")


def _open(how: How, name: str, *, repeatable: bool) -> Record:
    return Ledger(Settings.from_env().home / "ledgers", name, repeatable=repeatable) if how.ledger else Memory()


class _NoScreen:
    def show(self, page: Page, *, now: bool = False) -> None:
        pass

    def finish(self, page: Page) -> None:
        pass


def _screen(how: How) -> Screen:
    shell = get_ipython()
    if how.progress is False or (shell is None and not how.progress):
        return _NoScreen()
    return screen_for(shell)  # type: ignore[arg-type]  # outside of IPython it is a terminal


def _key(model: str) -> str:
    try:
        return ModelName.parse(model).key
    except InvalidName:
        return model.lower()
