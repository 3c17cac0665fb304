"""Fuzz templates with the same inputs in every run; FUZZ_SECONDS sets the time, FUZZ_SEED the seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = os.environ.get("FUZZ_SECONDS")
SEED = os.environ.get("FUZZ_SEED", "1")


@pytest.mark.timeout(float(SECONDS or 0) + 900)
@pytest.mark.parametrize(("language", "count", "mib"), [("go", 1500, 64), ("jinja", 250, 448)])
def test_hostile_templates_end_in_template_errors(language: str, count: int, mib: int) -> None:
    fuzz = [sys.executable, str(Path(__file__).with_name("fuzz_template.py")), language]
    length = ["--seconds", SECONDS] if SECONDS else ["--count", str(count)]
    run = subprocess.run([*fuzz, *length, "--seed", SEED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["findings"] == []
    assert found["executions"] > found["texts"] > 0
    assert found["grown"] <= mib
