"""The chat widget in JupyterLab and Notebook: mouse, keyboard, both themes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.browser import CHAT, Lab, jupyter_notebook, message_box, open_notebook, replies, run_all, say

pytestmark = [pytest.mark.browser, pytest.mark.model]

SKY = "天空为什么是蓝色的？"
BLUE = "天空是蓝色的，因为空气对蓝光的散射比红光强。"
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def open_chat(page: Any, lab: Lab, name: str, **more: str) -> None:
    open_notebook(page, lab, lab.notebook(f"{name}.ipynb", [f"{CHAT}Chat('sprout', temperature=0)"]), **more)
    run_all(page)
    page.get_by_text("Ask sprout").wait_for()


def test_a_chat_in_notebook_by_keyboard_alone(page: Any, tmp_path: Path) -> None:
    """In the dark theme too: the contrast of texts is high enough, and the focus is visible."""
    with jupyter_notebook(tmp_path) as notebook:
        open_chat(page, notebook, "keys", theme="JupyterLab Dark")
        message_box(page).focus()
        for _ in range(4):  # attach and send are behind the text; before it: the conversation, new, export, settings
            page.keyboard.press("Shift+Tab")
        assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Settings"
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.type("dd")  # would delete the cell, if it reached the notebook
        page.keyboard.press("Enter")
        page.keyboard.type("Answer in Chinese.")
        page.keyboard.press("Escape")
        for _ in range(4):
            page.keyboard.press("Tab")
        page.keyboard.type(SKY)
        page.keyboard.press("Shift+Enter")
        page.keyboard.press("Backspace")
        assert page.locator(".onb-exchange").count() == 0
        page.keyboard.press("Enter")
        page.locator(".onb-answer", has_text=BLUE).wait_for()
        replies(page).get_by_text("tok/s").wait_for()
        colours = page.evaluate(
            """() => ['color', 'backgroundColor'].map(name =>
                getComputedStyle(document.querySelector('.onb'))[name].match(/\\d+/g).slice(0, 3).map(Number))"""
        )
        assert sum(colours[0]) - sum(colours[1]) > 300


def test_edit_regenerate_copy_and_export(page: Any, shared_lab: Lab) -> None:
    open_chat(page, shared_lab, "again")
    say(page, "Why is the sky blue?")
    replies(page).get_by_text("tok/s").wait_for()
    say(page, "Hello!")
    replies(page).nth(1).get_by_text("tok/s").wait_for()
    page.get_by_role("button", name="Regenerate the answer").nth(1).click()
    page.locator(".onb-exchange[data-id='2'][aria-busy=false]").get_by_text("tok/s").wait_for()
    page.get_by_role("button", name="Edit the question").first.click()
    page.get_by_role("textbox", name="Edit the question").fill(SKY)
    page.keyboard.press("Enter")
    page.locator(".onb-answer", has_text=BLUE).wait_for()
    replies(page).get_by_text("tok/s").wait_for()
    assert page.locator(".onb-exchange").count() == 1

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the answer").click()
    page.wait_for_function(f"async () => (await navigator.clipboard.readText()).startsWith('{BLUE}')")
    page.get_by_role("button", name="Export").click()
    page.get_by_role("menuitem", name="Copy as code").click()
    page.get_by_text("Copied.").wait_for()
    assert f"print(chat.ask('{SKY}'))" in page.evaluate("() => navigator.clipboard.readText()")
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Download as a notebook").click()
    cells = json.loads(Path(download.value.path()).read_text("utf-8"))["cells"]
    assert cells[1]["source"] == f"%%ollama chat sprout --reset --temperature 0\n{SKY}"
    assert cells[1]["outputs"][0]["data"]["text/plain"].startswith(BLUE)


def test_characters_being_composed_are_not_sent(page: Any, shared_lab: Lab) -> None:
    open_chat(page, shared_lab, "compose")
    message_box(page).focus()
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "tian", "selectionStart": 4, "selectionEnd": 4})
    message_box(page).evaluate(
        "area => area.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    keyboard.send("Input.insertText", {"text": SKY})
    assert message_box(page).input_value() == SKY
    assert page.locator(".onb-exchange").count() == 0
    page.keyboard.press("Enter")
    page.locator(".onb-answer", has_text=BLUE).wait_for()


def test_images_are_pasted_dropped_and_sent(page: Any, shared_lab: Lab) -> None:
    """sprout answers that it cannot read images."""
    open_chat(page, shared_lab, "pictures")
    drop = """([part, kind, data]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], 'dot.png', {type: 'image/png'}));
        const event = kind === 'drop' ? new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true})
            : new ClipboardEvent(kind, {clipboardData: transfer, bubbles: true, cancelable: true});
        document.querySelector(part).dispatchEvent(event);
    }"""
    page.evaluate(drop, [".onb-input", "paste", base64.b64encode(DOT).decode()])
    page.locator(".onb-thumb").wait_for()
    page.evaluate(drop, [".onb-log", "drop", base64.b64encode(DOT).decode()])
    page.locator(".onb-thumb").nth(1).wait_for()
    page.get_by_role("button", name="Remove this image").first.click()
    say(page, "What is this?")
    page.locator(".onb-exchange .onb-pictures img").wait_for()
    page.locator(".onb-error").wait_for()
    assert page.locator(".onb-thumb").count() == 0


@pytest.mark.slow
def test_settings_reach_the_model(page: Any, shared_lab: Lab) -> None:
    open_chat(page, shared_lab, "set-up")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Answer as").select_option("schema")
    page.get_by_label("Schema", exact=True).fill('{"type": "object", "properties": {"sky": {"enum": ["blue"]}}}')
    page.get_by_label("Thinking", exact=True).select_option("off")
    page.keyboard.press("Escape")
    say(page, "What colour is the sky?")
    replies(page).get_by_text("tok/s").wait_for()
    assert json.loads(page.locator(".onb-answer").inner_text()).get("sky", "blue") == "blue"
    assert page.locator(".onb-thinking:visible").count() == 0
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Ask sprout").wait_for()
