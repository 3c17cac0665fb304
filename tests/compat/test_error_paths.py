"""Errors over HTTP name files relative to the model store, in both hosts."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.servers import RestClient, RunningServer, jupyter, standalone

pytestmark = pytest.mark.model
GENERATE = {"prompt": "Once", "raw": True, "stream": False, "options": {"num_predict": 1, "num_ctx": 64}}


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("start", [standalone, jupyter])
def test_no_error_has_a_path_of_this_machine(start: Callable[..., object], tmp_path: Path, models: Path) -> None:
    """S25: neither the path of the store nor that of the user's home is in an error, whatever is broken."""
    store = tmp_path / "store" / "models"
    with start(tmp_path / "home", env={"OLLAMA_MODELS": str(store)}) as server:  # type: ignore[attr-defined]
        replies, errors = break_everything(server, store, (models / "stories260K-q4_0.gguf").read_bytes())
    assert [error for error in errors if str(tmp_path) in error] == []
    assert [reply for reply in replies if re.match(r"(?!.*(copy|delete)).* 200 \[\]$", reply)] == [], "an empty reply"
    assert len(errors) >= 50
    assert any("blobs/sha256-" in error for error in errors), "relative paths are kept"
    assert str(store) in server.output(), "the log has whole paths"


def break_everything(server: RunningServer, store: Path, weights: bytes) -> tuple[list[str], list[str]]:
    """All replies to requests of damaged models and broken folders, and the errors among them."""
    http, replies, errors = RestClient(server), [], []

    def ask(method: str, path: str, body: bytes | dict[str, object]) -> None:
        status, lines = http.request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode())
        replies.append(f"{method} {path} {status} {lines}")
        errors.extend(str(line["error"]) for line in lines if isinstance(line, dict) and "error" in line)

    def use(model: str) -> None:
        ask("POST", "/api/show", {"model": model})
        ask("POST", "/api/generate", {"model": model, **GENERATE})
        ask("POST", "/v1/completions", {"model": model, "prompt": "x", "max_tokens": 1})
        ask("POST", "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "x"}]})
        ask("POST", "/api/copy", {"source": model, "destination": "twin"})
        ask("POST", "/api/create", {"model": "new", "from": model, "system": model})
        ask("POST", "/api/push", {"model": f"{model}", "insecure": True})

    digest = http.add_blob(weights)
    for model in ("junk", "missing", "folder", "loop"):
        assert http.create(model, files={"m.gguf": digest}, system=model) == "success"
    manifests = store / "manifests" / "registry.ollama.ai" / "library"
    (manifests / "junk" / "latest").write_bytes(b'{"layers": 5')
    for model in ("folder", "loop"):
        (manifests / model / "latest").unlink()
    (manifests / "folder" / "latest").mkdir()
    (manifests / "loop" / "latest").symlink_to(manifests / "loop" / "latest")
    use("junk")
    use("folder")
    use("loop")
    blob = store / "blobs" / digest.replace(":", "-")
    blob.write_bytes(weights[: len(weights) // 2])
    use("missing")
    blob.unlink()
    use("missing")
    blob.mkdir()
    use("missing")
    ask("POST", f"/api/blobs/{digest}", weights)
    ask("POST", f"/api/blobs/{sha256(b'a')}", b"b")
    junk = http.add_blob(b"GGUF" + bytes(100))
    ask("POST", "/api/create", {"model": "new", "files": {"m.gguf": junk}})
    ask("POST", "/api/create", {"model": "new", "files": {"model.safetensors": junk, "config.json": junk}})
    ask("POST", "/api/create", {"model": "new", "files": {"m.gguf": sha256(b"gone")}})
    ask("POST", "/api/pull", {"model": "127.0.0.1:9/a/m", "insecure": True})
    for folder in ("blobs", "manifests"):
        shutil.rmtree(store / folder)
        (store / folder).write_bytes(b"a file")
        use("missing")
        ask("DELETE", "/api/delete", {"model": "missing"})
        ask("GET", "/api/tags", b"")
        ask("POST", f"/api/blobs/{sha256(b'a')}", b"a")
        ask("POST", "/api/pull", {"model": "127.0.0.1:9/a/m", "insecure": True})
    shutil.rmtree(store)
    store.symlink_to(store)
    use("missing")
    ask("GET", "/api/tags", b"")
    ask("POST", f"/api/blobs/{sha256(b'a')}", b"a")
    return replies, errors
