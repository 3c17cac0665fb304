"""The routes of OpenAI's API on a real socket, with a scripted service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support.aio import in_loop
from test_handler import ServedService, _request, serve, until

from ollama_nb.api.events import Delta, Done, Embeddings, Stats
from ollama_nb.errors import Cancelled, RunnerCrashed
from ollama_nb.server import handler
from ollama_nb.server.access import Keys

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "天"}]},
    COMPLETIONS: {"model": "m", "prompt": "天"},
    EMBEDDINGS: {"model": "m", "input": "天"},
}
STATS = Stats(prompt_tokens=1, output_tokens=1)


def compressed(body: Any) -> bytes:
    return zstandard.compress(json.dumps(body).encode())


def error_of(reply: Any) -> dict[str, Any]:
    assert reply.headers["content-type"] == "application/json"
    found: dict[str, Any] = reply.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


class Forever:
    """Can be awaited by several requests, which then wait until they are closed."""

    def __await__(self) -> Any:
        return asyncio.Event().wait().__await__()


@in_loop
async def test_content_types_and_headers(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("天"), Done("stop", STATS)]
        for path in (CHAT, COMPLETIONS):
            headers = {"X-Request-Id": "r1", "X-Ollama-Strict": "1", "X-Ollama-Run-Record": "1", "X-Timings": "true"}
            whole = await h.client.post(path, json=BODIES[path], headers=headers)
            assert whole.headers["content-type"] == "application/json" and whole.text.endswith("}\n")
            assert whole.headers["x-request-id"] == "r1" and whole.json()["timings"]["predicted_n"] == 1
            request = h.service.asked[-1]
            assert (request.request_id, request.strict, request.run_record) == ("r1", True, True)
            streamed = await h.client.post(path, json={**BODIES[path], "stream": True})
            assert streamed.headers["content-type"] == "text/event-stream"
            assert streamed.text.startswith("data: {") and streamed.text.endswith("\n\ndata: [DONE]\n\n")
            assert "timings" not in streamed.text and not h.service.asked[-1].strict
        h.service.embeddings_result = Embeddings(((0.5,),), STATS)
        reply = await h.client.post(EMBEDDINGS, json={**BODIES[EMBEDDINGS], "bogus": 1})
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["warnings"] == ['ignored field "bogus"']


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, "/v1/rerank", "/v1/score"])
def test_malformed_bodies(tmp_path: Path, path: str) -> None:
    @in_loop
    async def check() -> None:
        async with serve(tmp_path) as h:
            for body, text in (
                (b"", "EOF"),
                (b" \n", "EOF"),
                (b"{", "unexpected EOF"),
                (b"x", "invalid character 'x' looking for beginning of value"),
                (b'{"model":5}', "json: cannot unmarshal number into Go struct field"),
                (b"[]", "json: cannot unmarshal array into Go value of type "),
            ):
                reply = await h.client.post(path, content=body)
                found = error_of(reply)
                assert reply.status_code == 400 and found["message"].startswith(text), body
                assert (found["type"], found["code"]) == ("invalid_request_error", "bad_request")
            assert h.service.asked == []

    check()


@in_loop
async def test_keys_are_checked_in_this_format(tmp_path: Path) -> None:
    async with serve(tmp_path, keys=Keys("secret")) as h:
        for path, body in BODIES.items():
            reply = await h.client.post(path, json=body)
            assert (reply.status_code, error_of(reply)["type"]) == (401, "authentication_error")
        assert error_of(await h.client.get("/v1/models"))["code"] == "unauthorized"


@in_loop
async def test_an_error_within_a_stream_is_its_last_frame(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for error, code in ((RunnerCrashed("gone"), "runner_crashed"), (Cancelled(), "cancelled")):
            for path in (CHAT, COMPLETIONS):
                h.service.script = [Delta("a"), error]
                reply = await h.client.post(path, json={**BODIES[path], "stream": True})
                *_, last, done, end = reply.text.split("\n\n")
                assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
                assert (reply.status_code, done, end) == (200, "data: [DONE]", "")
                whole = await h.client.post(path, json=BODIES[path])
                assert (whole.status_code, error_of(whole)["code"]) == (error.status, code)


@in_loop
async def test_a_cancelled_request_is_an_error(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), Forever()]
        for stream in (True, False):
            body = {**BODIES[CHAT], "stream": stream}
            running = asyncio.ensure_future(h.client.post(CHAT, json=body, headers={"X-Request-Id": "r"}))
            await until(lambda: h.service.requests.queue())
            await h.client.delete("/api/requests/r")
            reply = await running
            assert '"code":"cancelled"' in reply.text and reply.status_code == (200 if stream else 499)


async def _disconnect_in(h: ServedService, path: str, body: dict[str, Any]) -> None:
    h.service.script = [Delta("a"), Forever()]
    async with h.raw(_request(path, {**body, "stream": True})) as (reader, _):
        await reader.readuntil(b'"a"')
    await asyncio.wait_for(h.service.closed.wait(), 10)
    await until(lambda: not h.service.requests.queue())


@in_loop
async def test_a_client_that_disconnects_ends_the_work(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for path in (CHAT, COMPLETIONS):
            await _disconnect_in(h, path, BODIES[path])
        await _disconnect_in(h, COMPLETIONS, {"model": "m", "prompt": ["a"] * 20})


@in_loop
async def test_a_waiting_stream_gets_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "KEEP_ALIVE", 0.05)
    async with serve(tmp_path) as h:
        go_on = asyncio.Event()
        h.service.script = [go_on.wait(), Delta("天"), Done("stop", STATS)]
        async with h.client.stream("POST", CHAT, json={**BODIES[CHAT], "stream": True}) as reply:
            pieces = reply.aiter_text()
            assert await anext(pieces) == ": keep-alive\n\n"
            go_on.set()
            assert "天" in "".join([piece async for piece in pieces])


@pytest.mark.parametrize("path", list(BODIES))
def test_compressed_bodies(tmp_path: Path, path: str) -> None:
    @in_loop
    async def check() -> None:
        async with serve(tmp_path) as h:
            h.service.script = [Delta("a"), Done("stop", STATS)]
            zstd = {"Content-Encoding": "zstd"}
            body = compressed(BODIES[path])
            reply = await h.client.post(path, content=body, headers=zstd)
            assert reply.status_code == 200 and h.service.asked[-1].model == "m"
            two_frames = zstandard.compress(b'{"model":"m",') + zstandard.compress(
                json.dumps(BODIES[path]).encode()[1:]
            )
            assert (await h.client.post(path, content=two_frames, headers=zstd)).status_code == 200
            for wrong, text in (
                (b"no", "the zstd request body cannot be decompressed"),
                (body[: len(body) // 2], "EOF"),
                (b"", "EOF"),
            ):
                reply = await h.client.post(path, content=wrong, headers=zstd)
                assert reply.status_code == 400 and text in error_of(reply)["message"]
            reply = await h.client.post(path, content=body, headers={"Content-Encoding": "gzip"})
            assert error_of(reply)["message"].startswith("Content-Encoding gzip is not supported")
            plain = await h.client.post(path, json=BODIES[path], headers={"Content-Encoding": "identity"})
            assert plain.status_code == 200

    check()


@in_loop
async def test_the_size_of_a_compressed_body(tmp_path: Path) -> None:
    """S12: a small compressed body that is huge when it is decompressed."""
    """Too much data and too large a window are refused without decompressing all of it."""
    large = json.dumps({**BODIES[CHAT], "user": "a" * (20 << 20)}).encode()
    bomb = b"".join(zstandard.compress(b"0" * (16 << 20)) for _ in range(64))  # 1 GiB in 100 KB
    window = zstandard.ZstdCompressionParameters(window_log=26)
    wide = zstandard.ZstdCompressor(compression_params=window).compressobj()
    async with serve(tmp_path) as h:
        for body, text in (
            (zstandard.compress(large), "http: request body too large: more than 20 MiB decompressed"),
            (bomb, "http: request body too large: more than 20 MiB decompressed"),
            (wide.compress(large) + wide.flush(), "cannot be decompressed"),
        ):
            reply = await h.client.post(CHAT, content=body, headers={"Content-Encoding": "zstd"})
            assert reply.status_code == 400 and text in error_of(reply)["message"]
        assert h.service.asked == []
