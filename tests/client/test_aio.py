"""The asynchronous API: concurrent questions, and cancellation that reaches the server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from support.fake_servers import Answer, ScriptedServer, ndjson, ok, until_hung_up

from ollama_nb.client import aio
from ollama_nb.client.aio import AsyncOllama, connect_async
from ollama_nb.client.client import Client
from ollama_nb.client.ollama import Ollama
from ollama_nb.errors import BadRequest


@pytest.fixture
def ollama(server: ScriptedServer) -> AsyncOllama:
    return AsyncOllama(Ollama(Client(server.url)))


def reply(text: str) -> dict[str, Any]:
    return {"response": text, "message": {"role": "assistant", "content": text}, "done": True, "done_reason": "stop"}


def test_questions_run_at_the_same_time(server: ScriptedServer, ollama: AsyncOllama) -> None:
    together = threading.Barrier(8)

    def answer(request: Any) -> Answer:
        together.wait(60)  # no answer before all requests have arrived
        return ok(reply(request.json["prompt"].upper()))

    server.routes["POST /api/generate"] = answer

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(ollama.ask("m", letter) for letter in "abcdefgh"))

    assert asyncio.run(ask_all()) == [*"ABCDEFGH"]


def test_a_cancelled_question_closes_its_connection(server: ScriptedServer, ollama: AsyncOllama) -> None:
    asked = threading.Event()

    def more() -> dict[str, Any]:
        asked.set()
        return {"response": "x", "done": False}

    server.routes["POST /api/generate"] = lambda request: Answer(200, until_hung_up([], more))

    async def cancel() -> None:
        task = asyncio.create_task(ollama.ask("m", "For ever?"))
        await asyncio.to_thread(asked.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert server.hung_up.wait(60)


def test_other_questions_continue_when_one_is_cancelled(server: ScriptedServer, ollama: AsyncOllama) -> None:
    first = threading.Event()

    def answer(request: Any) -> Answer:
        if request.json["prompt"] == "stop":
            first.set()
            return Answer(200, until_hung_up([], lambda: {"response": "x", "done": False}))
        assert server.hung_up.wait(60)
        return ok(reply("fine"))

    server.routes["POST /api/generate"] = answer

    async def run() -> Any:
        stopped, other = asyncio.create_task(ollama.ask("m", "stop")), asyncio.create_task(ollama.ask("m", "go on"))
        await asyncio.to_thread(first.wait, 30)
        stopped.cancel()
        return await other

    assert asyncio.run(run()) == "fine"


def test_streams_and_conversations(server: ScriptedServer, ollama: AsyncOllama) -> None:
    server.routes["POST /api/generate"] = ndjson({"response": "Bl", "done": False}, reply("ue"))
    server.routes["POST /api/chat"] = ok(reply("Hi."))

    async def run() -> None:
        stream = await ollama.stream("m", "Sky?")
        assert [piece async for piece in stream] == ["Bl", "ue"]
        assert stream.answer == "Blue"
        chat = ollama.chat_session("m", system="Be short.")
        assert await chat.ask("Hello") == "Hi."
        server.routes["POST /api/chat"] = ndjson(reply("Bye."))
        assert [piece async for piece in await chat.stream("Good bye")] == ["Bye."]
        assert [message["content"] for message in chat.messages] == ["Hello", "Hi.", "Good bye", "Bye."]

    asyncio.run(run())


def test_a_cancelled_question_does_not_wait_for_others(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that waits for a thread ends at once, and is never sent."""
    monkeypatch.setattr(aio, "MAX_CALLS", 1)
    ollama, asked, go_on = AsyncOllama(Ollama(Client(server.url))), threading.Event(), threading.Event()

    def answer(request: Any) -> Answer:
        asked.set()
        go_on.wait(60)
        return ok(reply("A"))

    server.routes["POST /api/generate"] = answer

    async def run() -> None:
        first = asyncio.create_task(ollama.ask("m", "first"))
        await asyncio.to_thread(asked.wait, 30)
        second = asyncio.create_task(ollama.ask("m", "second"))
        await asyncio.sleep(0.05)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        go_on.set()
        assert await first == "A"

    asyncio.run(run())
    assert [body["prompt"] for body in server.asked("POST /api/generate")] == ["first"]


def test_a_stream_can_be_left_early(server: ScriptedServer, ollama: AsyncOllama) -> None:
    server.routes["POST /api/generate"] = lambda request: Answer(
        200, until_hung_up([{"response": "x", "done": False}], lambda: {"response": "y", "done": False})
    )

    async def run() -> None:
        stream = await ollama.stream("m", "For ever?")
        assert await anext(stream) == "x"
        await stream.aclose()

    asyncio.run(run())
    assert server.hung_up.wait(60)


def test_errors_are_raised_and_connect_async_finds_the_same_server(server: ScriptedServer, home: Any) -> None:
    async def run() -> None:
        found = await connect_async(server.url)
        assert repr(found) == f"AsyncOllama('{server.url}')"
        with pytest.raises(BadRequest, match="did you mean"):
            await found.ask("m", "Sky?", temprature=0)

    asyncio.run(run())
