"""Streams of server-sent events, whatever their dialect: keep-alives, errors before and after the first event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.aio import in_loop
from test_handler import serve

from ollama_nb.api.events import Delta, Done, Event, Stats
from ollama_nb.api.requests import ChatRequest
from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.server import handler
from ollama_nb.server.dialects.encoder import JSON, SSE, SSE_COMMENT, ErrorFormat
from ollama_nb.server.handler import OllamaHandler, Route
from ollama_nb.server.routes import ROUTES


class PlainEncoder:
    """Writes the text of each event as the data of a server-sent event."""

    whole_type, stream_type, keep_alive = JSON, SSE, SSE_COMMENT

    def is_whole(self, event: Event) -> bool:
        return False

    def start(self) -> bytes:
        return b"data: start\n\n"

    def chunk(self, event: Event) -> bytes:
        return f"data: {event.content}\n\n".encode() if isinstance(event, Delta) else b""

    def end(self) -> bytes:
        return b"data: end\n\n"

    def fail(self, error: OllamaError) -> bytes:
        return f"data: error {error.code}\n\n".encode()

    def whole(self, events: Sequence[Event]) -> bytes:
        return b"{}"


async def route(call: OllamaHandler) -> None:
    await call.send_events(call.service.chat(ChatRequest(model="m")), PlainEncoder(), stream=True)


@pytest.fixture(autouse=True)
def _plain_route(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = ErrorFormat(lambda error, _id: f"whole {error.code}".encode(), lambda error, _id: b"", "text/x-error")
    monkeypatch.setitem(ROUTES, "/plain", {"POST": Route(route, errors=errors)})


@in_loop
async def test_a_waiting_stream_gets_keep_alives_and_then_its_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "KEEP_ALIVE", 0.05)
    async with serve(tmp_path) as h:
        go_on = asyncio.Event()
        h.service.script = [go_on.wait(), Delta("天"), Done("stop", Stats())]
        async with h.client.stream("POST", "/plain", json={}) as reply:
            pieces = reply.aiter_text()
            seen = ""
            while seen.count(": keep-alive\n\n") < 2:
                seen += await anext(pieces)
            go_on.set()
            seen += "".join([piece async for piece in pieces])
        assert reply.headers["content-type"] == SSE
        assert seen.replace(": keep-alive\n\n", "") == "data: start\n\ndata: 天\n\ndata: end\n\n"
        assert seen.startswith("data: start\n\n: keep-alive\n\n")


@in_loop
async def test_an_error_before_the_first_event_has_its_own_status(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [BadRequest("no")]
        reply = await h.client.post("/plain", json={})
        assert (reply.status_code, reply.text, reply.headers["content-type"]) == (
            400, "whole bad_request", "text/x-error",
        )  # fmt: skip


@in_loop
async def test_an_error_after_a_keep_alive_or_an_event_is_part_of_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), BadRequest("no")]
        reply = await h.client.post("/plain", json={})
        assert (reply.status_code, reply.text) == (200, "data: start\n\ndata: a\n\ndata: error bad_request\n\n")

        monkeypatch.setattr(handler, "KEEP_ALIVE", 0.05)
        go_on = asyncio.Event()
        h.service.script = [go_on.wait(), BadRequest("no")]
        async with h.client.stream("POST", "/plain", json={}) as streamed:
            pieces = streamed.aiter_text()
            seen = await anext(pieces)
            go_on.set()
            seen += "".join([piece async for piece in pieces])
        assert streamed.status_code == 200
        assert seen.replace(": keep-alive\n\n", "") == "data: start\n\ndata: error bad_request\n\n"


@in_loop
async def test_a_client_that_leaves_while_it_gets_keep_alives_ends_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "KEEP_ALIVE", 0.05)
    async with serve(tmp_path) as h:
        h.service.script = [asyncio.Event().wait()]
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        writer.write(b"POST /plain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        await reader.readuntil(b": keep-alive\n\n")
        writer.close()
        await asyncio.wait_for(h.service.closed.wait(), 10)
