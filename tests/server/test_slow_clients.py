"""Clients that send or read slowly, or not at all: they are disconnected, and what they use is bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path

import pytest
from server.test_handler import GENERATE, _request, serve, until
from support.aio import in_loop

from ollama_nb.api.events import Delta, Done, Stats
from ollama_nb.server import limits, state, streams

HALF = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


async def metrics(client: object) -> str:
    return (await client.get("/metrics")).text  # type: ignore[attr-defined, no-any-return]


@in_loop
async def test_a_half_sent_header_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S13: a client that sends half a header, or nothing, is disconnected."""
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.2)
    async with serve(tmp_path) as h:
        for data in (b"POST /api/generate HTTP/1.1\r\nHost: loc", b""):
            async with h.raw(data) as (reader, _):
                assert await reader.read() == b""


@in_loop
async def test_a_body_that_does_not_arrive_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S13: a body that stops, or arrives byte by byte, does not hold its connection and its memory."""
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    caplog.set_level(logging.INFO, "ollama_nb.server")
    async with serve(tmp_path) as h:
        async with h.raw(HALF + b'{"model":') as (reader, _):
            assert await reader.read() == b""
        await until(lambda: h.state.budget.used == 0)
        async with h.raw(HALF) as (reader, writer):
            ended = asyncio.ensure_future(reader.read())
            while not ended.done():  # one byte after the other
                writer.write(b" ")
                await asyncio.sleep(0.02)
        await until(lambda: h.state.budget.used == 0)
        assert caplog.text.count("POST /api/generate 408") == 2
        assert 'code="408"' in await metrics(h.client)


@in_loop
async def test_bodies_in_memory_are_limited_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODIES", 1500)
    async with serve(tmp_path) as h:
        h.service.script = [Done("stop", Stats())]
        async with h.raw(HALF + b" " * 900):
            await until(lambda: h.state.budget.used == 900)
            refused = await h.client.post("/api/generate", json={**GENERATE, "system": "x" * 900})
            assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "busy", "1")
            assert (await h.client.post("/api/generate", json=GENERATE)).status_code == 200
        await until(lambda: h.state.budget.used == 0)
        assert (await h.client.post("/api/generate", json={**GENERATE, "system": "x" * 900})).status_code == 200
        assert h.state.budget.used == 0


@in_loop
async def test_connections_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 2)
    async with serve(tmp_path) as h:
        async with h.raw(HALF), h.raw(HALF), h.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as (reader, _):
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        for _ in range(50):  # the closed ones do not count
            async with h.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as (reader, _):
                if (await reader.read()).startswith(b"HTTP/1.1 200 "):
                    return
            await asyncio.sleep(0.1)
        raise AssertionError("a closed connection still counts")


@in_loop
async def test_a_client_that_does_not_read_a_whole_reply_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F24: a reply that is sent at once waits in pieces, and only for the write timeout."""
    monkeypatch.setattr(streams.ReplyWriter, "write_timeout", 0.2)
    caplog.set_level(logging.INFO, "ollama_nb.server")
    async with serve(tmp_path) as h:
        h.service.script = [*[Delta("x" * 1_000_000)] * 30, Done("stop", Stats())]
        async with h.raw(_request("/api/generate", {**GENERATE, "stream": False})):
            await until(lambda: "POST /api/generate 499" in caplog.text)
        whole = await h.client.post("/api/generate", json={**GENERATE, "stream": False})
        assert len(whole.json()["response"]) == 30_000_000
        assert int(whole.headers["content-length"]) == len(whole.content) and whole.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_no_success(tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    """The log and metrics report 499, once, for a request whose client has left."""

    @in_loop
    async def run() -> None:
        caplog.set_level(logging.INFO, "ollama_nb.server")
        async with serve(tmp_path) as h:
            h.service.script = [Delta("x"), asyncio.Event().wait()]
            async with h.raw(_request("/api/generate", {**GENERATE, "stream": stream})):
                await until(lambda: h.service.yielded)
            await until(lambda: "POST /api/generate" in caplog.text)
            lines = re.findall(r"POST /api/generate (\d+)", caplog.text)
            text = await metrics(h.client)
            counted = re.findall(r'ollama_nb_requests_total\{[^}]*route="/api/generate"[^}]*\} (\S+)', text)
            codes = re.findall(r'ollama_nb_requests_total\{[^}]*code="(\d+)"[^}]*route="/api/generate"', text)
            assert (lines, counted, codes) == (["499"], ["1.0"], ["499"])

    run()


@in_loop
async def test_a_drain_ends_although_a_client_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F33: after the drain and the errors, connections are closed; a second signal ends both waits."""
    monkeypatch.setattr(state, "ERROR_SECONDS", 0.2)
    async with serve(tmp_path) as h:
        h.service.script = [Delta("x" * 1_000_000)] * 60
        async with h.raw(_request("/api/generate", GENERATE)), h.raw(HALF):
            await until(lambda: h.service.yielded > 3)
            draining = asyncio.ensure_future(h.state.drain(3600))
            await until(lambda: h.state.draining)
            refused = await h.client.post("/api/generate", json=GENERATE)
            assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
            assert h.state.busy == 1 and not draining.done()
            h.state.hurry()
            await asyncio.wait_for(draining, 30)
            assert h.state.busy == 0


@in_loop
async def test_large_replies_are_sent_complete(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [*[Delta("天<") for _ in range(100_000)], Done("stop", Stats())]
        body = (await h.client.post("/api/generate", json={**GENERATE, "stream": False})).content
        assert json.loads(body)["response"] == "天<" * 100_000
