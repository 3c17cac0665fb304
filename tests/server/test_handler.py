"""The handler and its routes on a real socket, with a scripted service."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
from support.aio import in_loop
from support.fake_service import FakeService
from support.service_harness import ServiceHarness, serve_harness
from tornado import netutil

from ollama_nb.api.events import Delta, Done, Progress, Rendered, Stats
from ollama_nb.api.requests import PushRequest
from ollama_nb.errors import BadRequest, Cancelled, ModelNotFound, RunnerCrashed
from ollama_nb.server import limits, streams
from ollama_nb.server.access import KEY_REQUIRED, Keys
from ollama_nb.server.dialects import gojson
from ollama_nb.server.dialects.native import requests
from ollama_nb.server.routes import ROUTES
from ollama_nb.server.standalone import listen
from ollama_nb.server.state import ServerState

NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"
GENERATE = {"model": "m", "prompt": "p"}


class ServedService:
    """A scripted service, the server in front of it and a client."""

    def __init__(self, service: FakeService, state: ServerState, client: httpx.AsyncClient, port: int) -> None:
        self.service, self.state, self.client, self.port = service, state, client, port

    @contextlib.asynccontextmanager
    async def raw(self, data: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection on which ``data`` has been sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            await writer.drain()
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until ``condition`` is true."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.005)


def _request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@contextlib.asynccontextmanager
async def serve(root: Path, *, keys: Keys | None = None, origins: tuple[str, ...] = ()) -> AsyncIterator[ServedService]:
    service = FakeService(root / "models")
    state = ServerState(service)  # type: ignore[arg-type]
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server = listen(state, sockets, keys=keys or Keys(), origins=origins)
    port = sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=120) as client:
            yield ServedService(service, state, client, port)
    finally:
        server.stop()
        await state.drain(0)
        await server.close_all_connections()


@in_loop
async def test_root_and_version(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        reply = await h.client.get("/")
        assert (reply.text, reply.headers["content-type"]) == ("Ollama is running", "text/plain; charset=utf-8")
        head = await h.client.head("/")
        assert head.status_code == 200 and head.text == "" and head.headers["content-length"] == "17"
        version = (await h.client.get("/api/version")).json()
        assert tuple(map(int, version["version"].split("."))) >= (0, 13, 0) and version["ollama_nb"]
        assert (await h.client.get("/api/status")).json() == {"cloud": {"disabled": True, "source": "config"}}
        for path in ("/livez", "/readyz"):
            assert (await h.client.get(path)).text == "ok"


@in_loop
async def test_unknown_paths_methods_and_slashes(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        missing = await h.client.get("/api/web_search")
        assert (missing.status_code, missing.text) == (404, "404 page not found")
        assert missing.headers["content-type"] == "text/plain"
        wrong = await h.client.post("/api/tags")
        assert (wrong.status_code, wrong.text, wrong.headers["allow"]) == (405, "405 method not allowed", "HEAD, GET")
        assert (await h.client.head("/api/ps")).status_code == 405
        assert (await h.client.request("BREW", "/api/ps")).status_code == 405
        for path in ("/v1/nothing", "/api/blobs/a/b", "/API/tags", "/...", "/api/web_search/"):
            assert (await h.client.get(f"http://127.0.0.1:{h.port}{path}")).status_code == 404, path


@pytest.mark.parametrize(
    ("method", "path", "status", "location"),
    [
        ("GET", "/api/tags/?x=1", 301, "/api/tags?x=1"),
        ("HEAD", "/api/tags/", 307, "/api/tags"),
        ("POST", "/api/chat/", 307, "/api/chat"),
        ("GET", "/api/chat/", 404, None),
        ("POST", "//api/chat", 307, "/api/chat"),
        ("GET", "//api//tags//?x=%3C", 307, "/api/tags/?x=%3C"),
        ("GET", "/api/./x/../tags", 307, "/api/tags"),
        ("GET", "//evil.com/api/tags", 307, "/evil.com/api/tags"),
        ("GET", "/../../x/..", 307, "/"),
    ],
)
@in_loop
async def test_superfluous_slashes_and_dots_are_redirected(
    tmp_path: Path, method: str, path: str, status: int, location: str | None
) -> None:
    async with (
        serve(tmp_path) as h,
        h.raw(f"{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()) as (reader, _),
    ):
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        assert int(head.split()[1]) == status
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        assert headers.get("Location") == location
        if method == "GET" and location:
            assert headers["Content-Type"] == "text/html; charset=utf-8"
            assert body.startswith(f'<a href="{location}">') and body.endswith("</a>.\n\n")
        elif location:
            assert body == ""


@in_loop
async def test_replies_have_a_request_id_and_no_server_name(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for path in ("/", "/nope", "/api/chat", "/api/tags"):
            reply = await h.client.get(path)
            assert len(reply.headers["x-request-id"]) == 16
            assert "server" not in reply.headers and "etag" not in reply.headers
        kept = await h.client.get("/", headers={"X-Request-Id": "my-id_1.2"})
        assert kept.headers["x-request-id"] == "my-id_1.2"
        for bad in ("a b", "x" * 65, "a/b", ""):
            reply = await h.client.get("/", headers={"X-Request-Id": bad})
            assert reply.headers["x-request-id"] != bad


@in_loop
async def test_a_stream(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), Delta("b"), Done("stop", Stats(output_tokens=2))]
        reply = await h.client.post("/api/generate", json=GENERATE, headers={"X-Request-Id": "r1"})
        assert reply.status_code == 200 and reply.headers["content-type"] == NDJSON
        assert reply.headers["transfer-encoding"] == "chunked"
        lines = [json.loads(line) for line in reply.text.splitlines()]
        assert [line["response"] for line in lines] == ["a", "b", ""] and reply.text.endswith("}\n")
        assert lines[-1]["done"] and lines[-1]["request_id"] == "r1"
        assert h.service.asked[0].request_id == "r1"


@in_loop
async def test_not_streamed(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), Delta("b"), Done("stop", Stats(output_tokens=2))]
        reply = await h.client.post("/api/generate", json={**GENERATE, "stream": False})
        assert reply.headers["content-type"] == JSON and reply.json()["response"] == "ab"
        assert not reply.text.endswith("\n")


@pytest.mark.parametrize("event", [Done("load"), Done("unload"), Rendered("<s>hi")])
def test_replies_without_text_are_one_object(tmp_path: Path, event: Any) -> None:
    @in_loop
    async def check() -> None:
        async with serve(tmp_path) as h:
            h.service.script = [event]
            for path in ("/api/generate", "/api/chat"):
                reply = await h.client.post(path, json={"model": "m"})
                assert reply.headers["content-type"] == JSON and "content-length" in reply.headers
                assert reply.json()["done"] is isinstance(event, Done)

    check()


@in_loop
async def test_each_delta_is_sent_at_once(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        more = asyncio.Event()
        h.service.script = [Delta("a"), more.wait(), Delta("b"), Done("stop", Stats())]
        async with h.client.stream("POST", "/api/generate", json=GENERATE) as reply:
            lines = reply.aiter_lines()
            assert json.loads(await anext(lines))["response"] == "a"
            assert h.service.yielded == 1
            more.set()
            assert [json.loads(line)["response"] async for line in lines] == ["b", ""]


@in_loop
async def test_large_bodies_are_parsed_in_a_worker_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    decode, read_chat = gojson.decode, requests.read_chat

    def noted(function: Callable[[Any], Any], argument: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return function(argument)

    monkeypatch.setattr(gojson, "decode", functools.partial(noted, decode))
    monkeypatch.setattr(requests, "read_chat", functools.partial(noted, read_chat))
    async with serve(tmp_path) as h:
        h.service.script = [Done("stop", Stats())]
        for size, in_main_thread in ((limits.MAX_ON_LOOP // 2, True), (limits.MAX_ON_LOOP, False)):
            threads.clear()
            messages = [{"role": "user", "content": "x" * size}]
            reply = await h.client.post("/api/chat", json={"model": "m", "messages": messages})
            assert reply.status_code == 200 and threads == [in_main_thread] * 2
            assert h.service.asked[-1].messages[0].content == "x" * size


@pytest.mark.parametrize("stream", [True, False])
def test_errors_before_the_first_object_have_their_status(tmp_path: Path, stream: bool) -> None:
    @in_loop
    async def check() -> None:
        async with serve(tmp_path) as h:
            for error, status in (
                (ModelNotFound("model 'm' not found"), 404),
                (BadRequest("no <tag>"), 400),
                (Cancelled("request canceled"), 499),
                (RunnerCrashed("died"), 500),
            ):
                h.service.script = [error]
                reply = await h.client.post("/api/chat", json={"model": "m", "stream": stream})
                assert (reply.status_code, reply.json()) == (status, {"error": error.message, "code": error.code})
                assert reply.headers["content-type"] == "application/json; charset=utf-8"

    check()


@in_loop
async def test_an_error_in_the_middle_is_the_last_line(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), RunnerCrashed("an error was encountered")]
        reply = await h.client.post("/api/generate", json=GENERATE)
        assert reply.status_code == 200
        assert reply.text.splitlines()[1] == '{"error":"an error was encountered","code":"runner_crashed"}'
        h.service.script = [Delta("a")]
        unfinished = await h.client.post("/api/generate", json=GENERATE)
        assert '{"error":"the model\'s reply ended prematurely","code":"internal_error"}' in unfinished.text


@in_loop
async def test_an_internal_error_is_a_500_without_details(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [RuntimeError("secret path")]
        reply = await h.client.post("/api/generate", json=GENERATE)
        assert reply.status_code == 500 and "secret" not in reply.text
        assert reply.headers["x-request-id"] in reply.json()["error"] and reply.json()["code"] == "internal_error"


@in_loop
async def test_invalid_bodies(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for body, text in (
            (b"", "missing request body"),
            (b"{", "unexpected EOF"),
            (b"[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        ):
            reply = await h.client.post("/api/chat", content=body)
            assert (reply.status_code, reply.json()) == (400, {"error": text, "code": "bad_request"})
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        h.service.script = [Done("load")]
        assert (await h.client.post("/api/chat", content=b'{"MODEL":"m"}', headers=form)).json()["model"] == "m"


@in_loop
async def test_a_body_has_a_limit(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        big = b'{"model":"' + b"x" * (32 << 20) + b'"}'
        reply = await h.client.post("/api/show", content=big)
        assert reply.status_code == 413 and "more than 32 MiB" in reply.json()["error"]
        assert reply.json()["code"] == "request_too_large"


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnecting_client_cancels_the_request(tmp_path: Path, stream: bool) -> None:
    @in_loop
    async def check() -> None:
        async with serve(tmp_path) as h:
            for script in ([Delta("a"), asyncio.Event().wait()], [asyncio.Event().wait()]):
                h.service.script = script
                async with h.raw(_request("/api/generate", {**GENERATE, "stream": stream})):
                    await until(h.service.requests.queue)
                await asyncio.wait_for(h.service.closed.wait(), 60)
            await until(lambda: not h.state.busy)

    check()


@in_loop
async def test_a_slow_client_delays_its_own_stream_only(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        piece, count = "x" * 10_000, 3000
        h.service.script = [*(Delta(piece) for _ in range(count)), Done("stop", Stats())]
        sock = socket.create_connection(("127.0.0.1", h.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        sock.sendall(_request("/api/generate", GENERATE))
        seen = -1
        while seen != h.service.yielded or not seen:  # until the producer rests
            seen = h.service.yielded
            await asyncio.sleep(0.1)
        assert seen < count / 2, "the whole reply was buffered"
        assert (await h.client.get("/api/version")).status_code == 200
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 26)
        text = await reader.readuntil(b'"done":true')
        assert text.partition(b"\r\n\r\n")[2].count(b"x") == count * len(piece)
        writer.close()
        await writer.wait_closed()


@in_loop
async def test_a_client_that_stops_reading_is_dropped(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams.ReplyWriter, "write_timeout", 0.2)
        async with serve(tmp_path) as h:
            h.service.script = [*(Delta("x" * 100_000) for _ in range(300)), Done("stop", Stats())]
            async with h.raw(_request("/api/generate", GENERATE)) as (_, writer):
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await until(lambda: h.service.yielded)
                await asyncio.wait_for(h.service.closed.wait(), 60)
                assert h.service.yielded < 300


@in_loop
async def test_cancel_and_queue(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        missing = await h.client.delete("/api/requests/nope")
        assert (missing.status_code, missing.json()) == (
            404,
            {"error": 'request "nope" not found', "code": "not_found"},
        )
        h.service.script = [Delta("a"), asyncio.Event().wait()]
        async with h.client.stream("POST", "/api/chat", json={"model": "m"}, headers={"X-Request-Id": "q1"}) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            (entry,) = (await h.client.get("/api/queue")).json()["requests"]
            assert (entry["id"], entry["model"], entry["state"]) == ("q1", "m", "queued")
            assert {"position", "created_at", "prompt_tokens", "output_tokens", "tokens_per_second"} <= entry.keys()
            cancelled = await h.client.delete("/api/requests/q1")
            assert cancelled.json() == {"id": "q1", "state": "cancelled"}
            assert [json.loads(line)["done_reason"] async for line in lines] == ["cancelled"]
        await asyncio.wait_for(h.service.closed.wait(), 60)
        assert (await h.client.get("/api/queue")).json() == {"requests": []}


@in_loop
async def test_progress(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Progress("pulling manifest"), Progress("success")]
        reply = await h.client.post("/api/pull", json={"model": "pip://x", "as": "y"})
        assert reply.text == '{"status":"pulling manifest"}\n{"status":"success"}\n'
        assert h.service.asked[-1].as_ == "y"
        once = await h.client.post("/api/create", json={"model": "x", "from": "y", "stream": False})
        assert (once.text, once.headers["content-type"]) == ('{"status":"success"}', "application/json")
        h.service.script = [Progress("pulling manifest"), BadRequest("no")]
        assert (await h.client.post("/api/pull", json={"model": "x"})).text.endswith(
            '{"error":"no","code":"bad_request"}\n'
        )
        alone = await h.client.post("/api/pull", json={"model": "x", "stream": False})
        assert (alone.status_code, alone.json()) == (400, {"error": "no", "code": "bad_request"})
        h.service.script = [Progress("retrieving manifest"), Progress("success")]
        push = await h.client.post("/api/push", json={"name": "x", "insecure": True, "max_rate": 5})
        assert push.text == '{"status":"retrieving manifest"}\n{"status":"success"}\n'
        assert h.service.asked[-1] == PushRequest(model="x", insecure=True, max_rate=5, request_id=ANY)


@in_loop
async def test_copy_delete_and_the_account(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        copied = await h.client.post("/api/copy", json={"source": "a", "destination": "b"})
        deleted = await h.client.request("DELETE", "/api/delete", json={"name": "b"})
        assert (copied.status_code, copied.content, deleted.status_code, deleted.content) == (200, b"", 200, b"")
        assert h.service.asked == [("a", "b"), "b"]
        assert (await h.client.post("/api/me")).json() == {"error": "unauthorized", "code": "unauthorized"}
        assert (await h.client.post("/api/signout")).status_code == 401
        assert (await h.client.post("/api/experimental/web_search", json={})).status_code == 403


@in_loop
async def test_blobs(tmp_path: Path) -> None:
    data = b"weights" * 1_000_000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with serve(tmp_path) as h:

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 100_000):
                yield data[start : start + 100_000]

        path = f"/api/blobs/{digest}"
        assert (await h.client.head(path)).status_code == 404
        assert (await h.client.post(path, content=chunks())).status_code == 201
        assert (await h.client.head(path)).status_code == 200
        assert (await h.client.head(path.replace(":", "-"))).status_code == 200
        again = await h.client.post(path, content=data)
        assert (again.status_code, again.content) == (200, b"")
        other = f"sha256:{'0' * 64}"
        mismatch = await h.client.post(f"/api/blobs/{other}", content=data)
        assert mismatch.json()["error"] == f'digest mismatch, expected "{other}", got "{digest}"'
        bad = await h.client.post("/api/blobs/sha256:abc", content=b"x")
        assert (bad.status_code, bad.json()) == (400, {"error": "invalid digest format", "code": "bad_request"})
        assert [p.name for p in (tmp_path / "models" / "blobs").iterdir()] == [digest.replace(":", "-")]


@in_loop
async def test_an_interrupted_upload_leaves_no_file(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        head = f"POST /api/blobs/sha256:{'0' * 64} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
        blobs = tmp_path / "models" / "blobs"
        async with h.raw(head.encode() + b"x" * 5_000_000):
            await until(lambda: blobs.exists() and any(file.stat().st_size for file in blobs.iterdir()))
        await until(lambda: not any(blobs.iterdir()))


@in_loop
async def test_origins(tmp_path: Path) -> None:
    """S19: a page of a foreign origin changes no state, whatever its content type."""
    async with serve(tmp_path, origins=("https://app.example",)) as h:
        evil = {"Origin": "http://evil.com", "Content-Type": "text/plain"}
        for method, path in (("GET", "/api/tags"), ("POST", "/api/copy"), ("OPTIONS", "/api/chat"), ("GET", "/x")):
            reply = await h.client.request(method, path, headers=evil, content=b'{"source":"a"}')
            assert (reply.status_code, reply.content) == (403, b"")
        assert h.service.asked == []
        for origin in ("http://localhost:3000", "https://app.example"):
            reply = await h.client.get("/api/tags", headers={"Origin": origin})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin)
            preflight = await h.client.options("/nowhere", headers={"Origin": origin})
            assert (preflight.status_code, preflight.content) == (204, b"")
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        assert (await h.client.get("/api/tags", headers={"Origin": ""})).status_code == 200
        same = await h.client.get("/api/tags", headers={"Origin": f"http://127.0.0.1:{h.port}"})
        assert same.status_code == 200 and "access-control-allow-origin" not in same.headers


@in_loop
async def test_hosts(tmp_path: Path) -> None:
    """S18: requests with foreign, local and repeated Host headers."""
    async with serve(tmp_path) as h:
        for host in ("evil.com", "localhost.evil.com", "8.8.8.8"):
            for path in ("/api/tags", "/nope"):
                reply = await h.client.get(path, headers={"Host": host})
                assert (reply.status_code, reply.content) == (403, b"")
        assert (await h.client.get("/api/tags", headers={"Host": "box.local:1"})).status_code == 200
        assert (await h.client.options("/api/tags", headers={"Host": "localhost"})).status_code == 204
        assert (await h.client.options("/api/tags")).status_code == 405
        doubled = b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n"
        async with h.raw(doubled) as (reader, _):
            assert (await reader.readline()).split()[1] in (b"400", b"403")


@in_loop
async def test_every_route_and_method_needs_the_key(tmp_path: Path) -> None:
    """S20: every route, method and kind of wrong key."""
    async with serve(tmp_path, keys=Keys("secret")) as h:
        for pattern in (*ROUTES, "/nope"):
            path = pattern.replace("([^/]+)", "x")
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
                    reply = await h.client.request(method, path, headers=headers)
                    assert reply.status_code == 401, (method, path)
                    if method != "HEAD":
                        error = reply.json()["error"]
                        assert (error["message"] if isinstance(error, dict) else error) == KEY_REQUIRED
        assert (await h.client.get("/?token=secret")).status_code == 401
        for headers in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert (await h.client.get("/", headers=headers)).status_code == 200
        preflight = await h.client.options("/", headers={"Origin": "http://localhost:1"})
        assert preflight.status_code == 204


@in_loop
async def test_there_are_no_debugging_routes(tmp_path: Path) -> None:
    """S28: no path of profilers, debuggers and consoles answers."""
    async with serve(tmp_path) as h:
        for path in ("/debug", "/debug/pprof/", "/debug/vars", "/console", "/_debug", "/api/debug", "/heap", "/trace"):
            for method in ("GET", "POST"):
                reply = await h.client.request(method, path)
                assert (reply.status_code, reply.text) == (404, "404 page not found"), path


@in_loop
async def test_clients_without_a_key_cannot_send_a_large_body(tmp_path: Path) -> None:
    """S13: a body is not read before its sender is admitted."""
    async with serve(tmp_path, keys=Keys("secret")) as h:
        head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n"
        async with h.raw(head) as (reader, _):
            assert b" 401 " in await reader.readline()
        small = await h.client.post("/api/chat", content=b"x" * 100_000)
        assert small.status_code == 401


@in_loop
async def test_draining(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), asyncio.Event().wait()]
        async with h.client.stream("POST", "/api/generate", json=GENERATE) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            drained = asyncio.ensure_future(h.state.drain(0.05))
            await asyncio.sleep(0)
            refused = await h.client.get("/api/tags")
            ending = {"error": "server is shutting down", "code": "shutting_down"}
            assert (refused.status_code, refused.json()) == (503, ending)
            assert [json.loads(line) async for line in lines] == [ending]
            await drained


@in_loop
async def test_requests_on_one_connection_follow_each_other(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), Done("stop", Stats())]
        request = _request("/api/generate", {**GENERATE, "stream": False})
        async with h.raw(request + request) as (reader, _):
            for _turn in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length))["response"] == "a"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        (
            "qwen3",
            '<tool_call>\n{"name": "say", "arguments": {"text": "a </tool_call> b"}}\n</tool_call>',
            "a </tool_call> b",
        ),
        ("qwen3-coder", "<tool_call>\n<function=say>\n<parameter=text>\n你好\n</function>\n</tool_call>", "你好"),
    ],
)
@in_loop
async def test_calls_with_tags_in_arguments_or_without_closing_tags(
    tmp_path: Path, parser: str, text: str, expected: str, stream: bool
) -> None:
    say = {"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
    body = {
        "model": "m", "stream": stream, "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function", "function": say}],
    }  # fmt: skip
    harness = ServiceHarness(tmp_path)
    async with serve_harness(harness) as client:
        harness.make("m", template="{{ .Tools }}{{ .Prompt }}", parser=parser)
        harness.pool.runner.script = lambda prompt, format: (text[:20], text[20:])
        lines = (await client.post("/api/chat", json=body)).text.splitlines()
        calls = [call for line in lines for call in json.loads(line)["message"].get("tool_calls", ())]
        assert [call["function"]["arguments"] for call in calls] == [{"text": expected}]
        reply = (await client.post("/v1/chat/completions", json=body)).text
    if not stream:
        made = json.loads(reply)["choices"][0]["message"]["tool_calls"]
        assert [json.loads(call["function"]["arguments"]) for call in made] == [{"text": expected}]
    else:
        chunks = [json.loads(line[6:]) for line in reply.splitlines() if line.startswith("data: {")]
        parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
        assert json.loads("".join(part["function"]["arguments"] for part in parts)) == {"text": expected}
