"""The model manager widget: installed and loaded models; pull, show, unload and delete."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ollama_nb.api.units import human_bytes, human_time
from ollama_nb.client.client import Client
from ollama_nb.errors import OllamaError
from ollama_nb.notebook.widgets.models import SUGGESTED, Pulls, WidgetPull, fit, machine_memory, memory_needed, short
from ollama_nb.notebook.widgets.panel import PageMessage, Panel, is_local, source
from ollama_nb.settings import Settings
from ollama_nb.verbs import actions, present

PARTS = ("parameters", "system", "template", "modelfile", "license")


class Models(Panel):
    """The models of a server, with their sizes: pull, show, unload, delete."""

    _esm = source("page.js", "manager.js")

    def __init__(self, find_server: Callable[[], Client] | None = None) -> None:
        super().__init__(find_server)
        self._pulls = Pulls(self._find_server, self._pulling, self._pulled)

    def do_hello(self, message: PageMessage) -> None:
        self.post("known", models=[_suggestion(model.name, model.size, model.about) for model in SUGGESTED])
        self._pulling(self._pulls.to_page())
        self.do_look(message)

    def do_look(self, message: PageMessage) -> None:
        self.work(self._look, on_error=lambda text: self.post("lost", text=text))

    def do_pull(self, message: PageMessage) -> None:
        name = str(message.get("name", "")).strip()
        if not name:
            return
        reference = next((model.pull for model in SUGGESTED if model.name == name and model.pull), name)
        pull = WidgetPull(reference, name, insecure=bool(message.get("insecure")))
        self.work(lambda: self._pulls.run(pull))

    def do_stop_pull(self, message: PageMessage) -> None:
        (self._pulls.mark_cancelled if message.get("cancelled") else self._pulls.stop)(str(message["name"]))

    def do_show(self, message: PageMessage) -> None:
        name = str(message["name"])

        def show() -> None:
            shown = self._find_server().show(name)
            parts = [[part, str(shown[part]).strip()] for part in PARTS if shown.get(part)]
            facts = [list(fact) for fact in _facts(shown)]
            self.post("shown", name=name, facts=facts, parts=parts)

        self.work(show)

    def do_unload(self, message: PageMessage) -> None:
        self.work(lambda: self._unload(str(message["name"])))

    def do_delete(self, message: PageMessage) -> None:
        """Delete a model. The page has already asked for confirmation."""
        self.work(lambda: self._delete(str(message["name"])))

    def _unload(self, name: str) -> None:
        actions.unload(self._find_server(), name)
        self._look()

    def _delete(self, name: str) -> None:
        client = self._find_server()
        with contextlib.suppress(OllamaError):
            actions.unload(client, name)  # a deleted model would stay in memory
        client.delete(name)
        self.post("deleted", name=name)
        self._look()

    def _look(self) -> None:
        client = self._find_server()
        local = is_local(client)
        memory = machine_memory() if local else 0
        running = {str(model["name"]): model for model in client.ps()["models"]}
        models = client.list()["models"]
        self.post(
            "models",
            models=[_row(model, running.get(str(model["name"])), memory) for model in models],
            disk=_disk(sum(int(model.get("size") or 0) for model in models), Settings.from_env().models, local),
        )

    def _pulling(self, pulls: list[dict[str, Any]]) -> None:
        self.post("pulls", pulls=pulls)

    def _pulled(self, name: str, error: str | None) -> None:
        self.post("pulled", name=name, error=error)
        self.work(self._look)


def _suggestion(name: str, size: int, about: str) -> dict[str, str]:
    return {"name": name, "about": f"{human_bytes(size)} · {about}"}


def _row(model: dict[str, Any], running: dict[str, Any] | None, memory: int) -> dict[str, Any]:
    size, details = int(model.get("size") or 0), model.get("details") or {}
    return {
        "name": short(str(model["name"])),
        "size": human_bytes(size),
        "about": " · ".join(filter(None, (details.get("parameter_size"), details.get("quantization_level")))),
        "changed": _ago(model.get("modified_at")),
        "fit": fit(size, memory),
        "memory": human_bytes(memory_needed(size)),
        "running": _loaded(running) if running else "",
    }


def _loaded(running: dict[str, Any]) -> str:
    size = int(running.get("size") or 0)
    parts = [f"in memory: {human_bytes(size)}" if size else "in memory"]
    if context := running.get("context_length"):
        parts.append(f"context {context}")
    if until := _seconds_from_now(running.get("expires_at")):
        parts.append(
            "indefinitely" if until > 20 * 365 * 86400 else f"for {human_time(until).removesuffix(' from now')}"
        )
    return " · ".join(parts)


def _ago(when: Any) -> str:
    seconds = _seconds_from_now(when)
    return human_time(seconds) if seconds is not None else ""


def _seconds_from_now(when: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(when)).timestamp() - time.time()
    except ValueError:
        return None


def _disk(total: int, folder: Path, local: bool) -> str:
    """The size of all models, and the free disk space. On this machine, shared layers count once."""
    if not local:
        return f"{human_bytes(total)} of models"
    try:
        with os.scandir(folder / "blobs") as blobs:
            used = sum(blob.stat().st_size for blob in blobs)
        return f"{human_bytes(used)} on disk · {human_bytes(shutil.disk_usage(folder).free)} free"
    except OSError:
        return f"{human_bytes(total)} of models"


def _facts(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """Labels and values of the details of a model."""
    sections = {section.title: section.rows for section in present.show_sections(shown)}
    found = [(label, value) for label, value in sections.get("Model", ()) if value]
    if capabilities := sections.get("Capabilities"):
        found.append(("capabilities", ", ".join(name for (name,) in capabilities)))
    return found
