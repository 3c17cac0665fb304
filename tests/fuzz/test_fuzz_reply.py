"""Fuzz reply parsers with the same inputs in every run; FUZZ_SECONDS sets the time, FUZZ_SEED the seed."""

from __future__ import annotations

import os

import pytest
from fuzz.budget import inputs
from fuzz.fuzz_reply import TARGETS

COUNTS = {"t11": 2500, "t12": 25_000}


@pytest.mark.timeout(float(os.environ.get("FUZZ_SECONDS", "0")) + 900)
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target: str) -> None:
    assert TARGETS[target](inputs(COUNTS[target]), int(os.environ.get("FUZZ_SEED", "1"))) > 100
