"""The clients of a soak: they ask, abandon and read slowly, and one of them changes models all the time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from soak import growth
from soak.questions import WORDS, Objects, Question, only
from soak.wire import Abandoned, Gate, Ledger, Reply, Wire
from support import chaos_registry
from support.chaos_registry import ChaosRegistry
from support.processes import until
from support.servers import RunningServer

import ollama_nb

PARAMETERS = {"num_ctx": 512, "num_thread": 1}
KILL_SECONDS = 10.0  # after a kill, in which requests to the killed model may fail
KILLED = "quick"  # the model whose runner is killed and unloaded
KILLED_CODES = {"runner_crashed", "load_error"}
FILES = {"stories": "stories260K-f32.gguf", KILLED: "stories260K-f16.gguf", "minilm": "all-MiniLM-L6-v2-q8_0.gguf"}
PULLED = "stories260K-q4_0.gguf"
FAULTS = (
    chaos_registry.sound, chaos_registry.sound, chaos_registry.cut_after(70_000), chaos_registry.status(503),
    chaos_registry.ignore_range, chaos_registry.slow(0.05),
)  # fmt: skip


@dataclass
class Soak:
    """One server under load. ``digests`` maps the weights of models to their names."""

    server: RunningServer
    registry: ChaosRegistry
    models: Path
    share: float
    pace: float
    ledger: Ledger = field(default_factory=Ledger)
    gate: Gate = field(default_factory=Gate)
    stop: threading.Event = field(default_factory=threading.Event)
    questions: list[Question] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    killed_at: float = -KILL_SECONDS

    @property
    def address(self) -> str:
        return self.server.url.removeprefix("http://")

    def wire(self) -> Wire:
        return Wire(self.address)

    def call(self, wire: Wire, kind: str, method: str, path: str, body: Any = None) -> Reply:
        """A request that is always read to its end."""
        request_id = self.ledger.start(kind)
        status, objects = wire.ask(method, path, body, request_id)
        self.ledger.end("answered", request_id)
        return status, objects

    def expect(self, wire: Wire, kind: str, path: str, body: dict[str, Any], method: str = "POST") -> Objects:
        """A request that must succeed."""
        status, objects = self.call(wire, kind, method, path, body)
        if status != 200 or any("error" in found for found in objects):
            self.ledger.fail(f"{kind}: status {status}, {objects[-1:]}")
        return objects

    def setup(self) -> None:
        """Create the models of the questions."""
        wire = self.wire()
        for name, file in FILES.items():
            data = (self.models / file).read_bytes()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.digests[digest] = name
            self.call(wire, "blob", "POST", f"/api/blobs/{digest}", data)
            model = {"model": name, "files": {"model.gguf": digest}, "parameters": PARAMETERS}
            self.expect(wire, "create", "/api/create", model)
        self.expect(wire, "pull", "/api/pull", {"model": "sprout"})
        wire.close()


def ask_questions(soak: Soak, seed: int) -> None:
    """Ask questions at random, and abandon a share of them at a random moment."""
    dice, wire = random.Random(seed), soak.wire()
    usual: dict[str, float] = {}
    while not soak.stop.is_set():
        question = dice.choice(soak.questions)
        leave = None
        if dice.random() < soak.share:
            leave = dice.uniform(0, 1.2 * usual.get(question.kind, 0.05))
        with soak.gate:
            began = time.monotonic()
            _ask(soak, wire, question, leave=leave)
            if leave is None:
                spent = time.monotonic() - began
                usual[question.kind] = 0.9 * usual.get(question.kind, spent) + 0.1 * spent
        if soak.pace:
            soak.stop.wait(soak.pace)
    wire.close()


def read_slowly(soak: Soak, seed: int) -> None:
    """Read long streams line by line, with a pause after each."""
    dice, wire = random.Random(seed), soak.wire()
    long = [question for question in soak.questions if question.long]
    while not soak.stop.is_set():
        with soak.gate:
            _ask(soak, wire, dice.choice(long), pause=0.02)
    wire.close()


def _ask(soak: Soak, wire: Wire, question: Question, *, leave: float | None = None, pause: float = 0.0) -> None:
    request_id = soak.ledger.start(question.kind)
    began = time.monotonic()
    try:
        status, objects = wire.ask("POST", question.path, question.body, request_id, leave=leave, pause=pause)
    except Abandoned:
        soak.ledger.end("abandoned")
        return
    except Exception as error:
        soak.ledger.fail(f"{question.kind} {request_id}: {type(error).__name__}: {error}")
        return
    soak.ledger.end("answered", request_id)
    if wrong := question.check(status, objects):
        code = objects[-1].get("code") if objects else ""
        if question.body["model"] == KILLED and code in KILLED_CODES and began < soak.killed_at + KILL_SECONDS:
            soak.ledger.end("failed by a kill")
        else:
            soak.ledger.fail(f"{question.kind} {request_id}: {wrong}")


def change_models(soak: Soak, seed: int) -> None:
    """Create, show, copy, run, push, pull, abandon pulls, remove, unload and kill, again and again."""
    dice, wire = random.Random(seed), soak.wire()
    known = next(
        question for question in soak.questions if question.body["model"] == "stories" and "raw" in question.body
    )
    acts: list[tuple[int, Callable[[Soak, Wire, Question, str], None]]] = [
        (1, _copy_and_remove), (3, _pull), (3, _push), (4, _leave_a_pull), (15, _unload), (30, _kill)
    ]  # fmt: skip
    turn = dice.randrange(15)
    while not soak.stop.wait(0.5):
        turn += 1
        for every, act in acts:
            if turn % every == 0 and not soak.stop.is_set():
                with soak.gate:
                    try:
                        act(soak, wire, known, f"{act.__name__.strip('_')}-{turn}".replace("_", "-"))
                    except Exception as error:
                        soak.ledger.fail(f"{act.__name__}: {type(error).__name__}: {error}")
    wire.close()


def _copy_and_remove(soak: Soak, wire: Wire, known: Question, name: str) -> None:
    """A created model, its copy, and what is left when both are removed."""
    copy, system = f"{name}-copy", f"You are {name}."
    soak.expect(wire, "create", "/api/create", {"model": name, "from": "stories", "system": system})
    if (shown := only(soak.expect(wire, "show", "/api/show", {"model": name})).get("system")) != system:
        soak.ledger.fail(f"show: system {shown!r}")
    soak.expect(wire, "copy", "/api/copy", {"source": name, "destination": copy})
    _ask(soak, wire, _of(known, copy))
    for each in (name, copy):
        soak.expect(wire, "delete", "/api/delete", {"model": each}, "DELETE")
        if (status := soak.call(wire, "show", "POST", "/api/show", {"model": each})[0]) != 404:
            soak.ledger.fail(f"show of the removed {each}: status {status}")
    names = {found["name"] for found in only(soak.call(wire, "tags", "GET", "/api/tags")[1])["models"]}
    if {f"{name}:latest", f"{copy}:latest"} & names:
        soak.ledger.fail(f"{name} is removed and listed")


def _pull(soak: Soak, wire: Wire, known: Question, name: str) -> None:
    """A pull from a registry with faults, one reply of the pulled model, and its removal."""
    remote = _published(soak)
    soak.registry.faults.append(random.choice(FAULTS))
    soak.expect(wire, "pull", "/api/pull", {"model": remote, "insecure": True})
    soak.registry.faults.clear()
    body = {"model": remote, "prompt": "Once", "raw": True, "stream": False, "keep_alive": 0}
    soak.expect(wire, "generate", "/api/generate", body | {"options": PARAMETERS | {"num_predict": 3}})
    soak.expect(wire, "delete", "/api/delete", {"model": remote}, "DELETE")


def _leave_a_pull(soak: Soak, wire: Wire, known: Question, name: str) -> None:
    """A pull whose client disconnects."""
    soak.registry.faults.append(chaos_registry.slow(0.2))
    leaving = soak.wire()
    try:
        body = {"model": _published(soak), "insecure": True}
        leaving.ask("POST", "/api/pull", body, soak.ledger.start("pull"), leave=random.uniform(0.01, 0.3))
        soak.ledger.end("answered")
    except Abandoned:
        soak.ledger.end("abandoned")
    soak.registry.faults.clear()


def _push(soak: Soak, wire: Wire, known: Question, name: str) -> None:
    """A push, and whether the registry has all of it."""
    remote = f"{soak.registry.host}/pushed/{name}:1"
    soak.expect(wire, "copy", "/api/copy", {"source": KILLED, "destination": remote})
    soak.registry.blobs.clear()
    soak.expect(wire, "push", "/api/push", {"model": remote, "insecure": True})
    if not {digest for digest, of in soak.digests.items() if of == KILLED} <= soak.registry.blobs.keys():
        soak.ledger.fail("push: the registry lacks the weights")
    if not any(f"pushed/{name}/" in path for path in soak.registry.manifests):
        soak.ledger.fail("push: the registry lacks the manifest")
    soak.expect(wire, "delete", "/api/delete", {"model": remote}, "DELETE")
    soak.registry.manifests.clear()
    soak.registry.asked.clear()


def _unload(soak: Soak, wire: Wire, known: Question, name: str) -> None:
    body = {"model": KILLED, "keep_alive": 0, "stream": False}
    soak.expect(wire, "unload", "/api/generate", body)


def _kill(soak: Soak, wire: Wire, known: Question, name: str) -> None:
    """Kill the runner of one model."""
    sizes = growth.take(soak.server.pid, 0, 0, soak.digests).sizes
    for size in sizes:
        if size.role == f"runner.child {KILLED}":
            soak.killed_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(size.pid, signal.SIGKILL)
                soak.ledger.end("runners killed")


def _published(soak: Soak) -> str:
    return soak.registry.publish("lib/tiny:1", model=(soak.models / PULLED).read_bytes())


def _of(question: Question, model: str) -> Question:
    return Question(question.kind, question.path, question.body | {"model": model}, question.read, question.expected)


def fill_tables(soak: Soak, seed: int) -> None:
    """Tables with a ledger of their answers; every second one finds all answers in it."""
    client = ollama_nb.connect(soak.server.url)
    known = {
        question.body["messages"][0]["content"].rpartition(" ")[2]: question.expected
        for question in soak.questions if question.body["model"] == "sprout"
    }  # fmt: skip
    dice, turn = random.Random(seed), 0
    while not soak.stop.wait(1):
        turn += 1
        frame = pd.DataFrame({"word": [*dice.sample(WORDS, 5), None, WORDS[0]]})
        expected = [known.get(word, "-") for word in frame["word"]]
        options = {"think": False, "temperature": 0, "num_predict": 8, "progress": False, "client": client}
        for _ in range(2):
            with soak.gate:
                soak.ledger.start("table")
                try:
                    found = frame.ollama.chat("sprout", "Translate to Chinese: {{word}}", seed=seed + turn, **options)
                except Exception as error:
                    soak.ledger.fail(f"table: {type(error).__name__}: {error}")
                    continue
                soak.ledger.end("answered")
                if found.fillna("-").tolist() != expected:
                    soak.ledger.fail(f"table: {found.tolist()} instead of {expected}")


def is_idle(soak: Soak, seconds: float) -> bool:
    """Whether the server has nothing left to do within this time."""
    wire = soak.wire()
    try:
        with contextlib.suppress(AssertionError):
            until(lambda: not only(wire.ask("GET", "/api/queue", None, "soak-queue")[1])["requests"], seconds)
            return True
        return False
    finally:
        wire.close()
