"""A process that pulls: ``python -m support.pull_program NAME FOLDER PULLERS [STEP]`` prints how many bytes are there.

With STEP it dies, as by kill -9, before that call of its own that would change the disk.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from support.transfers import access

from ollama_nb import disk
from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.errors import OllamaError
from ollama_nb.store.registry.patience import Patience
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.pace import Limits
from ollama_nb.store.transfer.pull import Pull

DIED = 137


def start(name: str, folder: Path, pullers: int = 1, step: int | None = None) -> subprocess.Popen[bytes]:
    last = [] if step is None else [str(step)]
    command = [sys.executable, "-m", "support.pull_program", name, str(folder), str(pullers), *last]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)


def main() -> int:
    name, folder = ModelName.parse(sys.argv[1]), Path(sys.argv[2])
    failures: list[str] = []

    def report(line: Progress) -> None:
        if line.digest:
            print(line.completed, flush=True)

    def pull() -> None:
        try:
            store, how = Store(folder / "models"), access(folder, patience=Patience())
            Pull(store, name, name, how, folder / "locks", Limits(), insecure=True).run(report, threading.Event())
        except OllamaError as error:
            failures.append(error.message)

    if len(sys.argv) > 4:
        disk.before = _die_at(int(sys.argv[4]))
    threads = [threading.Thread(target=pull) for _ in range(int(sys.argv[3]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*failures, file=sys.stderr)
    return len(failures)


def _die_at(step: int) -> Callable[[str, str], None]:
    steps = itertools.count()

    def before(call: str, subject: str) -> None:
        if next(steps) == step:
            os._exit(DIED)

    return before


if __name__ == "__main__":
    sys.exit(main())
