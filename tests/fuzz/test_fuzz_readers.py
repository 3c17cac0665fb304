"""Fuzz every parser with the same inputs in every run; FUZZ_SECONDS sets the time, FUZZ_SEED the seed."""

from __future__ import annotations

import os

import pytest
from fuzz.budget import inputs
from fuzz.fuzz_readers import TARGETS, run


@pytest.mark.timeout(float(os.environ.get("FUZZ_SECONDS", "0")) + 600)
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target: str) -> None:
    found = run(target, inputs(1000), int(os.environ.get("FUZZ_SEED", "1")))
    assert found["inputs"] > 10
    assert 0 < found["good"] < found["inputs"]
