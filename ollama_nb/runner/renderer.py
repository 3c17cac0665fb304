"""Prompts from templates that nobody vouches for: the server's side of the render process.

Rule: one job at a time, in the order of asking; a job that takes more than two seconds costs its process, and only
itself. The next process starts at once, so that the next job does not wait for it. Seconds are the child's own, of
processor time: how busy the machine is decides about no prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

from ollama_nb.api.chat import PromptJob
from ollama_nb.errors import RunnerCrashed, TemplateError, from_code
from ollama_nb.runner import spawn, wire
from ollama_nb.runner.link import Link

COMMAND = spawn.module_command("ollama_nb.runner.render")
JOB_SECONDS = 2.0
"""Of processor time; the child ends itself after that."""
PATIENCE = 30
"""So many times longer is a child waited for that neither answers nor ends, because it was stopped or starves."""
START_SECONDS = 30.0
_REPLY = wire.Prompts | wire.RenderFailed


class Renderer:
    """Renders prompts in one child, started when first needed and ended by ``close``."""

    def __init__(self, *, command: Sequence[str] = COMMAND, job_seconds: float = JOB_SECONDS) -> None:
        self._command = command
        self._job_seconds = job_seconds
        self._ids = itertools.count(1)
        self._turn = asyncio.Lock()
        self._process: _Process | None = None
        self._starting: asyncio.Task[_Process] | None = None

    async def render(self, job: PromptJob) -> tuple[str, ...]:
        """One prompt per entry of ``job.drops``.

        Raises TemplateError for a template that fails or takes too much, BadRequest for a job that cannot be sent,
        RunnerCrashed when no process can be had.
        """
        data = wire.request_frame(wire.Render(next(self._ids), job, self._job_seconds))
        async with self._turn:
            process = await self._ready()
            reply = await self._ask(process, data)
        if isinstance(reply, wire.RenderFailed):
            raise from_code(reply.code, reply.message, reply.status)
        return reply.texts

    async def close(self) -> None:
        """End the child; returns when it is reaped."""
        starting, process = self._starting, self._process
        self._starting = self._process = None
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                process = process or starting.result()
        if process is not None:
            await process.link.close(grace=0.5)

    async def _ask(self, process: _Process, data: bytes) -> wire.Prompts | wire.RenderFailed:
        reply = process.expect()
        process.link.send_bytes(data)
        ended = False
        try:
            patience = self._job_seconds * PATIENCE
            await asyncio.wait(_either(reply, process), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            ended = reply.done()
        finally:
            if not ended:  # too slow, dead, or nobody waits any more: the process is not free for the next job
                await self._replace(process)
        if not ended:
            raise TemplateError(wire.TEMPLATE_TOOK_TOO_MUCH)
        return reply.result()

    async def _ready(self) -> _Process:
        if self._process is None or self._process.link.ended.done():
            self._process = None
            if self._starting is None:
                self._start()
            assert self._starting is not None
            starting = self._starting
            try:
                self._process = await asyncio.shield(starting)
            finally:
                if starting.done():
                    self._starting = None
        return self._process

    def _start(self) -> None:
        self._starting = asyncio.ensure_future(_Process.start(self._command))
        self._starting.add_done_callback(_look_at)

    async def _replace(self, process: _Process) -> None:
        self._process = None
        process.link.child.kill()
        self._start()
        await process.link.close(grace=0)


class _Process:
    """One render child and the reply that is awaited from it."""

    def __init__(self) -> None:
        self.link: Link
        self._reply: asyncio.Future[wire.Prompts | wire.RenderFailed]

    @classmethod
    async def start(cls, command: Sequence[str]) -> _Process:
        process = cls()
        ready = process.expect()
        try:
            process.link = await Link.open(command, _REPLY, process._received)
        except OSError as error:
            raise RunnerCrashed(f"the render process cannot be started: {error.strerror or error}") from error
        try:
            await asyncio.wait(_either(ready, process), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not ready.done():
                process.link.kill("it took too long")
                await process.link.close(grace=0)
        if not ready.done():
            raise RunnerCrashed(f"the render process did not start: {process.link.ended.result().cause}")
        return process

    def expect(self) -> asyncio.Future[wire.Prompts | wire.RenderFailed]:
        self._reply = asyncio.get_running_loop().create_future()
        return self._reply

    def _received(self, message: Any) -> None:
        if not self._reply.done():
            self._reply.set_result(message)


def _either(reply: asyncio.Future[Any], process: _Process) -> list[asyncio.Future[Any]]:
    return [reply, process.link.ended]


def _look_at(task: asyncio.Task[_Process]) -> None:
    """A start that failed with nobody waiting for it is no unhandled error: the next job tries again."""
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
