"""The conversion process: one job, then it ends. Started as ``python -m ollama_nb.runner.convert FD PID``.

Rule: it writes into the one file that it is given, and reads checkpoints that nobody vouches for. Whatever happens to
it, the server's side (``converter``) removes what is half made.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ollama_nb import disk
from ollama_nb.engine.llama.quantize import quantize
from ollama_nb.engine.threads import default_threads
from ollama_nb.errors import CorruptModel, OllamaError, StoreError
from ollama_nb.runner import confine, jobs, wire
from ollama_nb.store.convert.convert import convert_adapter, convert_model

REPORT_SECONDS = 0.06
NICENESS = 10
"""Replies that run beside a conversion come first."""
MANY = 1 << 40  # parameters: quantising uses all cores, however small the model


def main(argv: list[str]) -> None:
    channel = confine.enter(argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(NICENESS)
    job = _receive(channel)
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    channel.sendall(wire.frame(_answer(job, _reporter(channel))))


def _receive(channel: socket.socket) -> jobs.Job:
    reader = wire.FrameReader(jobs.Job)
    while data := channel.recv(1 << 18):
        for job in reader.feed(data):
            found: jobs.Job = job
            return found
    os._exit(0)


def _end_with(channel: socket.socket) -> None:
    """The server closes the socket when nobody wants the result any more."""
    channel.recv(1)
    os._exit(1)


def _reporter(channel: socket.socket) -> Callable[[int, int], None]:
    shown = 0.0

    def report(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= REPORT_SECONDS:
            shown = time.monotonic()
            channel.sendall(wire.frame(jobs.Working(done, total)))

    return report


def _answer(job: jobs.Job, report: Callable[[int, int], None]) -> jobs.Made | jobs.NotMade:
    try:
        return jobs.Made(_do(job, report))
    except OllamaError as error:
        return jobs.NotMade.of(error)
    except OSError as error:
        return jobs.NotMade.of(StoreError(f"cannot write the model: {disk.describe_error(error)}"))
    except Exception as error:  # the border of this process: a checkpoint can break every assumption
        traceback.print_exc()
        broken = CorruptModel(f"the model cannot be converted: {type(error).__name__}: {error}"[:500])
        return jobs.NotMade.of(broken)


def _do(job: jobs.Job, report: Callable[[int, int], None]) -> tuple[str, ...]:
    """Returns what the user should know."""
    match job:
        case jobs.Convert(folder, target, output):
            return convert_model(Path(folder), Path(target), output, report)
        case jobs.Adapt(folder, target, base):
            convert_adapter(Path(folder), Path(target), base, report)
        case jobs.Quantize(source, target, file_type, kept):
            quantize(source, target, file_type, report, threads=default_threads(MANY), kept=kept)
    return ()


if __name__ == "__main__":
    main(sys.argv[1:])
