"""The conversion process: it does one job and ends. Started as ``python -m ollama_nb.runner.convert FD PID``.

It reads untrusted checkpoints and writes only the target file of its job. If it fails in any way, the server's side
(``converter``) removes the incomplete file.
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
from ollama_nb.runner import confine, wire
from ollama_nb.store.convert.convert import convert_adapter, convert_model

REPORT_SECONDS = 0.06  # between two progress messages
NICENESS = 10  # generation in other processes has priority
MANY_PARAMETERS = 1 << 40  # makes quantization use all cores for a small model too


def main(argv: list[str]) -> None:
    channel = confine.enter(argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(NICENESS)
    job = _receive(channel)
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    channel.sendall(wire.frame(_run(job, _reporter(channel))))


def _receive(channel: socket.socket) -> wire.ConversionJob:
    reader = wire.FrameReader(wire.ConversionJob)
    while data := channel.recv(1 << 18):
        for job in reader.feed(data):
            found: wire.ConversionJob = job
            return found
    os._exit(0)


def _end_with(channel: socket.socket) -> None:
    """End the process when the server closes the socket: the job was cancelled."""
    channel.recv(1)
    os._exit(1)


def _reporter(channel: socket.socket) -> Callable[[int, int], None]:
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            channel.sendall(wire.frame(wire.ConversionProgress(done, total)))

    return report


def _run(job: wire.ConversionJob, report: Callable[[int, int], None]) -> wire.Converted | wire.ConversionFailed:
    try:
        return wire.Converted(_do(job, report))
    except OllamaError as error:
        return wire.ConversionFailed.of(error)
    except OSError as error:
        return wire.ConversionFailed.of(StoreError(f"cannot write the model: {disk.describe_error(error)}"))
    except Exception as error:  # the process boundary: a checkpoint can violate any assumption
        traceback.print_exc()
        broken = CorruptModel(f"the model cannot be converted: {type(error).__name__}: {error}"[:500])
        return wire.ConversionFailed.of(broken)


def _do(job: wire.ConversionJob, report: Callable[[int, int], None]) -> tuple[str, ...]:
    """Do the job; return warnings for the user."""
    match job:
        case wire.ConvertModel(folder, target, output):
            return convert_model(Path(folder), Path(target), output, report)
        case wire.ConvertAdapter(folder, target, base):
            convert_adapter(Path(folder), Path(target), base, report)
        case wire.Quantize(source, target, file_type, kept):
            quantize(source, target, file_type, report, threads=default_threads(MANY_PARAMETERS), kept=kept)
    return ()


if __name__ == "__main__":
    main(sys.argv[1:])
