"""The model manager and the activity view, while a cell is busy."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest
from support.browser import CHAT, ENDLESS, Lab, open_notebook, queue, replies, run_all, run_cell, say, until_runs
from support.chaos_registry import ChaosRegistry, rationed, stall

from ollama_nb import sprout

pytestmark = [pytest.mark.browser, pytest.mark.model]

MODELS = "from ollama_nb.notebook.widgets import Activity, Models\n"


def publish(registry: ChaosRegistry, name: str) -> str:
    """The bundled model with another digest, so that it must be downloaded."""
    weights = sprout.GGUF.read_bytes() + name.encode().ljust(64, b"\0")
    return registry.publish(f"here/{name}:small", model=weights)


def pull(page: Any, name: str) -> None:
    page.get_by_label("Model to pull").fill(name)
    page.get_by_label("allow plain HTTP").check()
    page.get_by_role("button", name="Pull", exact=True).click()


def test_pull_with_a_moving_bar_show_and_delete(page: Any, shared_lab: Lab, registry: ChaosRegistry) -> None:
    """While a cell is busy all the time."""
    name = publish(registry, "moving")
    ration = threading.Semaphore(0)
    registry.always = rationed(ration)
    cells = [f"{MODELS}Models()", "import time\ntime.sleep(600)"]
    open_notebook(page, shared_lab, shared_lab.notebook("models.ipynb", cells))
    run_cell(page, 0)
    page.get_by_label("Model to pull").wait_for()
    run_cell(page, 1)
    until_runs(page, 1)
    pull(page, name)
    bar = page.locator(".onb-pull progress[value]")
    bar.wait_for()
    bar.evaluate(
        """bar => {
            const seen = window.seen = [bar.value];
            setInterval(() => { if (bar.value !== seen.at(-1)) seen.push(bar.value); }, 5);
        }"""
    )
    for moves in range(1, 4):
        ration.release(8)
        page.wait_for_function("moves => window.seen.length > moves", arg=moves)
    seen = page.evaluate("() => window.seen")
    assert seen == sorted(seen) and seen[-1] < bar.evaluate("bar => bar.max")
    ration.release(10_000)
    page.get_by_text(f"{name} is installed.").wait_for()
    assert page.locator(".onb-pull").count() == 0
    row = page.locator(f".onb-row[data-name='{name}']")
    row.get_by_role("button", name="Show").click()
    row.locator("dt", has_text="architecture").wait_for()
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Keep").click()
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Delete", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_text(f"{name} was deleted.").wait_for()
    row.wait_for(state="detached")
    assert page.get_by_label("Model to pull").evaluate("input => input === document.activeElement")


@pytest.mark.slow
def test_a_pull_is_cancelled(page: Any, shared_lab: Lab, registry: ChaosRegistry) -> None:
    name = publish(registry, "cancelled")
    registry.always = stall
    open_notebook(page, shared_lab, shared_lab.notebook("cancel.ipynb", [f"{MODELS}Models()"]))
    run_all(page)
    pull(page, name)
    page.locator(".onb-pull progress[value]").wait_for()
    page.get_by_role("button", name="Cancel pulling").click()
    page.locator(".onb-pull").wait_for(state="detached")
    assert page.locator(".onb-notice:visible").count() == 0
    assert page.locator(f".onb-row[data-name='{name}']").count() == 0
    assert queue(page, shared_lab) == []


def test_the_chat_offers_to_pull(page: Any, shared_lab: Lab) -> None:
    """A suggestion for a model that is not installed, and the error for a name that no registry has."""
    open_notebook(page, shared_lab, shared_lab.notebook("offer.ipynb", [f"{CHAT}Chat('sprout')"]))
    run_all(page)
    page.get_by_role("button", name="sprout", exact=True).click()
    page.get_by_label("Find a model").fill("qwen3:0.6b")
    page.locator(".onb-choices").get_by_text("523 MB to download · about 875 MB of memory").wait_for()
    page.keyboard.press("Enter")
    page.get_by_text("is not installed").wait_for()
    page.get_by_role("button", name="Not now").click()
    page.get_by_role("button", name="sprout", exact=True).click()
    page.get_by_label("Find a model").fill("pip://no such")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the button "Pull" has the focus
    page.get_by_text("could not be pulled").wait_for()
    say(page, "Hello!")
    replies(page).get_by_text("tok/s").wait_for()


def test_activity_shows_and_cancels_while_a_model_is_in_memory(page: Any, shared_lab: Lab) -> None:
    """The chat shows the interruption, and the model manager unloads the model."""
    chat = f"{CHAT}Chat('sprout', num_ctx=8192, format={ENDLESS})"
    cells = [chat, f"{MODELS}Activity()", "Models()"]
    open_notebook(page, shared_lab, shared_lab.notebook("activity.ipynb", cells))
    run_all(page)
    page.get_by_text("No running or waiting requests.").wait_for()
    page.get_by_text("Ask sprout").wait_for()
    say(page, "List.")
    request = page.locator(".onb-activity .onb-row", has_text="sprout")
    request.get_by_text("tok/s").wait_for()
    request.get_by_role("button", name="Cancel this chat request").click()
    replies(page).get_by_text("interrupted").wait_for()
    page.get_by_text("No running or waiting requests.").wait_for()
    loaded = page.locator(".onb-models .onb-row[data-name=sprout]")
    loaded.get_by_role("button", name="from memory").click()
    loaded.get_by_role("button", name="from memory").wait_for(state="hidden")
    assert json.loads(page.request.get(f"{shared_lab.url}ollama/api/ps?token=browser-test").text())["models"] == []


def test_activity_shows_and_cancels_a_batch(page: Any, shared_lab: Lab) -> None:
    body = {"model": "sprout", "prompt": "x", "max_tokens": 3000, "regex": "([a-z ]{2000}){2}"}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    lines = [json.dumps({"custom_id": f"第{n}行", **line}) for n in range(40)]
    query = "?token=browser-test"
    upload = {"name": "b.jsonl", "mimeType": "text/plain", "buffer": "\n".join([*lines, "{"]).encode()}
    form = {"purpose": "batch", "file": upload}
    file = page.request.post(f"{shared_lab.url}ollama/v1/files{query}", multipart=form).json()
    fields = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
    batch = page.request.post(f"{shared_lab.url}ollama/v1/batches{query}", data=fields).json()
    open_notebook(page, shared_lab, shared_lab.notebook("batch.ipynb", [f"{MODELS}Activity()"]))
    run_all(page)
    row = page.locator(".onb-activity .onb-row", has_text="Batch")
    row.get_by_text(re.compile(r"sprout · /v1/completions · \d+ of 41 · 1 failed")).wait_for()
    assert row.locator("progress").evaluate("bar => bar.max") == 41
    row.get_by_role("button", name="Cancel this batch").click()
    page.get_by_text("No running or waiting requests.").wait_for()
    found = page.request.get(f"{shared_lab.url}ollama/v1/batches/{batch['id']}{query}").json()
    assert found["status"] == "cancelled"
