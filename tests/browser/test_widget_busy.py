"""The widget while the kernel is busy, and after it was restarted or shut down."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from support.browser import (
    CHAT,
    ENDLESS,
    Lab,
    jupyter_lab,
    message_box,
    open_notebook,
    queue,
    replies,
    run_all,
    run_cell,
    runs,
    say,
    until_runs,
)
from support.fake_servers import ReplyServer

pytestmark = [pytest.mark.browser, pytest.mark.model]

BUSY = "import time\ntime.sleep(600)"


def interrupt(page: Any) -> None:
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:interrupt-kernel'); }")


def test_stop_while_a_cell_is_busy(page: Any, shared_lab: Lab) -> None:
    """The page stops the answer on the server; the next question is answered while the cell still runs."""
    chat = f"{CHAT}chat = Chat('sprout', num_ctx=8192, format={ENDLESS})\nchat"
    open_notebook(page, shared_lab, shared_lab.notebook("stop.ipynb", [chat, BUSY]))
    run_cell(page, 0)
    page.get_by_text("Ask sprout").wait_for()
    run_cell(page, 1)
    until_runs(page, 1)
    say(page, "List.")
    page.locator(".onb-answer", has_text='"').wait_for()
    assert [request["kind"] for request in queue(page, shared_lab)] == ["chat"]
    page.locator(".onb-figures", has_text="tok/s").wait_for()
    with page.expect_response(lambda reply: "/api/requests/" in reply.url) as response:
        page.get_by_role("button", name="Stop", exact=True).click()
    replies(page).get_by_text("interrupted").wait_for()
    assert (response.value.request.method, response.value.status) == ("DELETE", 200)
    assert queue(page, shared_lab) == []

    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Answer as").select_option("text")
    page.get_by_label("Context (tokens)").fill("")
    page.keyboard.press("Escape")
    say(page, "Why is the sky blue?")
    replies(page).nth(1).get_by_text("tok/s").wait_for()
    assert runs(page, 1)
    interrupt(page)


def test_a_kernel_restart_is_shown_and_survived(page: Any, shared_lab: Lab) -> None:
    """F19: the conversation stays visible, and running the cell again continues."""
    open_notebook(page, shared_lab, shared_lab.notebook("restart.ipynb", [f"{CHAT}Chat('sprout')"]))
    run_all(page)
    page.get_by_text("Ask sprout").wait_for()
    say(page, "Hello!")
    replies(page).get_by_text("tok/s").wait_for()
    page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart().then(() => true)"
    )
    page.get_by_text("The kernel is no longer running. Run the cell again to continue.").wait_for()
    assert page.locator(".onb-composer[inert]").count() == 1
    assert page.locator(".onb-bubble", has_text="Hello!").is_visible()  # the conversation can still be read
    run_cell(page, 0)
    page.get_by_text("Ask sprout").wait_for()
    say(page, "Why is the sky blue?")
    replies(page).get_by_text("tok/s").wait_for()


def test_a_kernel_shutdown_is_shown(page: Any, shared_lab: Lab) -> None:
    open_notebook(page, shared_lab, shared_lab.notebook("shut.ipynb", [f"{CHAT}Chat('sprout')"]))
    run_all(page)
    page.get_by_text("Ask sprout").wait_for()
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown().then(() => true)")
    say(page, "Hello!")
    page.get_by_text("The kernel is no longer running. Run the cell again to continue.").wait_for()
    assert page.locator(".onb-composer[inert]").count() == 1
    assert page.locator(".onb-dots:visible").count() == 0


@pytest.mark.slow
def test_the_kernel_stops_a_request_on_another_server(page: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The page's own server does not know the request: the kernel closes the connection, even beside a busy cell."""
    with (
        ReplyServer(lambda prompt: itertools.repeat("word ")) as reply_server,
        jupyter_lab(tmp_path_factory.mktemp("lab"), OLLAMA_HOST=reply_server.url) as lab,
    ):
        open_notebook(page, lab, lab.notebook("other.ipynb", [f"{CHAT}Chat()", BUSY]))
        run_cell(page, 0)
        page.get_by_text("Ask m").wait_for()
        run_cell(page, 1)
        until_runs(page, 1)
        say(page, "Go on.")
        page.locator(".onb-answer", has_text="word").wait_for()
        with page.expect_response(lambda reply: "/api/requests/" in reply.url) as response:
            message_box(page).press("Escape")
        replies(page).get_by_text("interrupted").wait_for()
        assert response.value.status == 404
        assert runs(page, 1)
        interrupt(page)
