"""Damaged models are created, shown, loaded and quantised: each works or is refused, and the server survives.

A secret from the server's environment must not appear in anything that is made from them (no out-of-bounds reads).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.servers import RunningServer, standalone

pytestmark = pytest.mark.model
CANARY = "canary-7d1f3a9e5b"
NUMBERS = ((24, 900), (11_900, 14_500))
"""The byte ranges of the keys and of the tensor list."""


def mutant(whole: bytes, dice: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = min(
            dice.randrange(*dice.choice(NUMBERS)) if dice.random() < 0.8 else dice.randrange(len(whole)), len(data)
        )
        match dice.randrange(20):
            case 0:
                del data[at : at + dice.randrange(1, 9)]
            case 1:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 2:
                del data[dice.randrange(len(data) + 1) :]
            case number if number < 6:
                data[at : at + 4] = dice.choice((bytes(4), b"\xff" * 4, b"\1\0\0\0", b"\0\0\0\x80"))
            case _:
                data[at : at + 1] = bytes(byte ^ 1 << dice.randrange(8) for byte in data[at : at + 1])
    return bytes(data)


class Client:
    def __init__(self, server: RunningServer) -> None:
        self._netloc = urlsplit(server.url).netloc

    def ask(self, method: str, path: str, body: Any) -> tuple[int, str]:
        """Status and error; a broken connection fails the test."""
        raw = body if isinstance(body, bytes) else json.dumps({**body, "stream": False}).encode()
        connection = http.client.HTTPConnection(self._netloc, timeout=150)
        try:
            connection.request(method, path, raw)
            reply = connection.getresponse()
            answer = reply.read()
        finally:
            connection.close()
        found = json.loads(answer) if answer else {}
        assert CANARY not in answer.decode("utf-8", "replace")
        return reply.status, str(found.get("error", ""))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_mutants_are_created_and_shown(tmp_path: Path, models: Path) -> None:
    """S5: none is loaded, so that the number is limited by the server's own reader only."""
    whole = (models / "stories260K-f16.gguf").read_bytes()
    dice, seen, refused = random.Random(1), Counter[str](), 0
    with standalone(tmp_path, env={"NOBODY_ELSE_KNOWS": CANARY}) as server:
        client, pid = Client(server), server.pid
        for _ in range(10_000):
            data = mutant(whole, dice)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert client.ask("POST", f"/api/blobs/{digest}", data)[0] in (200, 201)
            for name, body in (("create", {"files": {"m.gguf": digest}}), ("show", {"verbose": True})):
                status, error = client.ask("POST", f"/api/{name}", {"model": "mutant", **body})
                assert status in (200, 400) and bool(error) == (status == 400), (name, status, error)
                assert str(tmp_path) not in error, f"errors name no paths: {error}"
                seen[f"{name} {status}"] += 1
                if status != 200:
                    break
            refused += status != 200
            if refused % 100 == 99:  # rejected blobs stay until the grace period ends
                for blob in (server.models / "blobs").iterdir():
                    blob.unlink()
        assert (server.process.poll(), server.pid) == (None, pid)
        assert CANARY not in server.output()
    assert seen["create 200"] and seen["create 400"]
    print(json.dumps(dict(sorted(seen.items()))))


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_mutants(tmp_path: Path, models: Path, count: int) -> None:
    whole = (models / "stories260K-f16.gguf").read_bytes()
    dice, seen, errors = random.Random(count), Counter[str](), Counter[str]()
    env = {"NOBODY_ELSE_KNOWS": CANARY, "OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_LOAD_TIMEOUT": "60s"}
    with standalone(tmp_path, env=env) as server:
        client, pid = Client(server), server.pid
        for _ in range(count):
            data = mutant(whole, dice)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert client.ask("POST", f"/api/blobs/{digest}", data) == (201, "")
            steps = {
                "create": ("/api/create", {"model": "mutant", "files": {"m.gguf": digest}}),
                "show": ("/api/show", {"model": "mutant", "verbose": True}),
                "generate": ("/api/generate", {"model": "mutant", "prompt": "a", "options": {"num_predict": 2}}),
                "quantise": ("/api/create", {"model": "small", "from": "mutant", "quantize": "q8_0"}),
            }
            for name, (path, body) in steps.items():
                status, error = client.ask("POST", path, body)
                assert status == 200 or error, (name, status)
                assert str(tmp_path) not in error, f"errors name no paths: {error}"
                seen[f"{name} {status}"] += 1
                errors[error[:110]] += 1
                if name == "create" and status != 200:
                    break
            for model in ("mutant", "small"):
                client.ask("DELETE", "/api/delete", {"model": model})
            for blob in (server.models / "blobs").iterdir():
                assert CANARY.encode() not in blob.read_bytes()
                blob.unlink()  # rejected blobs stay until the grace period ends
        assert (server.process.poll(), server.pid) == (None, pid)
        assert CANARY not in server.output()
    assert seen["create 200"] and seen["create 400"]
    print(json.dumps(dict(sorted(seen.items()))))
    print(*(f"{n} {text}" for text, n in errors.most_common()), sep="\n")
