"""The layout of the widgets with long and wide contents, measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import Lab, open_notebook, replies, run_all, say
from support.fake_servers import ReplyServer

pytestmark = pytest.mark.browser

TABLE = "| Name | Occupation | Notes |\n|---|---|---|\n| 玛丽亚 | Teacher | " + "word" * 30 + " |\n\n" + "Text. " * 200


@pytest.fixture(scope="module")
def reply_server() -> Iterator[ReplyServer]:
    with ReplyServer(lambda prompt: iter([TABLE if prompt == "table" else f"You said: {prompt}"])) as server:
        yield server


def open_chat(page: Any, lab: Lab, reply_server: ReplyServer, name: str, *more_cells: str, **more: str) -> None:
    cell = (
        "from ollama_nb import Chat, Models\nfrom ollama_nb.client.connect import connect\n"
        f"chat = Chat('m', find_server=lambda: connect('{reply_server.url}'))\nchat"
    )
    open_notebook(page, lab, lab.notebook(f"{name}.ipynb", [cell, *more_cells]), **more)
    run_all(page)
    page.get_by_text("Ask m").first.wait_for()


def test_a_long_answer_in_a_narrow_window(page: Any, shared_lab: Lab, reply_server: ReplyServer) -> None:
    """Texts for screen readers cover nothing, columns are as wide as their words, and a wide table scrolls."""
    page.set_viewport_size({"width": 600, "height": 900})
    open_chat(page, shared_lab, reply_server, "narrow")
    say(page, "table")
    replies(page).get_by_text("tok/s").wait_for()
    announced = page.locator(".onb-offscreen[role=status]")
    assert announced.inner_text().startswith("| Name")
    assert (announced.bounding_box()["width"], announced.bounding_box()["height"]) == (1, 1)
    assert page.evaluate("() => [...document.querySelectorAll('.onb th')].every(cell => cell.clientHeight < 40)")
    wide = page.locator(".onb table").evaluate("table => [table.scrollWidth, table.clientWidth]")
    assert wide[0] > wide[1]
    assert page.locator(".onb-log").evaluate("log => log.scrollWidth - log.clientWidth") == 0


def test_two_views_of_one_chat_show_the_same(page: Any, shared_lab: Lab, reply_server: ReplyServer) -> None:
    """In both views each exchange appears once, and regenerating an answer removes the later ones."""
    open_chat(page, shared_lab, reply_server, "views", "chat")
    page.get_by_text("Ask m").nth(1).wait_for()
    views = [page.locator(".onb-chat").nth(number) for number in (0, 1)]
    for number, text in enumerate(("one", "two", "three")):
        box = views[number % 2].get_by_label("Message", exact=True)
        box.fill(text)
        box.press("Enter")
        for view in views:
            view.locator(f".onb-exchange[data-id='{number}'][aria-busy=false]").wait_for()
    views[1].get_by_role("button", name="Regenerate the answer").nth(1).focus()
    page.keyboard.press("Enter")
    for view in views:
        view.locator(".onb-exchange[data-id='3'][aria-busy=false]").wait_for()
        assert view.locator(".onb-bubble").all_inner_texts() == ["one", "two"]
    assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Message"  # the button is gone


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_the_text_area_is_visible(page: Any, shared_lab: Lab, reply_server: ReplyServer, theme: str) -> None:
    """Its outline has a contrast of 3:1 and a focus ring, also beside the styles of another widget."""
    open_chat(page, shared_lab, reply_server, f"outline-{theme[-4:]}", "Models()", theme=theme)
    page.get_by_label("Model to pull").wait_for()
    for where, paper in ((".onb-composer", ".onb-composer"), (".onb-pull-form input", ".onb-pull-form input")):
        assert contrast(page, where, "borderTopColor", paper) >= 3
    page.locator(".onb-chat").get_by_label("Message", exact=True).focus()
    assert page.locator(".onb-input").evaluate("area => getComputedStyle(area).outlineStyle") == "none"
    assert page.locator(".onb-composer").evaluate("area => getComputedStyle(area).boxShadow") != "none"
    heights = page.evaluate(
        "() => [...document.querySelectorAll('.onb :is(input[type=number], select)')]"
        ".map(one => getComputedStyle(one).height)"
    )
    assert len(heights) == 4 and set(heights) == {"34px"}


def contrast(page: Any, where: str, name: str, paper: str) -> float:
    """The contrast of a colour and its background, by the formula of WCAG 2."""
    value: float = page.evaluate(
        """([where, name, paper]) => {
            const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
            const light = (selector, property) => {
                canvas.fillStyle = getComputedStyle(document.querySelector(selector))[property];
                canvas.fillRect(0, 0, 1, 1);
                const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data]
                    .map(one => one / 255).map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
                return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
            };
            const both = [light(paper, 'backgroundColor'), light(where, name)].sort((one, two) => two - one);
            return both[0] / both[1];
        }""",
        [where, name, paper],
    )
    return value
