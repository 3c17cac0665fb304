"""The model manager: what is on the disk, what is in memory, and everything one does with either."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ollama_nb.api.units import human_bytes, human_time
from ollama_nb.client.client import Client
from ollama_nb.errors import OllamaError
from ollama_nb.notebook.widgets.known import KNOWN, fit, machine_memory, memory_needed, short
from ollama_nb.notebook.widgets.panel import Panel, is_local, source
from ollama_nb.notebook.widgets.pulls import Pull, Pulls
from ollama_nb.settings import Settings

Said = Mapping[str, Any]
PARTS = ("parameters", "system", "template", "modelfile", "license")


class Models(Panel):
    """Models of the server: pull, show, unload, delete, and how much room they take."""

    _esm = source("page.js", "manager.js")

    def __init__(self, find_server: Callable[[], Client] | None = None) -> None:
        super().__init__(find_server)
        self._pulls = Pulls(self._find_server, self._pulling, self._pulled)

    def do_hello(self, said: Said) -> None:
        self.say("known", models=[_suggestion(known.name, known.size, known.about) for known in KNOWN])
        self._pulling(self._pulls.shown())
        self.do_look(said)

    def do_look(self, said: Said) -> None:
        self.work(self._look, on_error=lambda text: self.say("lost", text=text))

    def do_pull(self, said: Said) -> None:
        name = str(said.get("name", "")).strip()
        if not name:
            return
        reference = next((known.pull for known in KNOWN if known.name == name and known.pull), name)
        pull = Pull(reference, name, insecure=bool(said.get("insecure")))
        self.work(lambda: self._pulls.run(pull))

    def do_stop_pull(self, said: Said) -> None:
        (self._pulls.cancelled if said.get("told") else self._pulls.stop)(str(said["name"]))

    def do_show(self, said: Said) -> None:
        name = str(said["name"])

        def show() -> None:
            shown = self._find_server().show(name)
            parts = [[part, str(shown[part]).strip()] for part in PARTS if shown.get(part)]
            facts = [list(map(str, fact)) for fact in _facts(shown)]
            self.say("shown", name=name, facts=facts, parts=parts)

        self.work(show)

    def do_unload(self, said: Said) -> None:
        self.work(lambda: self._unload(str(said["name"])))

    def do_delete(self, said: Said) -> None:
        """The page has asked its user already."""
        self.work(lambda: self._delete(str(said["name"])))

    def _unload(self, name: str) -> None:
        self._find_server().generate(name, stream=False, keep_alive=0)
        self._look()

    def _delete(self, name: str) -> None:
        client = self._find_server()
        with contextlib.suppress(OllamaError):
            client.generate(name, stream=False, keep_alive=0)  # deleting alone would leave it in memory
        client.delete(name)
        self.say("deleted", name=name)
        self._look()

    def _look(self) -> None:
        client = self._find_server()
        local = is_local(client)
        memory = machine_memory() if local else 0
        running = {str(model["name"]): model for model in client.ps()["models"]}
        models = client.list()["models"]
        self.say(
            "models",
            models=[_row(model, running.get(str(model["name"])), memory) for model in models],
            disk=_disk(sum(int(model.get("size") or 0) for model in models), Settings.from_env().models, local),
        )

    def _pulling(self, pulls: list[dict[str, Any]]) -> None:
        self.say("pulls", pulls=pulls)

    def _pulled(self, name: str, error: str | None) -> None:
        self.say("pulled", name=name, error=error)
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
        parts.append("stays" if until > 20 * 365 * 86400 else f"for {human_time(until).removesuffix(' from now')}")
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
    """How much the models take and how much is left. Layers that models share count once where that can be seen."""
    if not local:
        return f"{human_bytes(total)} of models"
    try:
        with os.scandir(folder / "blobs") as blobs:
            used = sum(blob.stat().st_size for blob in blobs)
        return f"{human_bytes(used)} on disk · {human_bytes(shutil.disk_usage(folder).free)} free"
    except OSError:
        return f"{human_bytes(total)} of models"


def _facts(shown: dict[str, Any]) -> list[tuple[str, Any]]:
    details, info = shown.get("details") or {}, shown.get("model_info") or {}
    architecture = info.get("general.architecture", details.get("family", ""))
    found = [
        ("architecture", architecture),
        ("parameters", details.get("parameter_size")),
        ("quantization", details.get("quantization_level")),
        ("context length", info.get(f"{architecture}.context_length")),
        ("embedding length", info.get(f"{architecture}.embedding_length")),
        ("capabilities", ", ".join(shown.get("capabilities") or ())),
    ]
    return [(name, value) for name, value in found if value]
