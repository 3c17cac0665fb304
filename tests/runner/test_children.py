"""How children are started: their environment, their captured output, the thread that starts them."""

from __future__ import annotations

import asyncio
import os
import site
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.aio import in_loop
from support.processes import children, until

from ollama_nb.errors import Busy, RunnerCrashed
from ollama_nb.runner import children as child_processes
from ollama_nb.runner import wire

FAKE = (sys.executable, "-P", str(Path(__file__).parent.parent / "support" / "fake_runner.py"))


def test_the_environment_is_an_allow_list() -> None:
    parent = {
        "PATH": "/bin", "HOME": "/home/me", "LANG": "zh_CN.UTF-8", "LC_ALL": "C", "LD_LIBRARY_PATH": "/cuda",
        "CUDA_VISIBLE_DEVICES": "1", "HIP_PLATFORM": "amd", "GGML_METAL": "0", "OMP_NUM_THREADS": "2",
        "GOMP_SPINCOUNT": "9", "OLLAMA_API_KEY": "secret", "JUPYTER_TOKEN": "secret", "HTTP_PROXY": "secret",
        "PYTHONSTARTUP": "evil.py", "LD_PRELOAD": "evil.so",
    }  # fmt: skip
    env = child_processes.child_env(parent)
    env.pop("PYTHONPATH", None)
    allowed = {name: value for name, value in parent.items() if value != "secret" and "evil" not in value}
    assert env == {**allowed, "GGML_NO_BACKTRACE": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def test_the_import_path_is_passed_on_only_where_the_package_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = site.getsitepackages()[0]
    monkeypatch.setattr(child_processes, "_PACKAGE_ROOT", installed)
    assert "PYTHONPATH" not in child_processes.child_env({"PYTHONPATH": "/elsewhere"})
    monkeypatch.setattr(child_processes, "_PACKAGE_ROOT", "/checkout")
    assert child_processes.child_env({})["PYTHONPATH"] == "/checkout"
    assert child_processes.child_env({"PYTHONPATH": "/elsewhere"})["PYTHONPATH"] == "/checkout"
    through = os.pathsep.join(["/libraries", "/checkout"])
    assert child_processes.child_env({"PYTHONPATH": through})["PYTHONPATH"] == through


def test_a_file_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported from the working folder')")
    command = [*child_processes.module_command("ollama_nb.runner.render"), "0", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=child_processes.child_env(os.environ), capture_output=True, check=False
    )
    assert done.stderr == b""
    assert done.returncode == 1  # its parent has another pid


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.lists(st.binary(min_size=1, max_size=30), max_size=20))
def test_the_last_bytes_of_the_output_are_kept(limit: int, chunks: list[bytes]) -> None:
    tail = child_processes.OutputTail(limit)
    for chunk in chunks:
        tail.add(chunk)
        assert sum(map(len, tail._chunks)) <= limit + len(tail._chunks[0])
    assert tail.text() == b"".join(chunks)[-limit:].decode("utf-8", "replace")


def test_the_last_line_that_is_not_blank() -> None:
    tail = child_processes.OutputTail()
    assert tail.last_line() == ""
    tail.add(b"Traceback:\nValueError: no\n\n  \n")
    assert tail.last_line() == "ValueError: no"


def test_a_child_outlives_the_thread_that_requested_it() -> None:
    children: list[child_processes.Child] = []
    asking = threading.Thread(target=lambda: children.append(asyncio.run(child_processes.start(FAKE))))
    asking.start()
    asking.join()
    (child,) = children
    with child.channel as channel:
        channel.setblocking(True)
        channel.settimeout(60)
        channel.sendall(wire.frame(wire.EngineConfig(path="ok", n_ctx=1)))
        assert channel.recv(4096)
        for _ in range(20):
            channel.sendall(wire.frame(wire.Ping()))
            assert channel.recv(4096)
    assert child.exited.result(timeout=60) == 0


def test_a_forked_process_starts_children_of_its_own() -> None:
    code = """
import asyncio, os, sys
from ollama_nb.runner import children as child_processes

async def start_and_end():
    child = await child_processes.start(sys.argv[1:])
    child.channel.close()
    return await asyncio.wrap_future(child.exited)

first = asyncio.run(start_and_end())
pid = os.fork()
if pid == 0:
    os._exit(10 + asyncio.run(start_and_end()))
print(first, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, *FAKE], check=True, capture_output=True, text=True, timeout=90)
    assert done.stdout.split() == ["0", "10"]


def test_a_cancelled_start_leaves_no_process() -> None:
    before, free = children(), threading.Event()

    def held_up() -> child_processes.Child:
        free.wait()
        raise OSError

    async def give_up() -> None:
        starting = asyncio.ensure_future(child_processes.start(FAKE))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])

    held = child_processes._submit(held_up)
    asyncio.run(give_up())  # its loop is closed before the process has started
    free.set()
    later = child_processes.start_blocking((sys.executable, "-c", ""))
    assert later.exited.result() == 0  # so that the earlier one has started
    later.channel.close()
    until(lambda: children() <= before)
    assert isinstance(held.exception(), OSError)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), subprocess.SubprocessError("no"), SystemExit(3)]
)
def test_any_failure_of_a_start_is_reported_to_its_caller(error: BaseException) -> None:
    """F36: the thread that starts children survives whatever a start raises, and so do the children."""
    first = child_processes.start_blocking(FAKE)

    def fail() -> child_processes.Child:
        raise error

    with pytest.raises(OSError):
        child_processes._submit(fail).result(60)
    assert not first.exited.done()
    for child in (child_processes.start_blocking(FAKE), first):
        child.channel.close()
        assert child.exited.result(60) == 0


@pytest.mark.parametrize("which", ["output", "wait"])
def test_a_child_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """F36: no thread for its output or its end: the child is reaped, no descriptor stays open, and Busy is raised."""
    child_processes.start_blocking((sys.executable, "-c", "")).channel.close()
    until(lambda: not children())
    before, new_thread = len(list(Path("/proc/self/fd").iterdir())), child_processes._thread

    def no_thread(target: Callable[..., None], *args: object, name: str) -> threading.Thread:
        if which in name:
            raise RuntimeError("can't start new thread")
        return new_thread(target, *args, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(child_processes, "_thread", no_thread)
        with pytest.raises(OSError, match="can't start new thread") as caught:
            child_processes.start_blocking(FAKE)
    assert isinstance(child_processes.start_error("the child", caught.value), Busy)
    assert not children()
    until(lambda: len(list(Path("/proc/self/fd").iterdir())) == before)


def test_the_thread_that_starts_children_is_started_again_if_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """F36: a dead spawner thread is replaced at the next start."""
    monkeypatch.setattr(child_processes, "_spawner", None)
    with monkeypatch.context() as patch:
        patch.setattr(child_processes._Spawner, "_run", lambda spawner: None)
        spawner = child_processes._Spawner()
    until(lambda: not spawner.alive)
    monkeypatch.setattr(child_processes, "_spawner", spawner)
    child = child_processes.start_blocking(FAKE)
    child.channel.close()
    assert child.exited.result(60) == 0


@in_loop
async def test_a_check_starts_one_child_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """F36: /readyz asks whether a child can be started; a failure is checked again at once."""
    commands: list[Sequence[str]] = []
    start = child_processes._start

    def counted(command: Sequence[str]) -> child_processes.Child:
        commands.append(command)
        return start(command)

    monkeypatch.setattr(child_processes, "_start", counted)
    monkeypatch.setattr(child_processes, "_probed", -1e9)
    await asyncio.gather(*(child_processes.check_start() for _ in range(5)))
    await child_processes.check_start()
    assert commands == [child_processes.PROBE_COMMAND]
    monkeypatch.setattr(child_processes, "_probed", -1e9)
    monkeypatch.setattr(child_processes, "PROBE_COMMAND", ("/nonexistent/python",))
    for _ in range(2):
        with pytest.raises(RunnerCrashed, match="a child process cannot be started: No such file"):
            await child_processes.check_start()
