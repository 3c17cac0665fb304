"""JupyterLab in a process of its own, and what a browser test does with its pages, cells and widgets."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from support.servers import RunningServer, clean_env, free_port, started, until_answers

TOKEN = "browser-test"
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# No news popup; every cell is rendered, also outside the viewport.
_SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab, or Notebook; ``url`` ends with a slash, ``pages`` is where notebooks open."""

    url: str
    root: Path
    pages: str = "lab/tree"

    def notebook(self, name: str, cells: Sequence[str]) -> str:
        """Write a notebook of code cells; returns its name."""
        book = new_notebook(
            cells=[new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(book, self.root / name)
        return name


def jupyter_lab(folder: Path, **env: str) -> contextlib.AbstractContextManager[Lab]:
    """Start JupyterLab below ``folder`` with additional environment variables; stop it at the end of the block."""
    return _front_end("jupyterlab", "LabApp", "lab/tree", folder, env)


def jupyter_notebook(folder: Path, **env: str) -> contextlib.AbstractContextManager[Lab]:
    """Start Jupyter Notebook in the same way."""
    return _front_end("notebook", "JupyterNotebookApp", "notebooks", folder, env)


@contextlib.contextmanager
def _front_end(module: str, app: str, pages: str, folder: Path, env: dict[str, str]) -> Iterator[Lab]:
    root = folder / "notebooks"
    root.mkdir(parents=True)
    for plugin, text in _SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    port = free_port()
    command = [sys.executable, "-m", module, "--no-browser", "--allow-root", f"--ServerApp.root_dir={root}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--{app}.expose_app_in_browser=True"]
    lab = {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    url = f"http://127.0.0.1:{port}/"
    with started(command, folder, clean_env(folder, **lab, **env)) as (process, log):
        until_answers(RunningServer(url, process, folder, log), f"{url}api/status?token={TOKEN}")
        yield Lab(url, root, pages)


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def open_notebook(page: Any, lab: Lab, name: str, *, theme: str = "JupyterLab Light") -> None:
    """Open a notebook, wait until its kernel is ready. (Keys pressed earlier are silently dropped.)"""
    page.goto(f"{lab.url}{lab.pages}/{name}?reset&token={TOKEN}")
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext", timeout=60_000)
    page.evaluate(
        """async theme => {
            const app = window.jupyterapp; await app.restored;
            await app.commands.execute('apputils:change-theme', {theme});
            const widget = app.shell.currentWidget;
            await widget.context.ready; await widget.sessionContext.ready;
        }""",
        theme,
    )


def run_all(page: Any, *, seconds: float = 120) -> None:
    """Run every cell and wait for the last one."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(
        """() => {
            const cells = [...window.jupyterapp.shell.currentWidget.content.widgets];
            return cells.every(cell => cell.model.type !== 'code' || cell.model.executionCount !== null);
        }""",
        timeout=seconds * 1000,
    )


def outputs(page: Any) -> list[Any]:
    """Return the outputs of every cell, from the notebook model in the page."""
    found = page.evaluate(
        "() => JSON.stringify(window.jupyterapp.shell.currentWidget.content.widgets.map("
        "cell => cell.model.type === 'code' ? cell.model.outputs.toJSON() : []))"
    )
    return list(json.loads(found))


CHAT = "from ollama_nb.notebook.widgets import Chat\n"
ENDLESS = 'dict(type="array", items=dict(type="string"), minItems=5000)'
"""A ``format`` that keeps even a small model generating for minutes."""


def message_box(page: Any) -> Any:
    return page.get_by_label("Message", exact=True)


def say(page: Any, text: str) -> None:
    message_box(page).fill(text)
    message_box(page).press("Enter")


def replies(page: Any) -> Any:
    """The statistics below each finished reply."""
    return page.locator(".onb-exchange[aria-busy=false] .onb-figures")


def run_cell(page: Any, number: int) -> None:
    """Run one cell; do not wait for it."""
    page.evaluate(
        """number => {
            const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
            notebook.activeCellIndex = number;
            notebook.deselectAll();
            app.commands.execute('notebook:run-cell');
        }""",
        number,
    )


_RUNS = "number => window.jupyterapp.shell.currentWidget.content.widgets[number].model.executionState === 'running'"


def runs(page: Any, number: int) -> bool:
    return bool(page.evaluate(_RUNS, number))


def until_runs(page: Any, number: int) -> None:
    page.wait_for_function(_RUNS, arg=number)


def queue(page: Any, lab: Lab) -> list[Any]:
    """The queue of the server that serves the page."""
    reply = page.request.get(f"{lab.url}ollama/api/queue", headers={"Authorization": f"token {TOKEN}"})
    return list(reply.json()["requests"])
