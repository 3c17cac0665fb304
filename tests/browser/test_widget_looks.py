"""What a page looks like with long, wide and many words, measured rather than looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.lab import Lab, open_notebook, run_all
from support.widgets import replies, say
from support.words import WordServer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

TABLE = "| Name | Occupation | Notes |\n|---|---|---|\n| 玛丽亚 | Teacher | " + "word" * 30 + " |\n\n" + "Text. " * 200


@pytest.fixture(scope="module")
def words() -> Iterator[WordServer]:
    with WordServer(lambda said: iter([TABLE if said == "table" else f"You said: {said}"])) as server:
        yield server


def open_chat(page: Any, lab: Lab, words: WordServer, name: str, **more: str) -> None:
    cell = (
        "from ollama_nb import Chat\nfrom ollama_nb.client.connect import connect\n"
        f"Chat('m', find_server=lambda: connect('{words.url}'))"
    )
    open_notebook(page, lab, lab.notebook(f"{name}.ipynb", [cell]), **more)
    run_all(page)
    page.get_by_text("Ask m").wait_for()


def test_a_long_answer_in_a_narrow_window(page: Any, shared_lab: Lab, words: WordServer) -> None:
    """What screen readers are told covers nothing; columns are as wide as their words, and a table scrolls."""
    page.set_viewport_size({"width": 600, "height": 900})
    open_chat(page, shared_lab, words, "narrow")
    say(page, "table")
    replies(page).get_by_text("tok/s").wait_for()
    heard = page.locator(".onb-offscreen[role=status]")
    assert heard.inner_text().startswith("| Name")
    assert (heard.bounding_box()["width"], heard.bounding_box()["height"]) == (1, 1)
    assert page.evaluate("() => [...document.querySelectorAll('.onb th')].every(cell => cell.clientHeight < 40)")
    wide = page.locator(".onb table").evaluate("table => [table.scrollWidth, table.clientWidth]")
    assert wide[0] > wide[1]
    assert page.locator(".onb-log").evaluate("log => log.scrollWidth - log.clientWidth") == 0
