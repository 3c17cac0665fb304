"""Conversion and quantisation in a process of their own: the server's side. Blocking, for work that has a thread.

Rule: the process never outlives its job. Who sets ``cancelled`` ends it within a tenth of a second.
"""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ollama_nb.errors import Cancelled, RunnerCrashed, from_code
from ollama_nb.runner import jobs, spawn, wire
from ollama_nb.runner.link import explain

COMMAND = spawn.module_command("ollama_nb.runner.convert")
POLL_SECONDS = 0.1

Report = Callable[[int, int], None]
"""``report(done, in all)``, in whatever the job counts: bytes, or tensors."""


class Converter:
    """Runs one job after another, each in a new process. Raises what the job raises, Cancelled, RunnerCrashed."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def convert(self, folder: Path, target: Path, output: str, report: Report) -> tuple[str, ...]:
        """A checkpoint to GGUF; ``output`` is F32, F16 or BF16. Returns what the user should know."""
        return self._run(jobs.Convert(str(folder), str(target), output), report)

    def adapt(self, folder: Path, target: Path, base: Mapping[str, Any], report: Report) -> None:
        """A LoRA adapter to GGUF, for the model with this metadata."""
        plain = {key: value for key, value in base.items() if isinstance(value, (int, str)) and "tokenizer" not in key}
        self._run(jobs.Adapt(str(folder), str(target), plain), report)

    def quantize(
        self, source: Path, target: Path, file_type: int | None, report: Report, kept: Mapping[str, int] | None = None
    ) -> None:
        """A GGUF to another type, or (None) the parts of a split one to one file."""
        self._run(jobs.Quantize(str(source), str(target), file_type, dict(kept or {})), report)

    def _run(self, job: jobs.Job, report: Report) -> tuple[str, ...]:
        with _process() as child:
            with contextlib.suppress(ConnectionError):  # it is gone already: receiving tells why
                child.channel.sendall(wire.frame(job))
            reader = wire.FrameReader(jobs.Reply)
            while data := self._receive(child):
                for reply in reader.feed(data):
                    match reply:
                        case jobs.Working(done, total):
                            report(done, total)
                        case jobs.NotMade(message, status, code):
                            raise from_code(code, message, status)
                        case jobs.Made(notes):
                            return notes
            cause = explain(child.exited.result(), child.printed.last_line())
            raise RunnerCrashed(f"the conversion process ended: {cause}")

    def _receive(self, child: spawn.Child) -> bytes:
        """The next bytes; none when the process is gone. Raises Cancelled."""
        while not self._cancelled.is_set():
            if select.select([child.channel], [], [], POLL_SECONDS)[0]:
                with contextlib.suppress(ConnectionError):
                    return child.channel.recv(1 << 16)
                return b""
        raise Cancelled


@contextmanager
def _process() -> Iterator[spawn.Child]:
    try:
        child = spawn.start_blocking(COMMAND)
    except OSError as error:
        raise RunnerCrashed(f"the conversion process cannot be started: {error.strerror or error}") from error
    child.channel.setblocking(True)
    try:
        yield child
    finally:
        child.channel.close()
        child.kill()
        child.exited.result()
