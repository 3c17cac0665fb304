"""Where the file system can share extents, a file becomes a blob without using more space; elsewhere it is copied.

Uses real file systems in loop devices, and needs root and the ``mkfs`` programs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_disk import SHARED_SIZE

TESTS = Path(__file__).parent.parent
MKFS = {"btrfs": ["mkfs.btrfs", "-q"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "ext4": ["mkfs.ext4", "-q"]}
DISK = 400 << 20
"""Bytes of the sparse image; XFS needs at least 300 MB."""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount images")
@pytest.mark.parametrize(("kind", "shares"), [("btrfs", True), ("xfs", True), ("ext4", False)])
def test_a_file_of_the_same_disk(tmp_path: Path, kind: str, shares: bool) -> None:
    if shutil.which(MKFS[kind][0]) is None:
        pytest.skip(f"no {MKFS[kind][0]} here")
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK)
    subprocess.run([*MKFS[kind], image], check=True, capture_output=True)
    shell = 'mount -o loop "$1" "$2" && exec "$3" -m support.small_disk share "$2"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", image, disk, sys.executable]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    if done.returncode and re.search("unshare: |mount: ", done.stderr):
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] and found["name"], "what is written to the file later does not reach the blob"
    assert found["cost"] < SHARED_SIZE // 16 if shares else found["cost"] >= SHARED_SIZE
