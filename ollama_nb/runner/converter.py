"""Conversion and quantization, each in a process of its own: the server's side. Calls block, so use a thread.

The process never outlives its job; setting ``cancelled`` ends it within a tenth of a second.
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
from ollama_nb.runner import children, wire

COMMAND = children.module_command("ollama_nb.runner.convert")
POLL_SECONDS = 0.1  # between two looks at ``cancelled``

Report = Callable[[int, int], None]
"""``report(done, total)``, in the unit of the job: bytes or tensors."""


class ModelConverter:
    """Runs jobs, each in a new process. Raises the error of the job, Cancelled or RunnerCrashed."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def convert(self, folder: Path, target: Path, output: str, report: Report) -> tuple[str, ...]:
        """Convert a checkpoint to GGUF; ``output`` is F32, F16 or BF16. Return warnings for the user."""
        return self._run(wire.ConvertModel(str(folder), str(target), output), report)

    def adapt(self, folder: Path, target: Path, base: Mapping[str, Any], report: Report) -> None:
        """Convert a LoRA adapter to GGUF, for the model with the metadata ``base``."""
        plain = {key: value for key, value in base.items() if isinstance(value, (int, str)) and "tokenizer" not in key}
        self._run(wire.ConvertAdapter(str(folder), str(target), plain), report)

    def quantize(
        self, source: Path, target: Path, file_type: int | None, report: Report, kept: Mapping[str, int] | None = None
    ) -> None:
        """Convert a GGUF to ``file_type``; None only merges the parts of a split one."""
        self._run(wire.Quantize(str(source), str(target), file_type, dict(kept or {})), report)

    def _run(self, job: wire.ConversionJob, report: Report) -> tuple[str, ...]:
        with _process() as child:
            with contextlib.suppress(ConnectionError):  # it has ended already; the cause is found below
                child.channel.sendall(wire.frame(job))
            reader = wire.FrameReader(wire.FromConverter)
            while data := self._receive(child):
                for reply in reader.feed(data):
                    match reply:
                        case wire.ConversionProgress(done, total):
                            report(done, total)
                        case wire.ConversionFailed(message, status, code):
                            raise from_code(code, message, status)
                        case wire.Converted(notes):
                            return notes
            cause = children.describe_exit(child.exited.result(), child.printed.last_line())
            raise RunnerCrashed(f"the conversion process ended: {cause}")

    def _receive(self, child: children.Child) -> bytes:
        """The next bytes; empty when the process has ended. Raises Cancelled."""
        while not self._cancelled.is_set():
            if select.select([child.channel], [], [], POLL_SECONDS)[0]:
                with contextlib.suppress(ConnectionError):
                    return child.channel.recv(1 << 16)
                return b""
        raise Cancelled


@contextmanager
def _process() -> Iterator[children.Child]:
    try:
        child = children.start_blocking(COMMAND)
    except OSError as error:
        raise children.start_error("the conversion process", error) from error
    child.channel.setblocking(True)
    try:
        yield child
    finally:
        child.channel.close()
        child.kill()
        child.exited.result()
