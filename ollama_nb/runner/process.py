"""A runner process as the server sees it: load, streams of text, embeddings, tokens, stop.

Rule: every request ends exactly once: with its answer, with the error that the runner names, with RunnerCrashed when
the runner dies, or, when its caller goes away, with a Cancel sent at once. Replies that nobody reads yet wait here; a
reply has a length that the engine bounds (ten contexts), so they do not grow for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from ollama_nb.errors import LoadError, RunnerCrashed, from_code
from ollama_nb.runner import spawn, wire
from ollama_nb.runner.link import End, Link

COMMAND = spawn.module_command("ollama_nb.runner.child")
STOP_GRACE = 3.0
TICK = 1.0
"""Seconds between two looks at a runner that has work."""
PING_AFTER = 5
"""Silent looks before the runner is asked whether it lives."""
DEAD_AFTER = 15
"""Silent looks after which it does not."""
LONGEST_STEP = 900.0
"""Seconds that one step of the engine may take; a native call that never returns is ended then."""

_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
_Reply = TypeVar("_Reply")


@dataclass(slots=True)
class _Open:
    """A request: its replies (None: the runner died), whether one reached the caller, whether the last one is in."""

    replies: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    answered: bool = False
    ended: bool = False


class Runner:
    """One loaded model in a process of its own. Get one from ``start``; end it with ``stop``."""

    loaded: wire.Loaded

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._open: dict[int, _Open] = {}
        self._verdict: asyncio.Future[wire.Loaded | wire.LoadFailed] = asyncio.get_running_loop().create_future()
        self._heard = False
        self._watch: asyncio.Task[None] | None = None
        self._link: Link

    @classmethod
    async def start(cls, load: wire.Load, timeout: float = 300.0, *, command: Sequence[str] = COMMAND) -> Runner:
        """Start a process and load a model into it. ``timeout``: seconds in which the runner neither finishes nor logs.

        Raises LoadError when the model cannot be loaded, RunnerCrashed when the process dies over it. Cancelling ends
        the process.
        """
        runner = cls()
        try:
            runner._link = await Link.open(command, wire.Reply, runner._received)
        except OSError as error:
            raise LoadError(f"the model runner cannot be started: {error.strerror or error}") from error
        runner._link.ended.add_done_callback(runner._died)
        try:
            await runner._load(load, timeout)
        except BaseException:
            await runner.stop()
            raise
        return runner

    @property
    def pid(self) -> int:
        return self._link.child.pid

    @property
    def alive(self) -> bool:
        return not self._link.ended.done()

    @property
    def busy(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def ended(self) -> asyncio.Future[End]:
        """Done when the process has ended: why. Callbacks run before any request learns of it. Never cancel it."""
        return self._link.ended

    async def wait(self) -> End:
        """Return when the process has ended: why."""
        return await asyncio.shield(self.ended)

    async def stop(self, grace: float = STOP_GRACE) -> None:
        """End the process; open requests fail. Returns when it is reaped."""
        await self._link.close(grace)

    async def complete(self, request: wire.Complete) -> AsyncIterator[wire.Text | wire.Finished]:
        """Stream a completion, Finished last; closing the generator cancels it. ``request.id`` is set here.

        Raises OllamaError.
        """
        message = msgspec.structs.replace(request, id=next(self._ids))
        pending = self._begin(message)
        item: wire.Text | wire.Finished | None = None
        try:
            while not isinstance(item, wire.Finished):
                item = await self._next(pending)
                yield item
        finally:
            self._end(message.id, pending)

    async def embed(
        self, inputs: Sequence[str], *, truncate: bool = True, num_ctx: int = 0, adapters: wire.Adapters = ()
    ) -> wire.Embedded:
        """One vector per input; see ``wire.Embedded``. Too long with ``truncate`` false: BadRequest."""
        id = next(self._ids)
        message = wire.Embed(id=id, inputs=tuple(inputs), truncate=truncate, num_ctx=num_ctx, adapters=adapters)
        return await self._ask(message, wire.Embedded)

    async def rank(
        self, query: str, documents: Sequence[str], *, num_ctx: int = 0, adapters: wire.Adapters = ()
    ) -> wire.Ranked:
        """One score per document; see ``wire.Rank``."""
        id = next(self._ids)
        message = wire.Rank(id=id, query=query, documents=tuple(documents), num_ctx=num_ctx, adapters=adapters)
        return await self._ask(message, wire.Ranked)

    async def tokenize(
        self, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[tuple[int, ...], ...]:
        """The tokens of each text."""
        id = next(self._ids)
        message = wire.Tokenize(id=id, texts=tuple(texts), add_special=add_special, parse_special=parse_special)
        return (await self._ask(message, wire.Tokens)).tokens

    async def count_tokens(
        self, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        """How many tokens each text has."""
        message = wire.Tokenize(
            id=next(self._ids),
            texts=tuple(texts),
            add_special=add_special,
            parse_special=parse_special,
            count_only=True,
        )
        return (await self._ask(message, wire.Tokens)).counts

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return (await self._ask(wire.Detokenize(id=next(self._ids), tokens=tuple(tokens)), wire.Detokenized)).text

    async def stats(self) -> dict[str, Any]:
        """Counters since load, by name; see ``Engine.counters``."""
        return (await self._ask(wire.GetStats(id=next(self._ids)), wire.StatsReply)).stats

    # requests

    def _begin(self, message: Any) -> _Open:
        """Send a request. Raises BadRequest, or RunnerCrashed when there is nobody to send it to."""
        if not self.alive:
            raise RunnerCrashed(f"{_STOPPED}: {self._link.ended.result().cause}")
        data = wire.request_frame(message)
        request = self._open[message.id] = _Open()
        self._link.send_bytes(data)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.ensure_future(self._watch_silence())
        return request

    async def _next(self, request: _Open) -> Any:
        item = await request.replies.get()
        if item is None:
            raise self._crash(request)
        if isinstance(item, wire.Failed):
            raise from_code(item.code, item.message, item.status)
        request.answered = True
        return item

    def _end(self, id: int, request: _Open) -> None:
        """Forget a request; one that the runner still works on is cancelled."""
        self._open.pop(id, None)
        if not request.ended:
            self._link.send(wire.Cancel(id))

    async def _ask(self, message: Any, kind: type[_Reply]) -> _Reply:
        request = self._begin(message)
        try:
            reply = await self._next(request)
        finally:
            self._end(message.id, request)
        assert isinstance(reply, kind)
        return reply

    def _crash(self, request: _Open) -> RunnerCrashed:
        cause = self._link.ended.result().cause
        if request.answered:
            return RunnerCrashed(f"an error was encountered while running the model: {cause}")
        return RunnerCrashed(f"{_STOPPED}: {cause}")

    # what the runner says

    def _received(self, message: Any) -> None:
        self._heard = True
        if isinstance(message, wire.Step):
            for item in message.items:
                self._deliver(item)
        elif isinstance(message, wire.Loaded | wire.LoadFailed):
            if not self._verdict.done():
                self._verdict.set_result(message)
        elif isinstance(message, wire.Pong):
            if message.step_seconds > LONGEST_STEP:
                self._link.kill(f"one step took longer than {LONGEST_STEP:.0f} s")
        else:
            self._deliver(message)

    def _deliver(self, item: Any) -> None:
        if request := self._open.get(item.id):
            request.ended = not isinstance(item, wire.Text)
            request.replies.put_nowait(item)

    def _died(self, ended: asyncio.Future[End]) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for request in self._open.values():
            request.ended = True
            request.replies.put_nowait(None)

    async def _load(self, load: wire.Load, timeout: float) -> None:
        self._link.send(load)
        ended = self._link.ended
        news: list[asyncio.Future[Any]] = [self._verdict, ended]
        while not self._verdict.done():
            left = self._link.child.printed.last_activity + timeout - time.monotonic()
            if left <= 0:
                raise LoadError(f"timed out waiting for the model runner to start - {self._last_words()}")
            patience = None if math.isinf(left) else left
            await asyncio.wait(news, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not self._verdict.done():
                raise RunnerCrashed(f"the model runner process has terminated: {ended.result().cause}")
        verdict = self._verdict.result()
        if isinstance(verdict, wire.LoadFailed):
            raise from_code(verdict.code, verdict.message, verdict.status)
        self.loaded = verdict

    def _last_words(self) -> str:
        return self._link.child.printed.last_line() or "it said nothing"

    async def _watch_silence(self) -> None:
        """End a runner that is stopped or hangs. Counts wake-ups of this loop, so that a stall of ours is not its."""
        silent = 0
        while self._open:
            self._heard = False
            await asyncio.sleep(TICK)
            silent = 0 if self._heard else silent + 1
            if silent and silent % PING_AFTER == 0:
                self._link.send(wire.Ping())
            if silent >= DEAD_AFTER:
                self._link.kill(f"it did not answer for {DEAD_AFTER * TICK:.0f} s")
                return


Launch = Callable[[wire.Load, float], Awaitable[Runner]]
"""``Runner.start``, or what stands in for it: a load, and the seconds of its timeout → a runner."""
