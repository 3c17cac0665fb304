"""The ledger: its content after a kill, its lock, and when a later run reuses it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.errors import Busy, OllamaError
from ollama_nb.notebook.frame.ledger import KEPT_SECONDS, Ledger, hash_of


def entry(number: int) -> dict[str, str]:
    return {"key": f"k{number}", "value": f"答{number}"}


def filled(folder: Path, count: int, *, deterministic: bool = True, finished: bool = False) -> Path:
    ledger = Ledger(folder, "run", deterministic=deterministic)
    for number in range(count):
        ledger.add([entry(number)])
    if finished:
        ledger.finish()
    ledger.close()
    return ledger.path


def reopened(folder: Path, *, deterministic: bool = True) -> dict[str, dict[str, str]]:
    ledger = Ledger(folder, "run", deterministic=deterministic)
    ledger.close()
    return ledger.done


def test_answers_come_back(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledgers", 3)
    assert reopened(tmp_path / "ledgers") == {f"k{number}": entry(number) for number in range(3)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_kill_at_any_byte_loses_at_most_the_line_being_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    path = filled(folder, 4)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    ledger = Ledger(folder, "run", deterministic=True)
    assert [*ledger.done] == [f"k{number}" for number in range(kept)]
    ledger.add([entry(9)])
    ledger.close()
    assert [*reopened(folder)] == [*(f"k{number}" for number in range(kept)), "k9"]


def test_a_finished_run_is_reused_only_if_the_job_is_deterministic(tmp_path: Path) -> None:
    filled(tmp_path / "a", 3, finished=True)
    assert len(reopened(tmp_path / "a")) == 3
    filled(tmp_path / "b", 3, deterministic=False)
    assert len(reopened(tmp_path / "b", deterministic=False)) == 3
    filled(tmp_path / "c", 3, deterministic=False, finished=True)
    assert reopened(tmp_path / "c", deterministic=False) == {}


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    path = filled(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b'nonsense\n[1]\n{"no": "key"}\n"text"\n')
    assert [*reopened(tmp_path)] == ["k0"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ollama_nb.notebook.frame.ledger import Ledger\n"
        "Ledger(Path(sys.argv[1]), 'run', deterministic=True); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(Busy, match="another kernel is processing the same rows"):
            Ledger(tmp_path, "run", deterministic=True)
        other.kill()
    assert reopened(tmp_path) == {}


def test_old_ledgers_are_removed(tmp_path: Path) -> None:
    path = filled(tmp_path, 1)
    old = path.rename(tmp_path / "old.jsonl")
    moment = old.stat().st_mtime - KEPT_SECONDS - 60
    os.utime(old, (moment, moment))
    filled(tmp_path, 1)
    assert [found.name for found in tmp_path.iterdir()] == ["run.jsonl"]


def test_an_unwritable_folder_raises_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OllamaError, match=r"the ledger .*Not a directory.*ledger=False"):
        Ledger(tmp_path / "file" / "ledgers", "run", deterministic=True)


def test_hashes_depend_on_everything_but_the_order_of_options() -> None:
    assert hash_of("d", {"a": 1, "b": 2}) == hash_of("d", {"b": 2, "a": 1})
    assert len({hash_of("d", {"a": 1}), hash_of("d", {"a": 2}), hash_of("e", {"a": 1}), hash_of("d", {"a": "1"})}) == 4
