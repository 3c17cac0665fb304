"""A few seconds of fuzzing in every run of the tests; ``FUZZ_SECONDS`` makes it longer, ``FUZZ_SEED`` repeats one."""

from __future__ import annotations

import os

import pytest
from fuzz.fuzz_reply import TARGETS

SECONDS = float(os.environ.get("FUZZ_SECONDS", "5"))


@pytest.mark.timeout(SECONDS * 2 + 600)
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target: str) -> None:
    seed = int(os.environ.get("FUZZ_SEED", "1"))
    assert TARGETS[target](SECONDS, seed) > 20
