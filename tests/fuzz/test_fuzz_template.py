"""A few seconds of hostile templates in every run of the tests; FUZZ_SECONDS makes it longer, FUZZ_SEED another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("FUZZ_SECONDS", "5"))
SEED = os.environ.get("FUZZ_SEED", "1")


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize(("language", "mib"), [("go", 64), ("jinja", 448)])
def test_hostile_templates_end_in_template_errors(language: str, mib: int) -> None:
    fuzz = [sys.executable, str(Path(__file__).with_name("fuzz_template.py")), language]
    run = subprocess.run([*fuzz, "--seconds", str(SECONDS), "--seed", SEED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["findings"] == []
    assert found["executions"] > found["texts"] > 0
    assert found["grown"] <= mib
