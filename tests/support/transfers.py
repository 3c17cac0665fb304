"""Pulls and pushes against test registries: short timeouts, small parts, every progress line kept.

``python -m support.transfers NAME FOLDER PULLERS [STEP]`` pulls in a process of its own and prints the number of bytes
on disk. With STEP it exits, as by kill -9, before that system call of its own that would change the disk.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ollama_nb import disk
from ollama_nb.api.events import Progress
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import OllamaError
from ollama_nb.store.registry.client import RegistryAccess
from ollama_nb.store.registry.errors import RetryPolicy
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.pace import TransferLimits
from ollama_nb.store.transfer.pull import ModelPull
from ollama_nb.store.transfer.push import ModelPush

QUICK = RetryPolicy(connect_timeout=60.0, read_timeout=60.0, max_attempts=5, first_delay=0.01, max_delay=0.02)
"""Retries at once and more often than a test has faults; a slow machine does not count as a fault."""


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def access(folder: Path, **fields: Any) -> RegistryAccess:
    return RegistryAccess(**{"key": folder / "id_ed25519", "retry_policy": QUICK, **fields})


def pull(
    store: Store,
    name: str,
    folder: Path,
    *,
    lines: list[Progress] | None = None,
    cancelled: threading.Event | None = None,
    limits: TransferLimits | None = None,
    insecure: bool = True,
    **fields: Any,
) -> list[Progress]:
    """Pull a model; progress is appended to ``lines`` meanwhile."""
    said: list[Progress] = [] if lines is None else lines
    parsed = ModelName.parse(name)
    job = ModelPull(
        store, parsed, parsed, access(folder, **fields), folder / "locks", limits or TransferLimits(), insecure
    )
    job.run(said.append, cancelled or threading.Event())
    return said


def push(
    store: Store,
    name: str,
    folder: Path,
    *,
    lines: list[Progress] | None = None,
    cancelled: threading.Event | None = None,
    insecure: bool = True,
    **fields: Any,
) -> list[Progress]:
    said: list[Progress] = [] if lines is None else lines
    job = ModelPush(store, ModelName.parse(name), access(folder, **fields), TransferLimits(), insecure)
    job.run(said.append, cancelled or threading.Event())
    return said


def statuses(lines: list[Progress]) -> list[str]:
    """The distinct statuses, in order."""
    return list(dict.fromkeys(line.status for line in lines))


def never_back(lines: list[Progress]) -> bool:
    """Whether the progress of every blob only grew and ended at its total."""
    seen: dict[str, int] = {}
    for line in lines:
        if line.digest:
            if line.completed < seen.get(line.digest, 0):
                return False
            seen[line.digest] = line.completed
    totals = {line.digest: line.total for line in lines if line.digest}
    return seen == totals


def left_over(store: Store) -> list[str]:
    """Files in ``blobs`` that are not blobs."""
    return sorted(path.name for path in store.blobs.root.iterdir() if len(path.name) != len(Digest("0" * 64).filename))


DIED = 137


def start(name: str, folder: Path, pullers: int = 1, step: int | None = None) -> subprocess.Popen[bytes]:
    last = [] if step is None else [str(step)]
    command = [sys.executable, "-m", "support.transfers", name, str(folder), str(pullers), *last]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)


def main() -> int:
    name, folder = ModelName.parse(sys.argv[1]), Path(sys.argv[2])
    failures: list[str] = []

    def report(line: Progress) -> None:
        if line.digest:
            print(line.completed, flush=True)

    def pull() -> None:
        try:
            store, how = Store(folder / "models"), access(folder, retry_policy=RetryPolicy())
            ModelPull(store, name, name, how, folder / "locks", TransferLimits(), insecure=True).run(
                report, threading.Event()
            )
        except OllamaError as error:
            failures.append(error.message)

    if len(sys.argv) > 4:
        disk.before_change_hook = _die_at(int(sys.argv[4]))
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
