"""Servers of one user share loaded models: a request is relayed to the one that has the model, with a fallback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from support.servers import RunningServer, clean_env, standalone, started, until
from support.service_harness import MODELS

from ollama_nb import Client, runtime
from ollama_nb.client.files import file_digest

pytestmark = pytest.mark.model

ENDLESS = {"num_predict": -1, "temperature": 2, "top_k": 100, "top_p": 1, "logit_bias": {"<s>": -100, "</s>": -100}}
BACKGROUND = [
    sys.executable, "-P", "-c",
    "import sys; from ollama_nb.server import neighbours, __main__ as program; "
    "neighbours.ASK_SECONDS = 60.0; sys.exit(program.main())",
    "--background",
]  # fmt: skip
"""A background server with long timeouts for its neighbours, for slow machines."""


@contextlib.contextmanager
def background(home: Path, **env: str) -> Iterator[tuple[RunningServer, Client]]:
    """A background server and its client."""
    with started(BACKGROUND, home, clean_env(home, **env)) as (process, log):
        server = RunningServer("", process, home, log)
        file = home / ".ollama" / "nb" / "server.json"
        until(server, file.exists)
        found = json.loads(file.read_bytes())
        yield server, Client(found["url"], found["key"])


def http_of(client: Client) -> httpx.Client:
    """Plain HTTP to the server of a client."""
    headers = {"Authorization": f"Bearer {client.key}"}
    return httpx.Client(base_url=client.url, headers=headers, timeout=120, trust_env=False)


def make_tiny(client: Client) -> None:
    file = MODELS / "stories260K-q8_0.gguf"
    digest = file_digest(file)
    with file.open("rb") as opened:
        client.upload_blob(digest, opened, file.stat().st_size)
    list(client.create("tiny", files={file.name: digest}))


@pytest.fixture
def first(tmp_path: Path) -> Iterator[tuple[RunningServer, Client]]:
    """A server that has loaded the model."""
    with standalone(tmp_path) as server:
        client = Client(server.url)
        make_tiny(client)
        client.generate("tiny", stream=False)
        yield server, client


def loaded(client: Client) -> list[str]:
    return [model["name"] for model in client.ps()["models"]]


def waited(condition: Callable[[], Any]) -> Any:
    while not (found := condition()):
        pass
    return found


def test_a_model_loaded_by_a_neighbour_is_not_loaded_again(tmp_path: Path, first: tuple[RunningServer, Client]) -> None:
    _, one = first
    with background(tmp_path) as (_, two):
        for body in ({"prompt": "Once upon"}, {"prompt": ""}):
            options = {"temperature": 0, "num_predict": 8}
            direct = one.generate("tiny", stream=False, options=options, **body)
            passed = two.generate("tiny:latest", stream=False, options=options, **body)
            assert (passed["model"], passed["response"]) == ("tiny:latest", direct["response"])
        messages = [{"role": "user", "content": "Once upon"}]
        chunks = list(two.chat("tiny", messages, options=options))
        assert len(chunks) > 2 and chunks[-1]["done"] and chunks[-1]["eval_count"] == 8
        assert two.embed("tiny", ["Once", "upon"])["embeddings"] == one.embed("tiny", ["Once", "upon"])["embeddings"]
        assert (loaded(one), loaded(two)) == (["tiny:latest"], [])
        # Errors of a request are the neighbour's; a model that only this server has is not relayed.
        with pytest.raises(Exception, match="does not support thinking"):
            two.chat("tiny", messages, think=True, stream=False)
        two.generate("tiny", stream=False, keep_alive=0)
        assert loaded(one) == ["tiny:latest"]
        # Asked by a neighbour, it does not ask around: no request goes in circles.
        forwarded = two.twin({"X-Ollama-Forwarded": "1"})
        forwarded.generate("tiny", stream=False)
        assert loaded(two) == ["tiny:latest"]


def test_disconnecting_and_cancelling_end_the_request_of_the_neighbour(
    tmp_path: Path, first: tuple[RunningServer, Client]
) -> None:
    _, one = first
    with background(tmp_path) as (_, two):
        stream = two.generate("tiny", "Once", options=ENDLESS)
        next(stream)
        entries = [client.queue()["requests"] for client in (one, two)]
        assert [[entry["id"] for entry in found] for found in entries] == [[stream.request_id]] * 2
        assert entries[1][0]["state"] == "generating" and entries[1][0]["model"] == "tiny"
        stream.close()
        waited(lambda: not one.queue()["requests"] and not two.queue()["requests"])
        stream = two.generate("tiny", "Once", options=ENDLESS)
        next(stream)
        assert two.cancel(stream.request_id)
        assert list(stream)[-1]["done_reason"] == "cancelled"
        waited(lambda: not one.queue()["requests"] and not two.queue()["requests"])


def test_a_killed_neighbour_is_an_error_and_then_not_used(tmp_path: Path, first: tuple[RunningServer, Client]) -> None:
    server, _ = first
    with background(tmp_path) as (_, two):
        stream = two.generate("tiny", "Once", options=ENDLESS)
        next(stream)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(Exception, match="which has the model loaded, closed the connection: repeat the request"):
            list(stream)
        answer = two.generate("tiny", "Once", stream=False, options={"num_predict": 2})
        assert answer["done"] and loaded(two) == ["tiny:latest"]


def test_requests_of_openai_are_relayed(tmp_path: Path, first: tuple[RunningServer, Client]) -> None:
    server, one = first
    greedy = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    with background(tmp_path) as (_, two), http_of(two) as http:
        chat = {**greedy, "messages": [{"role": "user", "content": "Once upon"}]}
        text = {**greedy, "prompt": ["Once upon", "The"], "raw": True}
        headers = {"X-Timings": "true", "Content-Encoding": "zstd"}
        for path, body in (("chat/completions", chat), ("completions", text), ("embeddings", {**greedy, "input": "a"})):
            relayed = http.post(f"/v1/{path}", content=zstandard.compress(json.dumps(body).encode()), headers=headers)
            direct = httpx.post(f"{server.url}/v1/{path}", json=body, trust_env=False)
            key = "data" if path == "embeddings" else "choices"
            assert relayed.json()[key] == direct.json()[key]
            assert ("timings" in relayed.json()) is (path != "embeddings")
            refused = http.post(f"/v1/{path}", json={**body, "options": {"num_ctx": "many"}})
            assert refused.json()["error"]["code"] == "bad_request"
        assert (loaded(one), loaded(two)) == (["tiny:latest"], [])
        streamed = http.post("/v1/completions", json={**text, "stream": True})
        assert streamed.headers["content-type"] == "text/event-stream"
        assert streamed.text.endswith("\n\ndata: [DONE]\n\n")
        endless = {"model": "tiny", "prompt": "Once", "raw": True, "stream": True, "options": ENDLESS}
        with http.stream("POST", "/v1/completions", json=endless) as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGKILL)
            *_, last, done = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "relay_broken" and done == "data: [DONE]"


def test_a_conversation_of_responses_moves_between_servers(tmp_path: Path, first: tuple[RunningServer, Client]) -> None:
    server, one = first
    greedy = {"model": "tiny", "temperature": 0, "max_output_tokens": 8}
    endless = {"model": "tiny", "input": "Once", "options": ENDLESS, "truncation": "auto"}
    with background(tmp_path) as (_, two), http_of(two) as http:

        def status(response_id: str) -> str:
            return str(http.get(f"/v1/responses/{response_id}").json()["status"])

        begun = http.post("/v1/responses", json={**greedy, "input": "Once upon"}).json()
        more = {**greedy, "input": "很久", "previous_response_id": begun["id"]}
        replies = [
            http.post("/v1/responses", json=more).json(),
            httpx.post(f"{server.url}/v1/responses", json=more, trust_env=False).json(),
        ]
        assert replies[0]["output"][0]["content"] == replies[1]["output"][0]["content"]
        assert (loaded(one), loaded(two)) == (["tiny:latest"], [])
        cancelled, lost = (
            http.post("/v1/responses", json={**endless, "background": True}).json()["id"] for _ in range(2)
        )
        waited(lambda: status(cancelled) == status(lost) == "in_progress")
        assert http.post(f"/v1/responses/{cancelled}/cancel").json()["status"] == "cancelled"
        waited(lambda: len(one.queue()["requests"]) == 1)  # the server that generates it has stopped
        with http.stream("POST", "/v1/responses", json={**endless, "stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGKILL)
            last = [line for line in lines if line.startswith("data: ")][-1]
        assert json.loads(last.removeprefix("data: "))["code"] == "relay_broken"
        assert status(lost) == "failed"
        assert http.post("/v1/responses", json=more).json()["output"] and loaded(two) == ["tiny:latest"]


def test_relaying_can_be_disabled(tmp_path: Path, first: tuple[RunningServer, Client]) -> None:
    with background(tmp_path, OLLAMA_NB_NEIGHBOURS="0") as (_, two):
        two.generate("tiny", stream=False)
        assert loaded(two) == ["tiny:latest"]


class FaultyServer(BaseHTTPRequestHandler):
    """A server that lists the model as loaded, and fails in the way that ``fault`` names."""

    protocol_version = "HTTP/1.1"
    fault, digest, asked = "", "", 0

    def do_HEAD(self) -> None:
        self.send_response(204)
        self.send_header(runtime.PROOF, runtime.prove(runtime.key_hash("k"), self.headers[runtime.CHALLENGE]))
        self.end_headers()

    def do_GET(self) -> None:
        body = json.dumps({"models": [{"name": "tiny:latest", "digest": self.digest}]}).encode()
        self._answer(200, "application/json", body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        self.close_connection = True
        if self.fault == "busy":
            self._answer(503, "application/json", b'{"error":"server busy"}')
        elif self.fault == "half a head":
            self.wfile.write(b"HTTP/1.1 200 O")
        elif self.fault == "half a body":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
        elif self.fault == "no line":
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}"
            )

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_requests_that_a_neighbour_fails_before_the_first_byte_are_handled_here(tmp_path: Path) -> None:
    with background(tmp_path) as (_, client), ThreadingHTTPServer(("127.0.0.1", 0), FaultyServer) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        make_tiny(client)
        FaultyServer.digest = client.list()["models"][0]["digest"]
        url = f"http://127.0.0.1:{other.server_address[1]}"
        write(tmp_path / ".ollama" / "nb" / "serve-1.json", url=url)
        for number, fault in enumerate(("busy", "half a head", "half a body", "no line")):
            FaultyServer.fault = fault
            answer = list(client.generate("tiny", "Once", options={"num_predict": 2}))
            assert answer[-1]["eval_count"] == 2, fault
            assert FaultyServer.asked == number + 1
            client.generate("tiny", stream=False, keep_alive=0)
            waited(lambda: not loaded(client))
        other.shutdown()


def write(path: Path, mode: int = 0o600, **parts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": "", "key": "k", "pid": os.getpid(), "build": "x", **parts}))
    path.chmod(mode)
