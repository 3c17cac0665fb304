"""The notebook about OpenAI's and Anthropic's clients reproduces its saved outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.servers import CLIENT_BOOKS, NOTEBOOKS, check_outputs


@pytest.mark.model
def test_outputs_are_reproduced(tmp_path: Path) -> None:
    check_outputs([NOTEBOOKS / f"{name}.ipynb" for name in sorted(CLIENT_BOOKS)], tmp_path)
