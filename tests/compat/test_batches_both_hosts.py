"""Batches of real requests to real models in both hosts, and servers that are killed in the middle of one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import RunningServer, clean_env, jupyter, runtime_info, standalone, started, until

pytestmark = pytest.mark.model
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
GREEDY = {"temperature": 0, "num_thread": 1, "draft_num_predict": 0}
STORY = {"model": "stories", "prompt": "Once upon a time", "raw": True, "max_tokens": 12, **GREEDY}


class Client:
    """Files and batches of one server, over plain HTTP."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    def ask(self, method: str, path: str, **fields: Any) -> httpx.Response:
        url, headers = f"{self.server.url}{path}", self.server.headers
        return httpx.request(method, url, headers=headers, timeout=60, trust_env=False, **fields)

    def post(self, path: str, **fields: Any) -> Any:
        return self.ask("POST", path, **fields).json()

    def create(self, endpoint: str, *lines: Any, **fields: Any) -> str:
        """Upload lines, each a body or a text, and create a batch from them."""
        content = "\n".join(
            one if isinstance(one, str) else json.dumps(request(endpoint, f"第{n}行", one), ensure_ascii=False)
            for n, one in enumerate(lines, 1)
        )
        files = {"file": ("请求.jsonl", content.encode())}
        file = self.post("/v1/files", data={"purpose": "batch"}, files=files)
        body = {"input_file_id": file["id"], "endpoint": endpoint, **fields}
        return str(self.post("/v1/batches", json=body)["id"])

    def batch(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/v1/batches/{id}").json()
        return found

    def until(self, id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        until(self.server, lambda: condition(self.batch(id)))
        return self.batch(id)

    def results(self, file: str | None) -> list[dict[str, Any]]:
        text = self.ask("GET", f"/v1/files/{file}/content").text if file else ""
        return [json.loads(line) for line in text.splitlines()]


def request(endpoint: str, custom_id: str, body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}


def ended(batch: dict[str, Any]) -> bool:
    return batch["status"] in ("completed", "failed", "cancelled", "expired")


def add_models(server: RunningServer, models: Path) -> None:
    client = Client(server)
    for name, file in (("stories", "stories260K-f32.gguf"), ("minilm", "all-MiniLM-L6-v2-q8_0.gguf")):
        data = (models / file).read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        client.ask("POST", f"/api/blobs/{digest}", content=data)
        created = client.post("/api/create", json={"model": name, "files": {file: digest}, "stream": False})
        assert created == {"status": "success"}


@pytest.fixture(scope="module", params=["standalone", "jupyter"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Client]:
    home = tmp_path_factory.mktemp(request.param)
    env = {"OLLAMA_NUM_PARALLEL": "4"}
    start: AbstractContextManager[RunningServer] = (
        standalone(home, env=env) if request.param == "standalone" else jupyter(home, env=env, base_url="/hub/")
    )
    with start as server:
        if request.param == "jupyter":
            server.headers = {"Authorization": f"Bearer {runtime_info(server)['key']}"}
        add_models(server, models)
        yield Client(server)


def test_stories_and_broken_lines(client: Client) -> None:
    """Every result is that of the route itself, and in the order of the input."""
    lengths = (24, 3, 12, 6)
    bodies = [{**STORY, "max_tokens": length} for length in lengths]
    broken = ["{", json.dumps(request(CHAT, "x", STORY)), {**STORY, "stream": True}, {**STORY, "temperature": "warm"}]
    again = json.dumps(request(COMPLETIONS, "第1行", STORY), ensure_ascii=False)
    id = client.create(COMPLETIONS, *bodies[:2], *broken, again, *bodies[2:], {**STORY, "model": "none"})
    batch = client.until(id, ended)
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 10, "completed": 4, "failed": 6})
    results = client.results(batch["output_file_id"])
    assert [one["custom_id"] for one in results] == ["第1行", "第2行", "第8行", "第9行"]
    for one, body in zip(results, bodies, strict=True):
        expected = client.post(COMPLETIONS, json=body)
        assert one["response"]["body"]["choices"] == expected["choices"]
        assert one["response"]["body"]["usage"]["completion_tokens"] == body["max_tokens"]
        assert (one["response"]["status_code"], one["error"]) == (200, None)
    errors = client.results(batch["error_file_id"])
    found = [(one["line"], one["response"]["body"]["error"]["param"]) for one in errors]
    assert found == [(3, None), (4, "url"), (5, "body.stream"), (6, "temperature"), (7, "custom_id"), (10, None)]
    codes = [one["response"]["body"]["error"]["code"] for one in errors]
    assert [codes[at] for at in (0, 1, 2, 4, 5)] == ["invalid_batch_line"] * 4 + ["model_not_found"]


def test_chats_of_sprout_and_vectors(client: Client) -> None:
    messages = [{"role": "user", "content": "法国的首都是哪里？"}]
    question = {"model": "sprout", "messages": messages, "max_tokens": 40, **GREEDY}
    chat = client.create(CHAT, question)
    vectors = client.create(EMBEDDINGS, *({"model": "minilm", "input": text} for text in "猫狗"))
    (reply,) = client.results(client.until(chat, ended)["output_file_id"])
    expected = client.post(CHAT, json=question)
    assert reply["response"]["body"]["choices"] == expected["choices"]
    results = client.results(client.until(vectors, ended)["output_file_id"])
    for one, text in zip(results, "猫狗", strict=True):
        (expected,) = client.post(EMBEDDINGS, json={"model": "minilm", "input": text})["data"]
        (found,) = one["response"]["body"]["data"]
        assert found["embedding"] == pytest.approx(expected["embedding"], abs=1e-4)


def test_an_interactive_request_runs_beside_a_batch_that_is_then_cancelled(client: Client) -> None:
    endless = {**STORY, "max_tokens": 4000, "regex": "([a-z ]{2000}){2}"}
    id = client.create(COMPLETIONS, STORY, *[endless] * 20)
    client.until(id, lambda batch: batch["request_counts"]["completed"] >= 1)
    assert client.post(COMPLETIONS, json=STORY)["choices"][0]["finish_reason"] == "length"
    (entry,) = client.ask("GET", "/api/queue").json()["batches"]
    assert (entry["id"], entry["model"], entry["total"], entry["status"]) == (id, "stories", 21, "in_progress")
    assert client.post(f"/v1/batches/{id}/cancel")["status"] == "cancelling"
    batch = client.until(id, ended)
    done = batch["request_counts"]["completed"]
    assert batch["status"] == "cancelled" and 1 <= done < 21
    left = client.results(batch["error_file_id"])
    assert len(left) == 21 - done and {one["error"]["code"] for one in left} == {"batch_cancelled"}
    assert client.ask("GET", "/api/queue").json() == {"requests": []}


def test_a_killed_server_loses_only_the_requests_in_flight(tmp_path: Path, models: Path) -> None:
    """Each server is killed in the middle; the last one, a Jupyter server, completes the batch."""
    bodies = [{**STORY, "max_tokens": 200, "seed": n, "regex": "[a-z ]{500}"} for n in range(9)]
    env = {"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_NB_NEIGHBOURS": "0"}
    journal: list[list[bytes]] = []
    with standalone(tmp_path, env=env) as server:
        add_models(server, models)
        client = Client(server)
        id = client.create(COMPLETIONS, *bodies, "{")
    for more in (1, 4):
        with standalone(tmp_path, env=env) as server:
            client = Client(server)
            client.until(id, lambda batch, more=more: batch["request_counts"]["completed"] >= more)
            os.kill(server.pid, signal.SIGKILL)
            server.process.wait()
        (path,) = (tmp_path / ".ollama" / "nb" / "batches").glob("*.results")
        journal.append(path.read_bytes().splitlines())
    with jupyter(tmp_path, env=env) as server:
        server.headers = {"Authorization": f"Bearer {runtime_info(server)['key']}"}
        client = Client(server)
        batch = client.until(id, ended)
        results = client.results(batch["output_file_id"])
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 10, "completed": 9, "failed": 1})
    assert [one["custom_id"] for one in results] == [f"第{n}行" for n in range(1, 10)], "each once, in order"
    ids = {one["response"]["body"]["id"] for one in results}
    assert len(ids) == 9
    for lines in journal:
        kept = [json.loads(line) for line in lines if line.endswith(b"}")]
        assert {line["body"]["id"] for line in kept if line["status"] == 200} <= ids, "no finished line ran again"


def test_a_background_server_does_not_end_within_a_batch(tmp_path: Path, models: Path) -> None:
    """Its idle time is shorter than the batch, and the model is unloaded after each request."""
    with standalone(tmp_path) as server:
        add_models(server, models)
        body = {**STORY, "max_tokens": 300, "keep_alive": 0, "regex": "[a-z ]{800}"}
        id = Client(server).create(COMPLETIONS, *[body] * 3)
    command = [sys.executable, "-P", "-m", "ollama_nb.server", "--background", "--idle", "0.3"]
    with started(command, tmp_path, clean_env(tmp_path)) as (process, _):
        assert process.wait(120) == 0
    record = json.loads((tmp_path / ".ollama" / "nb" / "batches" / f"{id}.json").read_bytes())
    assert (record["status"], record["completed"]) == ("completed", 3)
