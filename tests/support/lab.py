"""A JupyterLab of its own, with everything it writes in one folder, and the system's Chromium looking at it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

TOKEN = "browser-test"
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
START_SECONDS = 60.0
# No news popup; every cell is drawn, also those out of sight.
_SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab; ``url`` ends with a slash."""

    url: str
    root: Path

    def notebook(self, name: str, cells: Sequence[str]) -> str:
        """Write a notebook of code cells; returns its name."""
        book = new_notebook(
            cells=[new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(book, self.root / name)
        return name


@contextlib.contextmanager
def jupyter_lab(folder: Path, **env: str) -> Iterator[Lab]:
    """Start JupyterLab below ``folder`` with these additional variables; it ends with the block."""
    root = folder / "notebooks"
    root.mkdir(parents=True)
    for plugin, text in _SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    port = _free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={root}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    with (folder / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=_environment(folder, env), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", process, folder / "lab.log")
        yield Lab(f"http://127.0.0.1:{port}/", root)
    finally:
        _stop(process)


def _environment(folder: Path, more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY", "OLLAMA"))}
    names = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_DATA_DIR": "data",
        "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "HOME": "home",
    }
    for name in names.values():
        (folder / name).mkdir(exist_ok=True)
    own = {name: str(folder / part) for name, part in names.items()}
    return {**kept, **own, "NO_PROXY": "127.0.0.1,localhost", **more}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(URLError, OSError), urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text('utf-8', 'replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def open_notebook(page: Any, lab: Lab, name: str, *, theme: str = "JupyterLab Light") -> None:
    """Open a notebook, wait until its kernel is ready. (Keys pressed earlier are silently dropped.)"""
    page.goto(f"{lab.url}lab/tree/{name}?reset&token={TOKEN}")
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
    """Every cell's outputs as the notebook's model has them."""
    found = page.evaluate(
        "() => JSON.stringify(window.jupyterapp.shell.currentWidget.content.widgets.map("
        "cell => cell.model.type === 'code' ? cell.model.outputs.toJSON() : []))"
    )
    return list(json.loads(found))
