"""Prompts from untrusted templates: the server's side of the render process.

Jobs run one at a time, in order. A job that takes more than two seconds ends its process and fails; the next process
starts at once, so that the next job need not wait for it. The limit is processor time of the child, so that it does not
depend on how busy the machine is. A job whose process is killed, crashes or stops is run once more in another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import Sequence
from typing import Any

from ollama_nb.api.requests import PromptJob
from ollama_nb.errors import RunnerCrashed, TemplateError, from_code
from ollama_nb.runner import children, wire
from ollama_nb.runner.children import ChildLink, ProcessEnd

COMMAND = children.module_command("ollama_nb.runner.render")
JOB_SECONDS = 2.0  # processor time of a job; the child ends itself after that
WAIT_FACTOR = 15  # a child that is stopped or gets no processor time is killed after this multiple of JOB_SECONDS
START_SECONDS = 30.0  # for a child to become ready
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
        """Return one prompt per entry of ``job.drops``.

        Raises TemplateError for a template that fails, exceeds its limits or crashes the process twice, BadRequest for
        a job that cannot be sent, and RunnerCrashed when no process can be started or two are killed or do not answer.
        """
        data = wire.request_frame(wire.Render(next(self._ids), job, self._job_seconds))
        async with self._turn:
            outcome = await self._run(await self._ready(), data)
            if isinstance(outcome, ProcessEnd):
                outcome = await self._run(await self._ready(), data)
        if isinstance(outcome, wire.RenderFailed):
            raise from_code(outcome.code, outcome.message, outcome.status)
        if isinstance(outcome, ProcessEnd):
            failure = f"the render process ended twice in the same job: {outcome.cause}"
            raise RunnerCrashed(failure) if outcome.killed else TemplateError(failure)
        return outcome.texts

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

    async def _run(self, process: _Process, data: bytes) -> wire.Prompts | wire.RenderFailed | ProcessEnd:
        """Return the reply to a job, or how its process ended. Raises TemplateError for a job that took too long."""
        reply = process.expect()
        process.link.send_bytes(data)
        wait_seconds = self._job_seconds * WAIT_FACTOR
        end = ProcessEnd(f"no answer within {wait_seconds:g} s", killed=True)
        try:
            await asyncio.wait(_first_of(reply, process), timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            if process.link.ended.done():
                end = process.link.ended.result()
        finally:
            if not reply.done():  # too slow, dead or cancelled: this process cannot take the next job
                await self._replace(process)
        if reply.done():
            return reply.result()
        if end.number == signal.SIGPROF:  # the timer of the job
            raise TemplateError(wire.TEMPLATE_TOOK_TOO_MUCH)
        return end

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
        self._starting.add_done_callback(_mark_retrieved)

    async def _replace(self, process: _Process) -> None:
        self._process = None
        process.link.child.kill()
        self._start()
        await process.link.close(grace=0)


class _Process:
    """One render child and the reply that it owes."""

    def __init__(self) -> None:
        self.link: ChildLink
        self._reply: asyncio.Future[wire.Prompts | wire.RenderFailed]

    @classmethod
    async def start(cls, command: Sequence[str]) -> _Process:
        process = cls()
        ready = process.expect()
        try:
            process.link = await ChildLink.open(command, _REPLY, process._received)
        except OSError as error:
            raise children.start_error("the render process", error) from error
        try:
            await asyncio.wait(_first_of(ready, process), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not ready.done():
                process.link.kill("it took too long to start")
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


def _first_of(reply: asyncio.Future[Any], process: _Process) -> list[asyncio.Future[Any]]:
    return [reply, process.link.ended]


def _mark_retrieved(task: asyncio.Task[_Process]) -> None:
    """A failed start without a waiter is not an unhandled error: the next job starts another process."""
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
