"""A process that works through a table is killed at random rows: no row is lost, no answered row is asked again.

Only requests in flight at a kill are repeated.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.fake_servers import MODEL, EchoServer
from support.servers import clean_env

WORK = """
import json, sys
import pandas as pd
import ollama_nb
words = pd.Series([f"row {number}" for number in range(int(sys.argv[1]))])
answers = words.ollama.generate(sys.argv[2], **json.loads(sys.argv[3]))
print(json.dumps(answers.tolist()))
"""


@pytest.mark.parametrize("keywords", [{"temperature": 0}, {}], ids=["determined", "drawn"])
def test_kills_lose_and_double_nothing(tmp_path: Path, keywords: dict[str, int]) -> None:
    """F42: a table that is killed in the middle continues without a lost or doubled row."""
    _kill_and_finish(tmp_path, rows=80, kills=3, keywords=keywords)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("keywords", [{"temperature": 0}, {}], ids=["determined", "drawn"])
def test_fifty_kills_over_two_thousand_rows(tmp_path: Path, keywords: dict[str, int]) -> None:
    """F42: the same with 50 kills."""
    _kill_and_finish(tmp_path, rows=2000, kills=50, keywords=keywords)


def _kill_and_finish(home: Path, *, rows: int, kills: int, keywords: dict[str, int]) -> None:
    rng = random.Random(rows)
    with EchoServer() as server:
        env = clean_env(home, OLLAMA_HOST=server.url)
        command = [sys.executable, "-c", WORK, str(rows), MODEL, json.dumps(keywords)]
        in_flight = server.slots + 2
        share = (rows - in_flight * kills) // kills  # slow enough that every kill interrupts rows
        for _ in range(kills):
            _run_until(server, command, env, rng.randint(1, share))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [f"ROW {number}" for number in range(rows)]
    (ledger,) = (home / ".ollama" / "nb" / "ledgers").iterdir()
    lines = [json.loads(line) for line in ledger.read_text("utf-8").splitlines()]
    entries = [line for line in lines if "key" in line]
    assert len(entries) == len({entry["key"] for entry in entries}) == rows
    assert sorted(entry["value"] for entry in entries) == sorted(f"ROW {number}" for number in range(rows))
    assert len(server.questions) == rows
    assert server.asked_times <= rows + kills * in_flight


def _run_until(server: EchoServer, command: list[str], env: dict[str, str], question: int) -> None:
    """Start the process and kill it when request number ``question`` arrives."""
    lock, heard, killed = threading.Lock(), 0, threading.Event()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:

        def count(text: str) -> None:
            nonlocal heard
            with lock:
                heard += 1
                if heard == question:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.set()

        server.before = count
        _, errors = process.communicate(timeout=120)
        assert killed.is_set(), errors.decode()
        assert process.returncode == -signal.SIGKILL
    server.before = lambda text: None
