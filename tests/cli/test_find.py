"""``discover`` lists and creates models of other programs; ``outdated`` compares with registries."""

from __future__ import annotations

import json
from pathlib import Path

from support.command_line import RunCommand
from support.fake_servers import ScriptedServer, ok
from support.ggufs import gguf
from support.stores import digest_of, tiny

from ollama_nb.store.store import Store

MODEL = gguf()


def put(home: Path) -> Path:
    path = home / ".lmstudio/models/me/Thing-GGUF/Thing-Q4_0.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(MODEL)
    return path


def test_the_list_of_discovered_models(ollama: RunCommand, home: Path) -> None:
    assert ollama("discover").out == "no GGUF files in the Hugging Face cache or in LM Studio's folders\n"
    path = put(home)
    done = ollama("discover")
    assert done.out.splitlines()[1].rstrip().split(None, 5) == [
        "thing:q4_0",
        str(len(MODEL)),
        "B",
        "LM",
        "Studio",
        str(path),
    ]
    assert done.out.endswith("to use one: ollama-nb discover thing:q4_0\n")
    (described,) = json.loads(ollama("discover", "--json").out)
    assert described["paths"] == [str(path)]


def test_create_a_discovered_model(ollama: RunCommand, server: ScriptedServer, home: Path) -> None:
    put(home)
    digest = digest_of(MODEL)
    server.routes[f"HEAD /api/blobs/{digest}"] = ok()
    server.routes["POST /api/create"] = ok({"status": "success"})
    done = ollama("discover", "thing:q4_0", "--as", "mine")
    assert done.code == 0, done.err
    (asked,) = server.asked("POST /api/create")
    assert (asked["model"], asked["files"]) == ("mine", {"Thing-Q4_0.gguf": str(digest)})
    assert Store(home / ".ollama/models").blobs.has(digest)


def test_models_that_cannot_be_created(ollama: RunCommand, home: Path) -> None:
    put(home)
    assert "no model named 'other' was discovered" in ollama("discover", "other").err
    assert "--as names one model" in ollama("discover", "--as", "x").err


def test_outdated_without_models(ollama: RunCommand, home: Path) -> None:
    assert ollama("outdated").out.split() == ["NAME", "ID", "HERE", "ID", "THERE", "STATE"]
    tiny(Store(home / ".ollama/models"), "127.0.0.1:1/a/m")
    done = ollama("outdated")
    assert done.code == 0
    assert "127.0.0.1:1/a/m:latest" in done.out and "unknown" in done.out
