"""Model output in a real JupyterLab and browser: no script runs and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import Lab, open_notebook, outputs, run_all
from support.fake_servers import ReplyServer
from support.payloads import PAYLOADS

pytestmark = pytest.mark.browser

PIECE = 7
"""Characters per object of the stream; small, so that payloads are cut at odd places."""


@pytest.fixture(scope="module")
def reply_server() -> Iterator[ReplyServer]:
    server: ReplyServer

    def speak(prompt: str) -> Iterator[str]:
        text = PAYLOADS[int(prompt)].replace("CANARY", f"{server.url}/canary/{prompt}")
        yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))

    with ReplyServer(speak) as server:
        yield server


def canary_visits(reply_server: ReplyServer) -> list[str]:
    return [path for path in reply_server.visits if path.startswith("/canary") and path != "/canary/control"]


def test_the_detection_works(page: Any, lab: Lab, reply_server: ReplyServer) -> None:
    """Rendered without escaping, a payload runs and fetches, so the tests below would detect it."""
    canary = f"{reply_server.url}/canary/control"
    html = f"""<img src=x onerror="window.__pwned=1"><img src="{canary}">"""
    open_notebook(page, lab, lab.notebook("control.ipynb", [f"from IPython.display import HTML\nHTML('''{html}''')"]))
    run_all(page)
    page.wait_for_function("() => window.__pwned === 1")
    page.wait_for_function("() => document.querySelectorAll('.jp-OutputArea img').length === 2")
    page.wait_for_load_state("networkidle")
    assert reply_server.visits.count("/canary/control") > 0


def test_nothing_runs_and_nothing_is_fetched(page: Any, lab: Lab, reply_server: ReplyServer) -> None:
    """S22, S23: Every payload streams into its own cell, and each intermediate state is rendered."""
    set_up = "from ollama_nb.notebook import display\ndisplay.INTERVAL, display.MAX_RATE = 0, 1e12"
    cells = [f"%load_ext ollama_nb\n{set_up}"]
    cells += [f"%%ollama chat m --reset\n{number}" for number in range(len(PAYLOADS))]
    open_notebook(page, lab, lab.notebook("payloads.ipynb", cells))
    run_all(page)
    page.get_by_text("tok/s").last.wait_for()
    page.wait_for_load_state("networkidle")
    shown = outputs(page)
    assert [len(cell) for cell in shown] == [0] + [1] * len(PAYLOADS)
    assert all(cell[0]["output_type"] == "display_data" for cell in shown[1:])
    assert page.locator(".jp-OutputArea-output").count() == len(PAYLOADS)
    assert page.evaluate("() => window.__pwned") is None
    assert canary_visits(reply_server) == []
    dangerous = page.evaluate(
        """() => [...document.querySelectorAll('.jp-OutputArea-output *')].filter(element =>
            ['IMG', 'SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'LINK', 'META', 'BASE', 'FORM', 'INPUT', 'VIDEO', 'AUDIO']
                .includes(element.tagName)
            || [...element.attributes].some(attribute => /^on/i.test(attribute.name)
                || /^\\s*(javascript|vbscript|data):/i.test(attribute.value))
        ).map(element => element.outerHTML)"""
    )
    assert dangerous == []


def test_a_saved_notebook_does_nothing_when_opened_again(page: Any, lab: Lab, reply_server: ReplyServer) -> None:
    name = lab.notebook("again.ipynb", ["%load_ext ollama_nb", *(f"%ollama run m {n}" for n in range(len(PAYLOADS)))])
    open_notebook(page, lab, name)
    run_all(page)
    page.get_by_text("tok/s").last.wait_for()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    open_notebook(page, lab, name)
    page.get_by_text("tok/s").last.wait_for()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("() => window.__pwned") is None
    assert canary_visits(reply_server) == []
    assert "window.__pwned" in Path(lab.root / name).read_text("utf-8")
