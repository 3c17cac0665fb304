"""Run the ``ollama`` program in this process, and what a run returned."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ollama_nb.cli.main import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


RunCommand = Callable[..., Result]


def command_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """A function that runs one command line. Neither its input nor its output is a terminal."""

    def run(*args: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
