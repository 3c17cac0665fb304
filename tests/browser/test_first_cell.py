"""JupyterLab after installation: the extension is enabled, and the first cells work without configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import jupyter_lab, open_notebook, outputs, run_all

pytestmark = [pytest.mark.browser, pytest.mark.model]

CELLS = (
    "%load_ext ollama_nb",
    "%ollama run sprout --think=false Why is the sky blue?",
    "%%ollama chat sprout\n天空为什么是蓝色的？",
    "%ollama list",
)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_the_first_cells(page: Any, tmp_path: Path, theme: str) -> None:
    with jupyter_lab(tmp_path) as lab:
        open_notebook(page, lab, lab.notebook("first.ipynb", CELLS), theme=theme)
        run_all(page)
        page.get_by_text("天空是蓝色的，因为空气对蓝光的散射比红光强。").wait_for()
        page.locator("details:not([open]) > summary", has_text="Thinking").wait_for()
        page.get_by_role("cell", name="sprout:latest").wait_for()
        shown = outputs(page)
        assert [[output["output_type"] for output in cell] for cell in shown] == [
            [],
            ["display_data"],
            ["display_data"],
            ["execute_result"],
        ]
        grey, text = (
            page.locator(where).first.evaluate("element => getComputedStyle(element).color")
            for where in ("summary", ".jp-OutputArea-output p")
        )
        assert grey != text
