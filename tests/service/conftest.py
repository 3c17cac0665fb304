from __future__ import annotations

from pathlib import Path

import pytest
from support.service_harness import ServiceHarness


@pytest.fixture
def harness(tmp_path: Path) -> ServiceHarness:
    """A service over an empty store, with a scripted pool."""
    return ServiceHarness(tmp_path)
