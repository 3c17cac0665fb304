"""Model output in the chat widget: no script runs and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import CHAT, Lab, open_notebook, replies, run_all, say
from support.fake_servers import ReplyServer
from support.payloads import PAYLOADS

pytestmark = pytest.mark.browser

PIECE = 7
"""Characters per object of the stream; small, so that payloads are cut at odd places."""

DANGEROUS = """() => [...document.querySelectorAll('.onb-reply *')].filter(element =>
    ['IMG', 'SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'LINK', 'META', 'BASE', 'FORM', 'INPUT', 'VIDEO', 'AUDIO', 'STYLE']
        .includes(element.tagName)
    || [...element.attributes].some(attribute => /^on/i.test(attribute.name)
        || /^\\s*(javascript|vbscript|data):/i.test(attribute.value))
).map(element => element.outerHTML)"""


@pytest.fixture(scope="module")
def reply_server() -> Iterator[ReplyServer]:
    server: ReplyServer

    def speak(prompt: str) -> Iterator[str]:
        wanted = PAYLOADS if prompt == "all" else [PAYLOADS[int(prompt)]]
        for text in wanted:
            text = text.replace("CANARY", f"{server.url}/canary") + "\n\n"
            yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))

    with ReplyServer(speak) as server:
        yield server


def test_nothing_runs_and_nothing_is_fetched(page: Any, lab: Lab, reply_server: ReplyServer) -> None:
    """Every payload as an answer, then all in one; a payload rendered without escaping is detected."""
    cells = [
        "from ollama_nb.notebook.widgets import conversation\nconversation.BATCH_SECONDS = 0.001",
        f"{CHAT}Chat('m')",
    ]
    open_notebook(page, lab, lab.notebook("payloads.ipynb", cells))
    run_all(page)
    page.get_by_text("Ask m").wait_for()
    for number in range(len(PAYLOADS)):
        say(page, str(number))
        replies(page).nth(number).get_by_text("tok/s").wait_for()
    say(page, "all")
    replies(page).nth(len(PAYLOADS)).get_by_text("tok/s").wait_for()
    page.wait_for_load_state("networkidle")
    assert len(PAYLOADS) >= 40
    assert page.evaluate("() => window.__pwned") is None
    assert [path for path in reply_server.visits if path.startswith("/canary")] == []
    assert page.evaluate(DANGEROUS) == []

    page.evaluate(  # the trap works
        "html => document.querySelector('.onb-answer').insertAdjacentHTML('beforeend', html)",
        f"""<img src="{reply_server.url}/canary/control" onerror="window.__pwned = 1">""",
    )
    page.wait_for_function("() => window.__pwned === 1")
    assert {path for path in reply_server.visits if path.startswith("/canary")} == {"/canary/control"}
    assert page.evaluate(DANGEROUS) != []
