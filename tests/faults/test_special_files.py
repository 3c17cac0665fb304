"""Pipes, sockets, devices, link loops and files of the kernel wherever a user can name a file: refused at once.

Each test would hang without the check; the time limit of the test run ends it then.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import RunCommand, command_runner
from support.fake_servers import ScriptedServer, ok
from support.stores import check_sound

from ollama_nb import disk
from ollama_nb.api.events import Progress
from ollama_nb.api.names import Digest
from ollama_nb.cli.session import extract_files
from ollama_nb.client.files import file_digest, model_files
from ollama_nb.client.question import encode_images
from ollama_nb.errors import BadRequest, StoreError
from ollama_nb.notebook.inputs import images
from ollama_nb.store import archive
from ollama_nb.store.check import check
from ollama_nb.store.store import Store

SECONDS = 30


def make_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def make_socket(path: Path) -> Path:
    # The path of a socket may have 107 bytes at most.
    held = socket.socket(socket.AF_UNIX)
    at = os.open(path.parent, os.O_RDONLY)
    try:
        held.bind(f"/proc/self/fd/{at}/{path.name}")
    finally:
        os.close(at)
        held.close()
    return path


def make_loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


SPECIAL: dict[str, tuple[Callable[[Path], Path], str]] = {
    "pipe": (make_pipe, "is a pipe, not a regular file"),
    "socket": (make_socket, "is a socket, not a regular file"),
    "device": (lambda path: Path("/dev/zero"), "is a device, not a regular file"),
    "kernel messages": (lambda path: Path("/proc/kmsg"), "is a file of the kernel, not a regular file"),
    "memory": (lambda path: Path("/proc/self/mem"), "is a file of the kernel, not a regular file"),
    "link to a pipe": (lambda path: linked(path, make_pipe), "is a pipe, not a regular file"),
    "loop": (make_loop, "link"),
}
KINDS = [kind for kind in SPECIAL if not kind.startswith(("kernel", "memory")) or Path("/proc/kmsg").exists()]


def linked(path: Path, make: Callable[[Path], Path]) -> Path:
    target = make(path.with_name(f"target-{path.name}"))
    path.symlink_to(target)
    return path


@pytest.fixture(params=KINDS)
def special(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A file that cannot be read like others, and how an error describes it."""
    make, why = SPECIAL[request.param]
    return make(tmp_path / "special.gguf"), why


@pytest.fixture
def ollama(
    server: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunCommand:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    return command_runner(monkeypatch, capsys)


def test_open_regular(special: tuple[Path, str]) -> None:
    path, why = special
    with pytest.raises((BadRequest, OSError), match=why):
        disk.open_regular(path)


def test_ordinary_files_can_be_read(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    for content in (b"", b"x" * 100_000):
        path.write_bytes(content)
        assert disk.read_regular(path) == disk.read_regular(link) == content
        assert file_digest(path) == f"sha256:{Digest.parse(file_digest(link)).hex}"


def test_descriptors_are_closed(tmp_path: Path) -> None:
    pipe = make_pipe(tmp_path / "pipe")
    (empty := tmp_path / "empty").touch()
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(20):
        with pytest.raises(BadRequest):
            disk.open_regular(pipe)
        assert disk.read_regular(empty) == b""
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.mark.parametrize("instruction", ["FROM {}", "FROM base\nADAPTER {}", "FROM base\nDRAFT {}"])
def test_in_a_modelfile(ollama: RunCommand, tmp_path: Path, special: tuple[Path, str], instruction: str) -> None:
    """Case: FROM a pipe or a device in a Modelfile."""
    path, why = special
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(instruction.format(path) + "\n")
    done = ollama("create", "new", "-f", str(modelfile))
    assert done.code == 1
    assert why in done.err or "no such file or folder" in done.err


def test_as_a_modelfile(ollama: RunCommand, special: tuple[Path, str]) -> None:
    path, why = special
    done = ollama("create", "new", "-f", str(path))
    assert (done.code, why in done.err) == (1, True), done.err


def test_a_folder_with_special_files(tmp_path: Path) -> None:
    make_pipe(tmp_path / "model.safetensors")
    make_pipe(tmp_path / "config.json")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(BadRequest, match="no Modelfile or safetensors files found"):
        model_files(tmp_path)


def test_as_an_image_of_the_python_api(special: tuple[Path, str]) -> None:
    path, why = special
    with pytest.raises(BadRequest, match=why):
        encode_images([path])


def test_as_an_image_of_a_magic(special: tuple[Path, str]) -> None:
    path, why = special
    with pytest.raises(BadRequest, match=why):
        images(["x"], {"x": path})


def test_as_an_image_in_a_message(tmp_path: Path) -> None:
    """A path that is not a regular file is text."""
    make_pipe(tmp_path / "a.png")
    text = f"what is {tmp_path}/a.png"
    assert extract_files(text) == (text, [])


def test_as_an_archive(store: Store, special: tuple[Path, str]) -> None:
    path, why = special
    with pytest.raises((BadRequest, StoreError), match=why):
        archive.import_models(path, store, as_=None, report=ignore, cancelled=threading.Event())


def test_as_a_file_to_add(store: Store, special: tuple[Path, str]) -> None:
    path, why = special
    with pytest.raises((BadRequest, StoreError), match=why):
        store.blobs.add_file(path)
    check_sound(store.root)


def test_as_a_blob(store: Store, tmp_path: Path) -> None:
    store.blobs.tree.make()
    digest = Digest("1" * 64)
    make_pipe(store.blobs.path(digest))
    assert not store.blobs.has(digest)
    found = check(store, aside=None, report=ignore, cancelled=threading.Event())
    assert [(problem.kind, problem.why) for problem in found.problems] == [("blob", "cannot be read")]


def test_a_pipe_without_a_writer_in_the_real_program(server: ScriptedServer, tmp_path: Path) -> None:
    make_pipe(tmp_path / "weights.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./weights.gguf\n")
    server.routes["HEAD /"] = ok()
    env = {**os.environ, "OLLAMA_HOST": server.url, "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "ollama_nb.cli.main", "create", "new", "-f", str(tmp_path / "Modelfile")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, "weights.gguf is a pipe, not a regular file" in done.stderr) == (1, True), done.stderr


def ignore(progress: Progress) -> None:
    pass
