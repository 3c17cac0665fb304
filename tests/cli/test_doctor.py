"""``ollama-nb doctor``: what it finds, what it hides, and its exit code; also as a magic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import RunCommand
from support.servers import clean_env

from ollama_nb.cli import doctor
from ollama_nb.service.crashes import KEPT, LOGGER, CrashJournal, journal, read_crashes

CANARIES = {
    "OLLAMA_API_KEY": "canary-key-81f2a7",
    "OPENAI_API_KEY": "canary-openai-81f2a7",
    "HTTPS_PROXY": "http://anna:canary-proxy-81f2a7@proxy.example:3128",
    "HF_TOKEN": "canary-hf-81f2a7",
    "OLLAMA_HOST": "http://anna:canary-host-81f2a7@127.0.0.1:9",
}


@pytest.fixture
def settled(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home on a machine with an engine, memory and descriptors."""
    monkeypatch.setattr(doctor, "engine_build", lambda: "llama-cpp-python 1; CPU")
    monkeypatch.setattr(doctor, "MIN_FREE_MEMORY", 0)
    monkeypatch.setattr(doctor, "MIN_FREE_DISK", 0)
    monkeypatch.setattr(doctor, "MIN_FILES", 0)
    monkeypatch.setattr(doctor, "listening_users", lambda port: None)
    return home


def crash(home: Path, cause: str) -> None:
    handler = CrashJournal(home / ".ollama" / "nb")
    (home / ".ollama" / "nb").mkdir(parents=True, exist_ok=True, mode=0o700)
    handler.open()
    try:
        end = {"process": "ollama_nb.runner.child", "pid": 1, "cause": cause, "output": "a\nb\n" * 10}
        LOGGER.warning("child 1 ended: %s", cause, extra={"crash": end})
        LOGGER.warning("something else")
    finally:
        handler.close()


def test_a_sound_set_up_needs_no_attention(ollama: RunCommand, settled: Path) -> None:
    result = ollama("doctor")
    assert result.code == 0, result.out
    assert "!!" not in result.out
    assert "ok  models: 0 models" in result.out and "models: ~/.ollama/models (default)" in result.out
    assert str(settled) not in result.out
    assert ollama("diagnose").out == result.out


def test_what_needs_attention_comes_with_advice(
    ollama: RunCommand, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F13: a damaged manifest is found; so are crashes, misspelt variables and a server that does not answer."""
    broken = settled / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library" / "m" / "latest"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    crash(settled, "died by SIGSEGV")
    monkeypatch.setenv("OLLAMA_KEEPALIVE", "1h")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "3")
    result = ollama("doctor", "--json")
    assert result.code == 1
    document = json.loads(result.out)
    advice = {check["name"]: (check["text"], check["advice"]) for check in document["checks"] if check["advice"]}
    assert document["attention"] == len(advice)
    assert set(advice) == {"models", "crashes", "variables", "OLLAMA_HOST http://127.0.0.1:9"}
    assert "fsck --repair" in advice["models"][1]
    assert "died by SIGSEGV" in advice["crashes"][0]
    assert advice["variables"][0] == "OLLAMA_KEEPALIVE have no effect"
    assert document["facts"]["Settings"]["num_parallel"] == "3 (environment)"
    assert document["facts"]["Settings"]["max_queue"] == "512 (default)"
    assert list(document["facts"]["Last crashes"].values()) == ["ollama_nb.runner.child: died by SIGSEGV"]


def test_the_report_has_no_secrets(ollama: RunCommand, settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S25: no secret of the environment, the state folder or a crash is in a report."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    key = next(word for word in ollama("keys", "add", "anna").out.split() if word.startswith("onb_"))
    crash(settled, f"GET http://x/?token=canary-query-81f2a7 Authorization: Bearer canary-bearer-81f2a7 {key}")
    for form in ((), ("--json",)):
        result = ollama("doctor", *form, "--save", settled / "report.txt")
        saved = (settled / "report.txt").read_text("utf-8")
        for text in (result.out, result.err, saved):
            assert "canary" not in text and key not in text
    assert "canary" not in journal(settled / ".ollama" / "nb").read_text("utf-8")


def test_the_report_is_saved_for_the_user_only(ollama: RunCommand, settled: Path) -> None:
    result = ollama("doctor", "--save", settled / "report.txt")
    assert (settled / "report.txt").read_text("utf-8") == result.out
    assert (settled / "report.txt").stat().st_mode & 0o777 == 0o600
    assert "saved to" in result.err


def test_on_a_terminal_the_report_is_saved_after_a_yes(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, saved in (("", False), ("y", True)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        doctor.doctor(save=str(settled / "report.txt"))
        assert (settled / "report.txt").exists() is saved


def test_a_check_that_cannot_be_made_is_reported(
    ollama: RunCommand, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "open_store", fail)
    result = ollama("doctor")
    assert result.code == 1
    assert "could not be made: [Errno 13] Permission denied" in result.out
    assert "ok  API keys" in result.out


def test_the_journal_of_crashes_is_bounded_and_private(home: Path) -> None:
    for number in range(KEPT + 5):
        crash(home, f"cause {number}")
    found = read_crashes(home / ".ollama" / "nb")
    assert [entry["cause"] for entry in found] == [f"cause {number}" for number in range(5, KEPT + 5)]
    assert found[0]["output"] == ["b", "a", "b", "a", "b"]
    file = journal(home / ".ollama" / "nb")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("no json\n[]\n" + file.read_text("utf-8"))
    assert len(read_crashes(home / ".ollama" / "nb")) == KEPT


@pytest.mark.model
def test_the_program_checks_the_real_engine(home: Path) -> None:
    program = [sys.executable, "-P", "-m", "ollama_nb.cli.main", "doctor", "--json"]
    done = subprocess.run(program, env=clean_env(home), capture_output=True, text=True)
    document = json.loads(done.stdout)
    engine = next(check for check in document["checks"] if check["name"] == "engine")
    assert engine["advice"] == "" and "llama-cpp-python" in engine["text"]
    assert "CPU" in document["facts"]["Versions"]["engine"]
    assert done.returncode == (1 if document["attention"] else 0)
    assert os.listdir(home) == [], "it writes nothing"  # noqa: PTH208
