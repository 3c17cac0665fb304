"""A runner process as the server sees it: load, generate, embed, tokenize, stop.

Every request ends exactly once: with its reply, with the error that the runner sends, with RunnerCrashed when the
runner dies, or with a Cancel when its caller goes away.

The runner does not wait for a caller that reads slowly, because its other streams would wait too. What the caller has
not read yet is kept here, in little memory: from ``MERGE_AFTER`` outputs on, new text is added to the last output, and
the engine bounds the text of a reply (to ten contexts). Log probabilities are many times larger than the text;
a request with ``MAX_UNREAD`` outputs that its caller has not read ends with SlowReader.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from ollama_nb.errors import InsufficientMemory, LoadError, RunnerCrashed, SlowReader, from_code
from ollama_nb.runner import children, wire
from ollama_nb.runner.children import ChildLink, ProcessEnd

COMMAND = children.module_command("ollama_nb.runner.child")
STOP_GRACE = 3.0  # seconds from SIGTERM to SIGKILL
TICK = 1.0  # seconds between two checks of a runner that has requests
PING_AFTER = 5  # checks without a message from the runner until it is sent a Ping
DEAD_AFTER = 15  # checks without a message from the runner until it is killed
MERGE_AFTER = 256  # unread outputs of one request, after which text is merged
MERGED_TEXT = 4096  # characters of one merged output; longer ones would take long to copy for each token
MAX_UNREAD = 4096  # unread outputs of one request
MAX_STEP_SECONDS = 900.0  # of one engine step; a native call that does not return is ended then

_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
_SLOW = f"the reply was stopped because {MAX_UNREAD} pieces of it are unread: read it faster"
_Reply = TypeVar("_Reply")


@dataclass(slots=True)
class _PendingRequest:
    """A request: its replies that the caller has not read yet (None: the runner died), whether the caller got one,
    whether the last one has arrived.
    """

    unread: deque[Any] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    answered: bool = False
    ended: bool = False

    def add(self, item: Any) -> None:
        last = self.unread[-1] if len(self.unread) >= MERGE_AFTER else None
        if isinstance(item, wire.TextOutput) and isinstance(last, wire.TextOutput) and _fits(last, item):
            self.unread[-1] = msgspec.structs.replace(
                last,
                text=last.text + item.text,
                drafted=item.drafted,
                accepted=item.accepted,
                output_tokens=item.output_tokens,
            )
        else:
            self.unread.append(item)
        self.arrived.set()

    async def read(self) -> Any:
        while not self.unread:
            self.arrived.clear()
            await self.arrived.wait()
        return self.unread.popleft()


def _fits(last: wire.TextOutput, item: wire.TextOutput) -> bool:
    return not last.logprobs and not item.logprobs and len(last.text) + len(item.text) <= MERGED_TEXT


class Runner:
    """One loaded model in a process of its own. Get one from ``start``; end it with ``stop``."""

    loaded: wire.EngineFacts

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._pending: dict[int, _PendingRequest] = {}
        self._loading: asyncio.Future[wire.EngineFacts | wire.LoadFailed] = asyncio.get_running_loop().create_future()
        self._message_seen = False
        self._watcher: asyncio.Task[None] | None = None
        self._link: ChildLink

    @classmethod
    async def start(
        cls, load: wire.EngineConfig, timeout: float = 300.0, *, command: Sequence[str] = COMMAND
    ) -> Runner:
        """Start a process and load a model into it.

        ``timeout`` is the number of seconds without any log output after which a load has failed. Raises LoadError when
        the model cannot be loaded, InsufficientMemory when memory runs out, RunnerCrashed when the process dies for
        another reason. Cancelling ends the process.
        """
        runner = cls()
        try:
            runner._link = await ChildLink.open(command, wire.FromRunner, runner._received)
        except OSError as error:
            raise children.start_error("the model runner", error, LoadError) from error
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
        """The number of requests that have not ended."""
        return len(self._pending)

    @property
    def ended(self) -> asyncio.Future[ProcessEnd]:
        """The end of the process. Callbacks run before any request fails because of it. Do not cancel this future."""
        return self._link.ended

    async def wait(self) -> ProcessEnd:
        """Wait for the process to exit and return the reason."""
        return await asyncio.shield(self.ended)

    async def stop(self, grace: float = STOP_GRACE) -> None:
        """End the process; open requests fail. Returns when it is reaped."""
        await self._link.close(grace)

    async def complete(self, request: wire.CompletionRequest) -> AsyncGenerator[wire.TextOutput | wire.Finished, None]:
        """Stream a completion, Finished last; closing the generator cancels it. ``request.id`` is set here.

        Raises OllamaError.
        """
        message = msgspec.structs.replace(request, id=next(self._ids))
        pending = self._begin(message)
        item: wire.TextOutput | wire.Finished | None = None
        try:
            while not isinstance(item, wire.Finished):
                item = await self._next(pending)
                yield item
        finally:
            self._end(message.id, pending)

    async def embed(
        self,
        inputs: Sequence[wire.EmbedInput],
        *,
        truncate: bool = True,
        num_ctx: int = 0,
        adapters: wire.Adapters = (),
        client: str = "",
        background: bool = False,
    ) -> wire.Embedded:
        """Return one vector per input; see ``wire.Embedded``. Raises ContextOverflow if nothing may be truncated."""
        id = next(self._ids)
        message = wire.Embed(
            id=id,
            inputs=tuple(inputs),
            truncate=truncate,
            num_ctx=num_ctx,
            adapters=adapters,
            client=client,
            background=background,
        )
        return await self._ask(message, wire.Embedded)

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        num_ctx: int = 0,
        adapters: wire.Adapters = (),
        client: str = "",
    ) -> wire.Ranked:
        """Return one score per document; see ``wire.Rank``."""
        id = next(self._ids)
        message = wire.Rank(
            id=id, query=query, documents=tuple(documents), num_ctx=num_ctx, adapters=adapters, client=client
        )
        return await self._ask(message, wire.Ranked)

    async def tokenize(
        self, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of each text."""
        id = next(self._ids)
        message = wire.Tokenize(id=id, texts=tuple(texts), add_special=add_special, parse_special=parse_special)
        return (await self._ask(message, wire.Tokens)).tokens

    async def count_tokens(
        self, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        """Return the number of tokens of each text."""
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
        """Return the counters since load, by name; see ``Engine.counters``."""
        return (await self._ask(wire.GetStats(id=next(self._ids)), wire.StatsReply)).stats

    # requests

    def _begin(self, message: Any) -> _PendingRequest:
        """Send a request. Raises BadRequest, and RunnerCrashed when the runner is gone."""
        if not self.alive:
            raise RunnerCrashed(f"{_STOPPED}: {self._link.ended.result().cause}")
        data = wire.request_frame(message)
        request = self._pending[message.id] = _PendingRequest()
        self._link.send_bytes(data)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.ensure_future(self._watch())
        return request

    async def _next(self, request: _PendingRequest) -> Any:
        item = await request.read()
        if item is None:
            raise self._crash(request)
        if isinstance(item, wire.Failed):
            raise from_code(item.code, item.message, item.status)
        request.answered = True
        return item

    def _end(self, id: int, request: _PendingRequest) -> None:
        """Remove a request, and cancel it if the runner still works on it."""
        self._pending.pop(id, None)
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

    def _crash(self, request: _PendingRequest) -> RunnerCrashed:
        cause = self._link.ended.result().cause
        if request.answered:
            return RunnerCrashed(f"an error was encountered while running the model: {cause}")
        return RunnerCrashed(f"{_STOPPED}: {cause}")

    # messages of the runner

    def _received(self, message: Any) -> None:
        self._message_seen = True
        if isinstance(message, wire.Step):
            for item in message.items:
                self._deliver(item)
        elif isinstance(message, wire.EngineFacts | wire.LoadFailed):
            if not self._loading.done():
                self._loading.set_result(message)
        elif isinstance(message, wire.Pong):
            if message.step_seconds > MAX_STEP_SECONDS:
                self._link.kill(f"one step took longer than {MAX_STEP_SECONDS:.0f} s")
        else:
            self._deliver(message)

    def _deliver(self, item: Any) -> None:
        request = self._pending.get(item.id)
        if request is None or request.ended:
            return
        request.ended = not isinstance(item, wire.TextOutput)
        if not request.ended and len(request.unread) >= MAX_UNREAD:
            self._link.send(wire.Cancel(item.id))
            request.ended = True
            item = wire.Failed.of(item.id, SlowReader(_SLOW))
        request.add(item)

    def _died(self, ended: asyncio.Future[ProcessEnd]) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        for request in self._pending.values():
            request.ended = True
            request.add(None)

    async def _load(self, load: wire.EngineConfig, timeout: float) -> None:
        self._link.send(load)
        ended = self._link.ended
        signs: list[asyncio.Future[Any]] = [self._loading, ended]
        while not self._loading.done():
            left = self._link.child.printed.last_activity + timeout - time.monotonic()
            if left <= 0:
                raise LoadError(f"timed out waiting for the model runner to start - {self._last_output()}")
            seconds = None if math.isinf(left) else left
            await asyncio.wait(signs, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not self._loading.done():
                kind = InsufficientMemory if ended.result().no_memory else RunnerCrashed
                raise kind(f"the model runner process has terminated: {ended.result().cause}")
        outcome = self._loading.result()
        if isinstance(outcome, wire.LoadFailed):
            raise from_code(outcome.code, outcome.message, outcome.status)
        self.loaded = outcome

    def _last_output(self) -> str:
        return self._link.child.printed.last_line() or "it printed nothing"

    async def _watch(self) -> None:
        """Kill a runner that is stopped or hangs. It counts checks, so that a stall of this loop does not matter."""
        silent = 0
        while self._pending:
            self._message_seen = False
            await asyncio.sleep(TICK)
            silent = 0 if self._message_seen else silent + 1
            if silent and silent % PING_AFTER == 0:
                self._link.send(wire.Ping())
            if silent >= DEAD_AFTER:
                self._link.kill(f"it did not answer for {DEAD_AFTER * TICK:.0f} s")
                return


Launch = Callable[[wire.EngineConfig, float], Awaitable[Runner]]
"""``Runner.start`` or a substitute: takes the EngineConfig and the timeout in seconds, returns the runner."""
