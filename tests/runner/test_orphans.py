"""A server that is killed leaves no child behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent.parent / "support"
SERVER = """
import asyncio, sys
from ollama_nb.runner import wire
from ollama_nb.runner.process import Runner

async def main():
    fake = (sys.executable, "-P", sys.argv[1])
    runner = await Runner.start(wire.EngineConfig(path="ok", n_ctx=128), command=fake)
    print(runner.pid, flush=True)
    await runner.wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd is Linux's")
def test_kill_9_of_the_server_ends_its_runner() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(SUPPORT / "fake_runner.py")], stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        runner = os.pidfd_open(int(server.stdout.readline()))
        try:
            assert not select.select([runner], [], [], 0)[0], "the runner runs as long as its server"
            server.send_signal(signal.SIGKILL)
            assert select.select([runner], [], [], 60)[0], "the runner outlived its server"
        finally:
            os.close(runner)


def test_end_of_file_alone_ends_a_runner() -> None:
    """Without a parent-death signal the closed socket ends the runner; here the parent continues to run."""
    code = """
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
child = subprocess.Popen([sys.executable, sys.argv[1], str(theirs.fileno()), str(os.getpid())],
                         pass_fds=(theirs.fileno(),))
theirs.close(); ours.close()
sys.exit(child.wait(timeout=60))
"""
    done = subprocess.run([sys.executable, "-c", code, str(SUPPORT / "fake_runner.py")], check=False, timeout=90)
    assert done.returncode == 0


def test_a_child_whose_parent_is_gone_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "fake_runner.py"), "0", "1"], check=False, timeout=90, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
