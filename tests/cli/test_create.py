"""``ollama create``: the Modelfile, the request, and flags that the program itself refuses."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.command_line import RunCommand
from support.fake_servers import ScriptedServer, ndjson, ok

CONTENT = b"GGUF\x03\x00\x00\x00"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a Modelfile and the file that it names."""
    place = tmp_path / "work"
    place.mkdir()
    (place / "m.gguf").write_bytes(CONTENT)
    (place / "Modelfile").write_text("FROM ./m.gguf\nSYSTEM 你好\n", "utf-8")
    monkeypatch.chdir(place)
    return place


def test_the_request_of_a_create(server: ScriptedServer, ollama: RunCommand, folder: Path) -> None:
    (folder / "d.gguf").write_bytes(CONTENT + b"draft")
    (folder / "Modelfile").write_text("FROM ./m.gguf\nDRAFT ./d.gguf\n", "utf-8")
    server.routes["POST /api/create"] = ndjson({"status": "success"})
    for content in (CONTENT, CONTENT + b"draft"):
        server.routes[f"HEAD /api/blobs/sha256:{hashlib.sha256(content).hexdigest()}"] = ok()
    done = ollama("create", "new", "-q", "q8_0", "--draft-quantize", "q4_0")
    assert done.code == 0, done.err
    (body,) = server.asked("POST /api/create")
    assert (body["model"], body["quantize"], body["draft_quantize"]) == ("new", "q8_0", "q4_0")
    assert [*body["files"]] == ["m.gguf"]
    assert [*body["draft_files"]] == ["d.gguf"]


def test_a_draft_type_without_a_draft(server: ScriptedServer, ollama: RunCommand, folder: Path) -> None:
    done = ollama("create", "new", "--draft-quantize", "q4_0")
    assert (done.code, done.err) == (1, "Error: --draft-quantize requires a DRAFT model\n")


def test_links_need_a_shared_store(server: ScriptedServer, ollama: RunCommand, folder: Path) -> None:
    done = ollama("create", "new", "--link")
    assert done.code == 1
    assert "--link: the server does not keep its models where this user can write" in done.err


def test_an_empty_folder(server: ScriptedServer, ollama: RunCommand, folder: Path) -> None:
    (folder / "Modelfile").write_text("FROM .\n", "utf-8")
    (folder / "m.gguf").unlink()
    assert "no Modelfile or safetensors files found" in ollama("create", "new").err
