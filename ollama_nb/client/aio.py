"""The asynchronous API: the methods of ``Ollama`` and ``ChatSession`` as coroutines.

Each call runs in a thread, on a connection of its own. Cancelling a call closes its connection, which cancels the
request on the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from ollama_nb.client.answer import Answer, AnswerStream
from ollama_nb.client.chat import ChatSession
from ollama_nb.client.connect import connect as find_server
from ollama_nb.client.conversation import Message
from ollama_nb.client.ollama import Ollama
from ollama_nb.client.warn import Held, hold, warn_caller

HANG_UP_SECONDS = 1.0  # for the thread of a cancelled call to end
MAX_CALLS = 64  # at the same time; further calls wait, as they would on the server


class BlockingApi(Protocol):
    """An object whose methods can run in threads: ``twin`` gives each call a connection that ``hang_up`` closes."""

    def twin(self) -> Self: ...
    def hang_up(self) -> None: ...


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=BlockingApi)


async def connect_async(host: str | None = None, *, key: str | None = None, start: bool = True) -> AsyncOllama:
    """Find a server as ``connect`` does."""
    return AsyncOllama(Ollama(await asyncio.to_thread(find_server, host, key=key, start=start)))


class CallThreads:
    """Runs blocking calls in threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="ollama-nb-call")

    async def run(self, call: Callable[[], R], hang_up: Callable[[], None]) -> R:
        """The result of ``call``. When the caller is cancelled, ``hang_up`` ends it; a call that waits is removed."""
        held: Held = []
        job = self._threads.submit(hold, call, held)
        running = asyncio.wrap_future(job)
        try:
            found = await asyncio.shield(running)
        except asyncio.CancelledError:
            if not job.cancel():
                hang_up()
                # Functions that a model called may run on: they cannot be stopped, so the caller does not wait longer.
                await asyncio.wait({running}, timeout=HANG_UP_SECONDS)
            if running.done() and not running.cancelled():
                running.exception()  # mark the error of the closed connection as retrieved
            running.cancel()
            raise
        for message, category in held:
            warn_caller(message, category)
        return found


class AsyncWrapper(Generic[S]):
    """The base of the asynchronous classes. ``sync`` is the blocking object."""

    def __init__(self, sync: S, calls: CallThreads | None = None) -> None:
        self.sync, self._calls = sync, calls or CallThreads()

    def __repr__(self) -> str:
        return f"Async{self.sync!r}"


def _awaited(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[AsyncWrapper[S], P], Coroutine[Any, Any, R]]:
    @wraps(method)
    async def run(self: AsyncWrapper[S], /, *args: P.args, **kwargs: P.kwargs) -> R:
        own = self.sync.twin()
        return await self._calls.run(partial(method, own, *args, **kwargs), own.hang_up)

    return run


def _streamed(
    method: Callable[Concatenate[S, P], AnswerStream],
) -> Callable[Concatenate[AsyncWrapper[S], P], Coroutine[Any, Any, AsyncAnswerStream]]:
    @wraps(method)
    async def run(self: AsyncWrapper[S], /, *args: P.args, **kwargs: P.kwargs) -> AsyncAnswerStream:
        own = self.sync.twin()
        pieces = await self._calls.run(partial(method, own, *args, **kwargs), own.hang_up)
        return AsyncAnswerStream(pieces, self._calls)

    return run


class AsyncOllama(AsyncWrapper[Ollama]):
    """``Ollama`` with coroutines."""

    ask = _awaited(Ollama.ask)
    stream = _streamed(Ollama.stream)
    tokens = _awaited(Ollama.tokens)
    detokenize = _awaited(Ollama.detokenize)
    embed = _awaited(Ollama.embed)
    rerank = _awaited(Ollama.rerank)
    batches = _awaited(Ollama.batches)
    cancel_batch = _awaited(Ollama.cancel_batch)

    def chat_session(self, model: str, **keywords: Any) -> AsyncChatSession:
        """A conversation with one model. Await each answer before the next question."""
        return AsyncChatSession(self.sync.chat_session(model, **keywords), self._calls)


class AsyncChatSession(AsyncWrapper[ChatSession]):
    """``ChatSession`` with coroutines."""

    ask = _awaited(ChatSession.ask)
    stream = _streamed(ChatSession.stream)

    @property
    def messages(self) -> list[Message]:
        return self.sync.messages


class AsyncAnswerStream(AsyncIterator[str]):
    """The pieces of an answer's text, for ``async for``; ``answer`` is what has arrived so far."""

    def __init__(self, pieces: AnswerStream, calls: CallThreads) -> None:
        self._pieces, self._calls = pieces, calls

    async def __anext__(self) -> str:
        piece: str | None = await self._calls.run(partial(next, self._pieces, None), self._pieces.close)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Cancel the request."""
        self._pieces.close()  # does not block

    @property
    def answer(self) -> Answer:
        return self._pieces.answer
