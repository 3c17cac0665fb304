"""Hostile requests and models over HTTP: their sender gets a clear error, other requests are not affected.

During every test another model generates a reply, which must equal the reply of an idle server.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import signal
import struct
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.models import heavy
from support.processes import until
from support.servers import RunningServer, descendants, standalone

pytestmark = pytest.mark.model
EPSILON = b"llama.attention.layer_norm_rms_epsilon"
Answer = tuple[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RunningServer]:
    with standalone(tmp_path_factory.mktemp("hostile"), env={"OLLAMA_NUM_PARALLEL": "2"}) as found:
        add(found, "stories", (models / "stories260K-f32.gguf").read_bytes())
        yield found


@pytest.fixture(scope="module")
def quiet(real_server: RunningServer) -> str:
    """The reply of sprout on an idle server."""
    return story(real_server)


@pytest.fixture(autouse=True)
def bystander(real_server: RunningServer, quiet: str) -> Iterator[None]:
    pid, heard = real_server.pid, []
    thread = threading.Thread(target=lambda: heard.append(story(real_server)))
    thread.start()
    yield
    thread.join()
    assert heard == [quiet], "another model's reply is untouched"
    assert (real_server.process.poll(), real_server.pid) == (None, pid)
    assert text(generate(real_server, "Once upon a time")).startswith(", there was"), "and the next request works"


def post(server: RunningServer, path: str, body: bytes) -> Answer:
    """Status and the lines of the reply."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=150)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **server.headers})
        reply = connection.getresponse()
        return reply.status, [json.loads(line) for line in reply.read().splitlines() if line.strip()]
    finally:
        connection.close()


def generate(server: RunningServer, prompt: str, model: str = "stories", **fields: Any) -> Answer:
    options = {"temperature": 0, "num_predict": 8, "num_thread": 1, **fields.pop("options", {})}
    request = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": options, **fields}
    return post(server, "/api/generate", json.dumps(request).encode())


def story(server: RunningServer) -> str:
    return text(generate(server, "The sky is", "sprout", options={"num_predict": 120, "num_ctx": 512}))


def text(answer: Answer) -> str:
    status, (whole,) = answer
    assert status == 200, whole
    return str(whole["response"])


def error(answer: Answer) -> tuple[int, str]:
    status, lines = answer
    return status, str(lines[-1].get("error", ""))


def add(server: RunningServer, name: str, data: bytes) -> str:
    """Create a model from a GGUF file; return the hash of the file."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("POST", f"/api/blobs/{digest}", data, {"Content-Type": "application/octet-stream"})
    assert connection.getresponse().status in (200, 201)
    connection.close()
    status, lines = post(server, "/api/create", json.dumps({"model": name, "files": {"m.gguf": digest}}).encode())
    assert (status, lines[-1]) == (200, {"status": "success"})
    return digest.removeprefix("sha256:")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("option", ["temperature", "top_k", "num_ctx"])
def test_values_that_are_not_numbers(real_server: RunningServer, option: str, value: str) -> None:
    """S30: NaN and infinities are refused."""
    body = f'{{"model":"stories","prompt":"a","stream":false,"options":{{"{option}":{value}}}}}'
    status, message = error(post(real_server, "/api/generate", body.encode()))
    assert status == 400 and message


@pytest.mark.parametrize("value", [10**40, -(10**40), 1 << 63, 3.0e38, -3.0e38])
def test_huge_numbers(real_server: RunningServer, value: float) -> None:
    """Clamped or refused by name."""
    for option in ("temperature", "top_k", "top_p", "seed", "num_keep", "num_ctx", "repeat_last_n", "repeat_penalty"):
        status, (reply,) = generate(real_server, "Once upon a time", options={option: value})
        assert status == 200 or (status == 400 and option in reply["error"]), (option, reply)


@pytest.mark.parametrize("fields", [{}, {"truncate": False}, {"shift": False}], ids=str)
def test_a_prompt_longer_than_any_context(real_server: RunningServer, fields: dict[str, bool]) -> None:
    answer = generate(real_server, "Lily saw a big red ball. " * 50_000, **fields)
    if fields:
        assert error(answer)[0] == 400 and "context" in error(answer)[1]
    else:
        assert answer[0] == 200


@pytest.mark.parametrize("prompt", [b"\xff\xfe\xc3(", b"\\ud800", b"\\udfff\\ud800", b"a\\u0000b"])
def test_bytes_that_are_not_text(real_server: RunningServer, prompt: bytes) -> None:
    body = b'{"model":"stories","stream":false,"options":{"num_predict":2},"prompt":"' + prompt + b'"}'
    status, (reply,) = post(real_server, "/api/generate", body)
    assert status == 200 or (status == 400 and reply["error"])


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_packed_body_is_not_unpacked(real_server: RunningServer, coding: str) -> None:
    """S12: compressed bodies are not decompressed on the native routes."""
    bomb = gzip.compress(bytes(64 << 20))
    connection = http.client.HTTPConnection(urlsplit(real_server.url).netloc, timeout=150)
    connection.request("POST", "/api/generate", bomb, {"Content-Encoding": coding})
    reply = connection.getresponse()
    assert (reply.status, json.loads(reply.read())["error"][:17]) == (400, "invalid character")
    connection.close()


def test_a_grammar_60000_groups_deep(real_server: RunningServer) -> None:
    grammar = "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000
    status, message = error(generate(real_server, "a", grammar=grammar))
    assert status == 400 and "64 levels deep" in message


def test_a_schema_60000_levels_deep(real_server: RunningServer) -> None:
    body = '{"model":"stories","prompt":"a","format":' + '{"items":' * 60_000 + "{}" + "}" * 60_000 + "}"
    status, message = error(post(real_server, "/api/generate", body.encode()))
    assert status == 400 and message


def test_a_schema_of_10000_properties(real_server: RunningServer) -> None:
    properties = {f"property {n}": {"type": "integer"} for n in range(10_000)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    status, message = error(generate(real_server, "a", format=schema))
    assert status == 400 and "format" in message, message


def test_a_model_that_aborts_the_loader(real_server: RunningServer, models: Path) -> None:
    """One flipped sign bit in a valid header makes llama.cpp abort the process."""
    data = bytearray((models / "stories260K-q4_0.gguf").read_bytes())
    at = data.index(struct.pack("<Q", len(EPSILON)) + EPSILON) + 8 + len(EPSILON) + 4
    data[at + 3] ^= 0x80
    add(real_server, "fatal", bytes(data))
    for _ in range(4):
        status, message = error(generate(real_server, "a", "fatal"))
        assert status == 500 and "died by SIGABRT: GGML_ASSERT" in message
        assert "/" not in message, "where llama.cpp was built is nobody's business"
    assert "is refused for" in message, "it is not tried again and again"


def test_a_runner_killed_in_prefill(real_server: RunningServer, tmp_path: Path) -> None:
    digest = add(real_server, "heavy", heavy(tmp_path / "heavy.gguf").read_bytes())
    answers: list[Answer] = []

    def ask() -> None:
        answers.append(generate(real_server, " bababa" * 7000, "heavy", options={"num_ctx": 8192}))

    request = threading.Thread(target=ask)
    request.start()
    until(lambda: "prompt" in states(real_server, "heavy"))
    (runner,) = (pid for pid in descendants(real_server.pid) if digest in Path(f"/proc/{pid}/maps").read_text())
    os.kill(runner, signal.SIGKILL)
    request.join()
    status, message = error(answers[0])
    assert status == 500 and "SIGKILL" in message
    assert generate(real_server, " bababa", "heavy")[0] == 200, "the model is loaded again"


def states(server: RunningServer, model: str) -> list[str]:
    """The states of a model's live requests."""
    with urllib.request.urlopen(f"{server.url}/api/queue", timeout=60) as reply:
        return [entry["state"] for entry in json.load(reply)["requests"] if entry["model"].startswith(model)]


@pytest.mark.parametrize("count", [3, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_runner_killed_in_mid_reply(real_server: RunningServer, tmp_path: Path, count: int) -> None:
    digest = add(real_server, "heavy", heavy(tmp_path / "heavy.gguf").read_bytes())
    request = {"model": "heavy", "prompt": " bababa" * 4, "raw": True, "options": {"num_predict": 9999, "seed": 1}}
    seconds = []
    for _ in range(count):
        connection = http.client.HTTPConnection(urlsplit(real_server.url).netloc, timeout=150)
        connection.request("POST", "/api/generate", json.dumps(request), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.status == 200 and not json.loads(reply.readline())["done"]
        (runner,) = (pid for pid in descendants(real_server.pid) if digest in Path(f"/proc/{pid}/maps").read_text())
        os.kill(runner, signal.SIGKILL)
        killed = time.monotonic()
        lines = [json.loads(line) for line in reply]
        seconds.append(time.monotonic() - killed)
        assert "SIGKILL" in lines[-1]["error"], "the error is the last line"
        assert all("error" not in line and not line["done"] for line in lines[:-1])
        connection.close()
    assert real_server.process.poll() is None
    print(f"{count} deaths told within {sorted(seconds)[count // 2]:.3f} s, at most {max(seconds):.3f} s")
