"""JupyterLab and Chromium for browser tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import CHROMIUM, Lab, chromium, jupyter_lab
from support.fake_servers import ReplyServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium for the tests of a file, because Playwright's event loop would block those of other tests.

    Without Chromium the tests are skipped; in continuous integration they fail.
    """
    path = chromium()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium: apt-get install chromium")
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM))
        yield started
        started.close()


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab with a server of its own, shared by the tests of a file."""
    with jupyter_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def lab(reply_server: ReplyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab whose models are those of the file's ``reply_server``."""
    with jupyter_lab(tmp_path_factory.mktemp("lab"), OLLAMA_HOST=reply_server.url) as lab:
        yield lab


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(120_000)  # milliseconds; the machine may be busy
    yield context.new_page()
    context.close()
