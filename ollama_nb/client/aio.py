"""The asynchronous twins: the same methods, awaited. Each call runs in a thread, on a connection of its own.

Rule: cancelling a call hangs up its connection, so the server stops, too.
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

MOST_CALLS = 64
"""More calls than this wait for one to end; a server has fewer places anyway."""


class Blocking(Protocol):
    """What has an asynchronous twin: it can be had again with a connection of its own, and hung up."""

    def twin(self) -> Self: ...
    def hang_up(self) -> None: ...


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Blocking)


async def connect_async(host: str | None = None, *, key: str | None = None, start: bool = True) -> AsyncOllama:
    """The same server that ``connect`` finds."""
    return AsyncOllama(Ollama(await asyncio.to_thread(find_server, host, key=key, start=start)))


class Calls:
    """Runs blocking calls in threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="ollama-nb-call")

    async def run(self, call: Callable[[], R], hang_up: Callable[[], None]) -> R:
        """What ``call`` returns; a cancelled caller has ``hang_up`` end it, and waits for that."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            hang_up()
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()  # it was hung up: nobody wants to know
            raise


class Awaited(Generic[S]):
    """``sync`` is the blocking object beneath it."""

    def __init__(self, sync: S, calls: Calls | None = None) -> None:
        self.sync, self._calls = sync, calls or Calls()

    def __repr__(self) -> str:
        return f"Async{self.sync!r}"


def _awaited(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[Awaited[S], P], Coroutine[Any, Any, R]]:
    @wraps(method)
    async def run(self: Awaited[S], /, *args: P.args, **kwargs: P.kwargs) -> R:
        own = self.sync.twin()
        return await self._calls.run(partial(method, own, *args, **kwargs), own.hang_up)

    return run


def _streamed(
    method: Callable[Concatenate[S, P], AnswerStream],
) -> Callable[Concatenate[Awaited[S], P], Coroutine[Any, Any, AsyncAnswerStream]]:
    @wraps(method)
    async def run(self: Awaited[S], /, *args: P.args, **kwargs: P.kwargs) -> AsyncAnswerStream:
        own = self.sync.twin()
        pieces = await self._calls.run(partial(method, own, *args, **kwargs), own.hang_up)
        return AsyncAnswerStream(pieces, self._calls)

    return run


class AsyncOllama(Awaited[Ollama]):
    """``Ollama``, awaited."""

    ask = _awaited(Ollama.ask)
    stream = _streamed(Ollama.stream)
    tokens = _awaited(Ollama.tokens)
    detokenize = _awaited(Ollama.detokenize)
    embed = _awaited(Ollama.embed)
    rerank = _awaited(Ollama.rerank)

    def chat_session(self, model: str, **keywords: Any) -> AsyncChatSession:
        """A conversation that remembers; its questions are awaited, one at a time."""
        return AsyncChatSession(self.sync.chat_session(model, **keywords), self._calls)


class AsyncChatSession(Awaited[ChatSession]):
    """``ChatSession``, awaited."""

    ask = _awaited(ChatSession.ask)
    stream = _streamed(ChatSession.stream)

    @property
    def messages(self) -> list[Message]:
        return self.sync.messages


class AsyncAnswerStream(AsyncIterator[str]):
    """An answer that comes piece by piece, in ``async for``; ``answer`` is what has come so far, as one."""

    def __init__(self, pieces: AnswerStream, calls: Calls) -> None:
        self._pieces, self._calls = pieces, calls

    async def __anext__(self) -> str:
        piece: str | None = await self._calls.run(partial(next, self._pieces, None), self._pieces.close)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Cancel what is left."""
        await asyncio.to_thread(self._pieces.close)

    @property
    def answer(self) -> Answer:
        return self._pieces.answer
