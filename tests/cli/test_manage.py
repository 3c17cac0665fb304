"""``cp``, ``rm``, ``stop``, ``--version``, and errors of any command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import RunCommand
from support.fake_servers import Answer, ScriptedServer, Seen, error, ok

from ollama_nb import __version__
from ollama_nb.cli.models import COMMANDS

UNLOADED = ok({"response": "", "done": True, "done_reason": "unload"})


def test_copy(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/copy"] = ok()
    assert ollama("cp", "a", "乙").out == "copied 'a' to '乙'\n"
    assert server.asked("POST /api/copy") == [{"source": "a", "destination": "乙"}]


def test_copy_of_a_missing_model(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/copy"] = error(404, 'model "a" not found')
    result = ollama("cp", "a", "b")
    assert (result.code, result.out, result.err) == (1, "", 'Error: model "a" not found\n')


def test_remove_stops_first_and_ends_at_the_first_failure(server: ScriptedServer, ollama: RunCommand) -> None:
    def delete(seen: Seen) -> Answer:
        return error(404, "model 'b' not found") if seen.json["model"] == "b" else ok()

    server.routes |= {"POST /api/generate": UNLOADED, "DELETE /api/delete": delete}
    result = ollama("rm", "a", "b", "c")
    assert (result.code, result.out, result.err) == (1, "deleted 'a'\n", "Error: model 'b' not found\n")
    asked = server.asked("POST /api/generate")
    assert asked[0] == {"model": "a", "prompt": "", "stream": False, "keep_alive": 0}
    assert [body["model"] for body in asked] == ["a", "b"]


def test_remove_continues_when_stopping_fails(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes |= {"POST /api/generate": error(500, "oops"), "DELETE /api/delete": ok()}
    result = ollama("rm", "a")
    assert (result.code, result.out, result.err) == (0, "deleted 'a'\n", "Warning: unable to stop model 'a'\n")


def test_remove_of_a_missing_model_does_not_warn(server: ScriptedServer, ollama: RunCommand) -> None:
    missing = error(404, "model 'a' not found")
    server.routes |= {"POST /api/generate": missing, "DELETE /api/delete": missing}
    assert ollama("rm", "a").err == "Error: model 'a' not found\n"


def test_stop(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes |= {"POST /api/show": ok({}), "POST /api/generate": UNLOADED}
    result = ollama("stop", "a")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_stop_of_a_missing_model(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/show"] = error(404, "model 'a:latest' not found")
    assert ollama("stop", "a").err == 'Error: couldn\'t find model "a" to stop\n'


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version(server: ScriptedServer, ollama: RunCommand, flag: str) -> None:
    server.routes["GET /api/version"] = ok({"version": "0.17.0"})
    assert ollama(flag).out == f"ollama version is 0.17.0\nollama-nb version is {__version__}\n"


def test_version_without_a_server_starts_none(server: ScriptedServer, ollama: RunCommand) -> None:
    server.close()
    result = ollama("-v")
    assert result.code == 0
    assert (
        result.out == f"Warning: could not connect to a running Ollama instance\nollama-nb version is {__version__}\n"
    )


def test_a_closed_pipe_prints_no_error(home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "ollama_nb.cli.main", "help"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_unexpected_error_is_one_line(ollama: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(COMMANDS, "cp", broken)
    result = ollama("cp", "a", "b")
    assert (result.code, result.err) == (
        1,
        "Error: ZeroDivisionError: division by zero (OLLAMA_DEBUG=1 shows the traceback)\n",
    )
    monkeypatch.setenv("OLLAMA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        ollama("cp", "a", "b")
