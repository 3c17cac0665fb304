"""The program end to end: a real server in the background, the bundled model, a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint
from support.processes import of_session, until

pytestmark = pytest.mark.model
SECONDS = 240
Run = Callable[..., subprocess.CompletedProcess[str]]


def run_in(home: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA", "JPY_", "JUPYTER"))}
    command = [sys.executable, "-m", "ollama_nb.cli.main", *args]
    env["HOME"] = str(home)
    return subprocess.run(
        command, env=env, input=stdin, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """All commands share one background server, started by the first of them; none of it is left at the end."""
    home = tmp_path_factory.mktemp("home")
    yield lambda *args, **more: run_in(home, *args, **more)
    pid = json.loads((home / ".ollama" / "nb" / "server.json").read_text("utf-8"))["pid"]
    os.kill(pid, signal.SIGTERM)
    until(lambda: not of_session(pid))
    assert not (home / ".ollama" / "nb" / "server.json").exists()


def test_a_question_to_the_bundled_model(program: Run) -> None:
    done = program("run", "sprout", "--think=false", "Why is the sky blue?")
    assert (done.returncode, done.stderr) == (0, "")
    assert "blue" in done.stdout
    assert done.stdout.endswith("\n\n")


def test_a_piped_greeting(program: Run) -> None:
    done = program("run", "sprout", stdin="你好！\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "你好" in done.stdout.split("...done thinking.")[-1]


def test_figures_with_verbose(program: Run) -> None:
    done = program("run", "sprout", "--verbose", "hi")
    labels = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert labels[8:] in (["thinking tokens"], ["cached tokens", "thinking tokens"])
    assert labels[:8] == [
        *("total duration", "load duration", "prompt eval count", "prompt eval duration", "prompt eval rate"),
        *("eval count", "eval duration", "eval rate"),
    ]


def test_the_life_of_a_model(program: Run, tmp_path: Path) -> None:
    program("run", "sprout")
    assert program("list").stdout.splitlines()[1].startswith("sprout:latest")
    assert program("ps", "-q").stdout == "sprout:latest\n"
    assert "100% " in program("ps").stdout
    assert program("stop", "sprout").stdout == ""
    assert program("cp", "sprout", "copied").stdout == "copied 'sprout' to 'copied'\n"
    (tmp_path / "Modelfile").write_text("FROM copied\nSYSTEM 你是一位老师。\nPARAMETER seed 42\n", "utf-8")
    made = program("create", "teacher", "-f", str(tmp_path / "Modelfile"))
    assert (made.returncode, made.stderr.splitlines()[-1]) == (0, "success")
    assert program("show", "--system", "teacher").stdout == "你是一位老师。"
    assert "seed                           42\n" in program("show", "teacher", "--parameters").stdout
    assert program("show", "teacher", "--license").stdout.startswith("MIT License")
    assert "  Model\n    architecture        llama" in program("show", "teacher").stdout
    listed = json.loads(program("list", "--json").stdout)["models"]
    assert {model["name"] for model in listed} == {"sprout:latest", "copied:latest", "teacher:latest"}
    assert program("rm", "copied", "teacher").stdout == "deleted 'copied'\ndeleted 'teacher'\n"
    assert program("rm", "copied").stderr == "Error: model 'copied' not found\n"
    assert program("run", "no-such-model-here", "hi").returncode == 1


def test_a_model_from_a_file(program: Run, models: Path, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(
        f"FROM {models / 'stories260K-f32.gguf'}\nTEMPLATE {{{{ .Prompt }}}}\n", "utf-8"
    )
    made = program("create", "stories", "-f", str(tmp_path / "Modelfile"))
    assert made.returncode == 0, made.stderr
    lines = made.stderr.splitlines()
    assert lines[0] == "gathering model components"
    assert lines[-1] == "success"
    told = program("run", "stories", "Once upon a time")
    assert (told.returncode, told.stderr) == (0, "")
    assert len(told.stdout) > 20
    assert program("rm", "stories").returncode == 0


def create_from(program: Run, folder: Path, modelfile: str) -> subprocess.CompletedProcess[str]:
    (folder / "Modelfile").write_text(modelfile, "utf-8")
    return program("create", "made", "-f", str(folder / "Modelfile"))


def test_models_that_a_modelfile_cannot_mean(program: Run, models: Path, tmp_path: Path) -> None:
    """Cases: two quantizations in a folder, two FROM lines with models, a shard that is missing."""
    two = tmp_path / "two"
    two.mkdir()
    for name in ("stories260K-f16.gguf", "stories260K-q8_0.gguf"):
        shutil.copy(models / name, two)
    lines = "FROM ./stories260K-q8_0.gguf\nFROM ./stories260K-f16.gguf\n"
    for text in ("FROM .\n", lines):
        done = create_from(program, two, text)
        assert done.returncode == 1
        assert '"stories260K-f16.gguf" and "stories260K-q8_0.gguf" are two models: name one of them' in done.stderr
    shards = make_checkpoint("llama", tmp_path / "shards", files=3)
    lost = sorted(shards.glob("*.safetensors"))[1]
    lost.unlink()
    (shards / "model.safetensors.index.json").unlink(missing_ok=True)
    for text in ("FROM .\n", "FROM ./model-00001-of-00003.safetensors\n"):
        done = create_from(program, shards, text)
        assert (done.returncode, f"{lost.name} is missing" in done.stderr) == (1, True), done.stderr
    assert "made:latest" not in program("list").stdout


def test_a_template_that_takes_too_much(program: Run, tmp_path: Path) -> None:
    """S11: create refuses a template that no request could use, and the server continues."""
    endless = "{{ range $.Messages }}" * 20 + "x" + "{{ end }}" * 20
    program("run", "sprout")
    done = create_from(program, tmp_path, f'FROM sprout\nTEMPLATE """{endless}"""\n')
    assert (done.returncode, "template error" in done.stderr) == (1, True), done.stderr
    assert "made:latest" not in program("list").stdout


def test_a_file_of_a_checkpoint_instead_of_its_folder(program: Run, tmp_path: Path) -> None:
    """Case: FROM ./model.safetensors, and weights with another name in a folder."""
    folder = make_checkpoint("llama", tmp_path / "c")
    assert create_from(program, folder, "FROM ./model.safetensors\n").returncode == 0
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert create_from(program, folder, "FROM .\n").returncode == 0
    assert program("rm", "made").returncode == 0


def test_vectors(program: Run, models: Path, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {models / 'all-MiniLM-L6-v2-q8_0.gguf'}\n", "utf-8")
    assert program("create", "minilm", "-f", str(tmp_path / "Modelfile")).returncode == 0
    vector = json.loads(program("run", "minilm", "hello world").stdout)
    assert len(vector) == 384
    assert abs(sum(x * x for x in vector) - 1) < 1e-3
    assert len(json.loads(program("run", "minilm", "--dimensions", "8", "hello world").stdout)) == 8
    assert program("rm", "minilm").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_to_a_full_device(home: Path) -> None:
    command = [sys.executable, "-m", "ollama_nb.cli.main", "help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")
