"""Full and read-only disks: a tmpfs of 8 MiB in a mount namespace of the test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent


def on_a_small_disk(what: str, folder: Path) -> dict[str, Any]:
    disk = folder / "disk"
    disk.mkdir()
    shell = 'mount -t tmpfs -o size=8m tmpfs "$2" && exec "$3" -m support.small_disk "$1" "$2"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, "sh", what, disk, sys.executable]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    if done.returncode and re.search("unshare: |mount: .*(permission|denied|must be)", done.stderr):
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_full_at_every_stage(tmp_path: Path) -> None:
    found = on_a_small_disk("full", tmp_path)
    for stage in ("upload", "copy", "texts", "key"):
        assert "no space left on the disk" in found[stage]["error"], stage
        assert found[stage]["seconds"] < 5
    assert re.search(r"need 1.* MB, have \d+ KB", found["import"]["error"]), "known before anything is written"
    assert found["while full"] == {"reply": "still served", "listed": ["tales:latest"], "shown": True}
    assert found["left over"] == []
    assert found["freed"] == {} == found["imported"], "as soon as there is room, without a restart"


def test_full_in_the_middle_of_the_work(tmp_path: Path) -> None:
    """There was space at the start; another process uses it up."""
    found = on_a_small_disk("work", tmp_path)
    for stage in ("quantise at first", "convert at first"):
        assert re.search(r"need .*B, have \d+ KB", found[stage]["error"]), stage
    for stage in ("pull", "quantise", "convert"):
        assert found[stage]["error"].endswith("no space left on the disk"), stage
        assert (found[stage]["reply"], found[stage]["shown"]) == ("still served", True), stage
        assert found[stage]["freed"] == {}, "as soon as there is room, without a restart"
    assert found["quantise"]["left over"] == found["convert"]["left over"] == []
    assert found["pull"]["pulled"] == ["tales:latest"]
    assert found["pull"]["again"] == 0, "no try after try against a full disk"


def test_full_while_a_batch_runs(tmp_path: Path) -> None:
    """No result is lost and no request runs twice."""
    assert on_a_small_disk("batch", tmp_path) == {"full": ["in_progress", 0], "ran": 4, "lines": 4}


def test_read_only(tmp_path: Path) -> None:
    found = on_a_small_disk("readonly", tmp_path)
    for stage in ("create", "texts", "copy", "delete"):
        assert found[stage]["status"] == 403, (stage, found[stage])
        assert found[stage]["error"].endswith("the disk is read-only"), stage
    assert found["works"] == {"reply": "still served", "listed": ["tales:latest"], "shown": True}
    assert found["start"] == found["fsck"] == found["df"] == {}


def test_a_server_on_a_read_only_models_folder(tmp_path: Path) -> None:
    """F12: stored models are listed, shown and run; changes are refused, also the first use of the bundled model."""
    found = on_a_small_disk("served", tmp_path)
    code, listed, error = found["cli"]
    assert (code, error) == (0, "") and "tales:latest" in listed
    for what, (status, _) in found["reads"].items():
        assert status == 200, what
    assert found["reads"]["generate"][1]["eval_count"] == 4
    for what, (status, reply) in (found["writes"] | found["bundled"]).items():
        assert (status, reply["code"]) == (403, "store_error"), what
        assert re.search(r"cannot \w+( in)? (blobs|manifests)\b[\w/.-]*: the disk is read-only", reply["error"]), what
        assert str(tmp_path) not in reply["error"], what
    for what, (_, reply) in found["bundled"].items():
        assert reply["error"].startswith('the bundled model "sprout" must be written into the models folder'), what
        assert "OLLAMA_MODELS" in reply["error"], what
