"""The magics in a page: columns, a chat widget, code in a new cell, an explained error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.browser import jupyter_lab, open_notebook, outputs
from support.service_harness import MODELS

pytestmark = [pytest.mark.browser, pytest.mark.model]

CELLS = (
    "%load_ext ollama_nb",
    f"%%ollama create tiny\nFROM {MODELS / 'stories260K-q8_0.gguf'}\nPARAMETER num_predict 20",
    "both = %ollama compare sprout tiny --think=false Why is the sky blue?",
    "%ollama list",
    "%ollama ps",
    '_ollama = \'```python\\nprint("from " + "the answer")\\n```\'\n%ollama code',
    "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    import sys; sys.last_value = error\n"
    "%ollama explain sprout --think=false --num-predict 40",
    "%ollama env",
    "%ollama run sprout",
    "%ollama run sprout --temprature 1 hi",
)


def test_the_output_of_the_magics(page: Any, tmp_path: Path) -> None:
    with jupyter_lab(tmp_path) as lab:
        open_notebook(
            page, lab, lab.notebook("magics.ipynb", CELLS), theme=os.environ.get("LAB_THEME", "JupyterLab Light")
        )
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        page.get_by_text("Did you mean").wait_for(timeout=120_000)
        # A new cell below the one that asked for it, filled and not run.
        page.wait_for_function("() => window.jupyterapp.shell.currentWidget.content.widgets.length === 11")
        shown = outputs(page)
        sources = page.evaluate(
            "() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.sharedModel.source)"
        )
        assert sources[6] == 'print("from " + "the answer")' and shown[6] == []
        columns = page.locator(".jp-OutputArea-output div[style*='display: grid'] > div")
        boxes = [columns.nth(number).bounding_box() for number in (0, 1)]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        assert [output["output_type"] for output in shown[2]] == ["display_data"]
        page.get_by_role("cell", name="tiny:latest").first.wait_for()
        page.locator(".jp-OutputArea-output textarea, .jp-OutputArea-output [contenteditable]").last.wait_for()
        assert "did you mean `--temperature`" in str(shown[10]).lower()
        if folder := os.environ.get("SCREENSHOTS"):
            page.set_viewport_size({"width": 1100, "height": 2600})
            page.screenshot(path=f"{folder}/magics.png")
