"""`ollama list` and `ollama ps`: a table, only the names, or the server's own JSON."""

from __future__ import annotations

import json as jsonlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from ollama_nb.api.units import human_bytes, human_time
from ollama_nb.cli.tables import table
from ollama_nb.client.connect import connect
from ollama_nb.errors import BadRequest

_ZERO_TIME = "0001-01-01"
_LONG_FRACTION = re.compile(r"(\.\d{6})\d+")

Entry = Mapping[str, Any]


def list_models(prefix: str, *, json: bool, quiet: bool) -> None:
    """The prefix's case does not matter."""
    _one_of(json, quiet)
    document = connect().list()
    kept = _filtered(document, lambda name: name.lower().startswith(prefix.lower()))
    _print(kept, list_table, json=json, quiet=quiet)


def list_running(prefix: str, *, json: bool, quiet: bool) -> None:
    """The prefix's case matters, as it does in Ollama."""
    _one_of(json, quiet)
    kept = _filtered(connect().ps(), lambda name: name.startswith(prefix))
    _print(kept, running_table, json=json, quiet=quiet)


def list_table(document: Entry, *, now: float | None = None) -> str:
    now = time.time() if now is None else now
    rows = [
        (
            entry["name"],
            entry["digest"][:12],
            "-" if entry.get("remote_model") else human_bytes(entry["size"]),
            relative(entry["modified_at"], now),
        )
        for entry in document["models"]
    ]
    return table(("NAME", "ID", "SIZE", "MODIFIED"), rows)


def running_table(document: Entry, *, now: float | None = None) -> str:
    now = time.time() if now is None else now
    rows = [
        (
            entry["name"],
            entry["digest"][:12],
            human_bytes(entry["size"]),
            processor(entry["size"], entry["size_vram"]),
            str(entry["context_length"]),
            _until(entry["expires_at"], now),
        )
        for entry in document["models"]
    ]
    return table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows)


def processor(size: int, vram: int) -> str:
    """Where a model's memory lies."""
    if vram == 0:
        return "100% CPU"
    if size == 0 or vram > size:
        return "Unknown"
    if vram == size:
        return "100% GPU"
    cpu = int((size - vram) / size * 100 + 0.5)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def relative(stamp: str, now: float) -> str:
    """An RFC 3339 time, seen from now."""
    return "Never" if stamp.startswith(_ZERO_TIME) else human_time(_seconds(stamp) - now)


def _until(stamp: str, now: float) -> str:
    if not stamp.startswith(_ZERO_TIME) and _seconds(stamp) < now:
        return "Stopping..."
    return relative(stamp, now)


def _seconds(stamp: str) -> float:
    # Servers write up to nine digits of a second; Python takes six.
    return datetime.fromisoformat(_LONG_FRACTION.sub(r"\1", stamp)).timestamp()


def _filtered(document: Entry, keep: Callable[[str], bool]) -> Entry:
    return {**document, "models": [entry for entry in document.get("models") or () if keep(entry["name"])]}


def _one_of(json: bool, quiet: bool) -> None:
    if json and quiet:
        raise BadRequest("only one of '--quiet' or '--json' can be specified")


def _print(document: Entry, as_table: Callable[[Entry], str], *, json: bool, quiet: bool) -> None:
    if json:
        print(jsonlib.dumps(document, indent=2, ensure_ascii=False))
    elif quiet:
        sys.stdout.write("".join(f"{entry['name']}\n" for entry in document["models"]))
    else:
        sys.stdout.write(as_table(document))
