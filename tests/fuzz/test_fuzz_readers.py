"""A second of fuzzing for each reader in every run of the tests; FUZZ_SECONDS makes it longer, FUZZ_SEED another."""

from __future__ import annotations

import os

import pytest
from fuzz.fuzz_readers import TARGETS, run

SECONDS = float(os.environ.get("FUZZ_SECONDS", "1"))


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target: str) -> None:
    found = run(target, SECONDS, int(os.environ.get("FUZZ_SEED", "1")))
    assert found["inputs"] > 10
    assert 0 < found["good"] < found["inputs"]
