"""The render process: it receives prompt jobs and sends prompts, with at most 512 MiB of memory.

Templates are untrusted. What they do is confined to this process, and an error ends only its own job. A job that
exceeds its processor time ends the process: no handler is installed for the timer's signal, so a template cannot delay
it.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys

from ollama_nb import families
from ollama_nb.errors import OllamaError, TemplateError
from ollama_nb.runner import confine, wire
from ollama_nb.template import prompt

MEMORY = 512 << 20  # bytes of address space
MAX_OUTPUT = 64 << 20  # characters of all prompts of a job


def main(argv: list[str]) -> None:
    channel = confine.enter(argv)
    confine.limit(resource.RLIMIT_AS, MEMORY)
    channel.sendall(wire.frame(wire.Prompts(0, ())))  # ready: start-up does not count as time of a job
    reader = wire.FrameReader(wire.Render)
    while data := _receive(channel):
        for job in reader.feed(data):
            channel.sendall(_run(job))


def _receive(channel: socket.socket) -> bytes:
    try:
        return channel.recv(1 << 18)
    except ConnectionError:
        return b""


def _run(job: wire.Render) -> bytes:
    signal.setitimer(signal.ITIMER_PROF, job.seconds)
    try:
        return wire.frame(wire.Prompts(job.id, _render(job)))
    except OllamaError as error:
        return wire.frame(wire.RenderFailed(job.id, error.message, error.status, error.code))
    except (MemoryError, RecursionError):
        return wire.frame(wire.RenderFailed(job.id, wire.TEMPLATE_TOOK_TOO_MUCH))
    except Exception as error:  # the process boundary: a template can raise anything
        return wire.frame(wire.RenderFailed(job.id, f"template error: {type(error).__name__}: {error}"[:1000]))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _render(job: wire.Render) -> tuple[str, ...]:
    texts = prompt.render(job.job, families.render)
    if sum(map(len, texts)) > MAX_OUTPUT:
        raise TemplateError(wire.TEMPLATE_TOOK_TOO_MUCH)
    return texts


if __name__ == "__main__":
    main(sys.argv[1:])
