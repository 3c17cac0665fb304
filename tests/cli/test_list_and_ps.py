"""Tables, names and JSON of `list` and `ps`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.command_line import RunCommand
from support.fake_servers import ScriptedServer, error, ok

from ollama_nb.verbs.present import (
    BATCHES_HEADER,
    batches_table,
    display_width,
    list_table,
    processor,
    running_table,
    table,
)

NOW = 1_800_000_000.0
HEX = "0123456789abcdef" * 4
MODELS: list[dict[str, Any]] = [
    {"name": "sprout:latest", "digest": HEX, "size": 3_241_263, "modified_at": "2027-01-15T07:58:59.123456789Z"},
    {"name": "小模型:1", "digest": HEX, "size": 999, "modified_at": "2027-01-15T09:00:00+02:00", "extra": {"键": 1}},
]
RUNNING = {
    "name": "sprout:latest",
    "digest": HEX,
    "size": 15_000_000,
    "size_vram": 0,
    "context_length": 1024,
    "expires_at": "2027-01-15T08:04:59Z",
}


def test_list_table() -> None:
    assert list_table(MODELS, now=NOW) == (
        "NAME             ID              SIZE      MODIFIED           \n"
        "sprout:latest    0123456789ab    3.2 MB    About a minute ago    \n"
        "小模型:1         0123456789ab    999 B     About an hour ago     \n"
    )


def test_an_empty_table_is_its_header() -> None:
    assert table(("NAME", "ID", "SIZE", "MODIFIED"), []) == "NAME    ID    SIZE    MODIFIED \n"


def test_a_remote_model_without_a_time() -> None:
    rows = [{**MODELS[0], "remote_model": "x", "modified_at": "0001-01-01T00:00:00Z"}]
    assert list_table(rows, now=NOW).splitlines()[1].split() == ["sprout:latest", HEX[:12], "-", "Never"]


@pytest.mark.parametrize(
    ("expires", "until"),
    [
        ("2027-01-15T08:04:59Z", "4 minutes from now"),
        ("2027-01-15T07:00:00Z", "Stopping..."),
        ("2318-01-01T00:00:00Z", "Forever"),
        ("0001-01-01T00:00:00Z", "Never"),
    ],
)
def test_running_table(expires: str, until: str) -> None:
    header, row = running_table([{**RUNNING, "expires_at": expires}], now=NOW).splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert row == f"sprout:latest    0123456789ab    15 MB    100% CPU     1024       {until}    "


@pytest.mark.parametrize(
    ("size", "vram", "text"),
    [
        (100, 0, "100% CPU"),
        (0, 0, "100% CPU"),
        (100, 100, "100% GPU"),
        (100, 101, "Unknown"),
        (0, 5, "Unknown"),
        (1000, 395, "61%/39% CPU/GPU"),
    ],
)
def test_processor(size: int, vram: int, text: str) -> None:
    assert processor(size, vram) == text


def test_list_as_json_is_the_servers_document(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["GET /api/tags"] = ok({"models": MODELS})
    result = ollama("list", "--json")
    assert json.loads(result.out) == {"models": MODELS}
    assert '      "extra": {\n        "键": 1\n' in result.out


@pytest.mark.parametrize(("prefix", "names"), [("", 2), ("SPR", 1), ("小", 1), ("x", 0)])
def test_list_by_prefix(server: ScriptedServer, ollama: RunCommand, prefix: str, names: int) -> None:
    server.routes["GET /api/tags"] = ok({"models": MODELS})
    assert len(ollama("list", "-q", prefix).out.splitlines()) == names
    assert len(json.loads(ollama("ls", prefix, "--json").out)["models"]) == names
    assert len(ollama("ls", prefix).out.splitlines()) == names + 1


@pytest.mark.parametrize(("prefix", "out"), [("", "sprout:latest\n"), ("sp", "sprout:latest\n"), ("SP", "")])
def test_ps_names_by_prefix_of_the_same_case(server: ScriptedServer, ollama: RunCommand, prefix: str, out: str) -> None:
    server.routes["GET /api/ps"] = ok({"models": [RUNNING]})
    assert ollama("ps", "-q", prefix).out == out


BATCHES: list[dict[str, Any]] = [
    {
        "id": "batch_1", "model": "sprout, 小", "endpoint": "/v1/embeddings", "status": "in_progress", "total": 9,
        "completed": 4, "failed": 1, "created_at": "2027-01-15T07:58:59Z",
    }
]  # fmt: skip


def test_batches(server: ScriptedServer, ollama: RunCommand) -> None:
    assert batches_table(BATCHES, now=NOW) == (
        "ID         MODEL         ENDPOINT          STATUS         DONE    FAILED    CREATED \n"
        "batch_1    sprout, 小    /v1/embeddings    in_progress    5/9     1         About a minute ago    \n"
    ).replace("CREATED \n", "CREATED            \n")
    server.routes["GET /api/queue"] = ok({"requests": [], "batches": BATCHES})
    assert json.loads(ollama("ps", "--batches", "--json").out) == {"batches": BATCHES}
    assert ollama("ps", "--batches", "-q").out == "batch_1\n"
    assert ollama("ps", "--batches", "-q", "x").out == ""
    assert "5/9" in ollama("ps", "--batches").out
    server.routes["GET /api/queue"] = ok({"requests": []})
    assert ollama("ps", "--batches").out.split() == [*BATCHES_HEADER]


def test_empty_documents(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes |= {"GET /api/tags": ok({"models": []}), "GET /api/ps": ok({"models": []})}
    assert json.loads(ollama("list", "--json").out) == {"models": []}
    assert ollama("ps", "-q") == ollama("list", "-q")
    assert ollama("ps").out == "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL \n"


def test_json_and_quiet_exclude_each_other(ollama: RunCommand) -> None:
    result = ollama("ps", "-q", "--json")
    assert (result.code, result.err) == (1, "Error: only one of '--quiet' or '--json' can be specified\n")


def test_an_error_prints_nothing_on_stdout(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["GET /api/tags"] = error(500, "the models folder cannot be read")
    result = ollama("list", "--json")
    assert (result.code, result.out, result.err) == (1, "", "Error: the models folder cannot be read\n")


def test_no_server(server: ScriptedServer, ollama: RunCommand) -> None:
    server.close()
    result = ollama("list")
    assert result.err == "Error: could not connect to ollama server, run 'ollama serve' to start it\n"
    assert result.code == 1


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("你好", 4), ("e\u0301", 1), ("👍", 2)])
def test_display_width(text: str, width: int) -> None:
    assert display_width(text) == width
