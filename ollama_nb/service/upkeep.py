"""Care for this machine's models: check them, clear what nothing uses, say what takes how much room. Blocking.

Everything holds the store's lock where it changes something, so a server may run at the same time.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ollama_nb import disk
from ollama_nb.api.events import Report
from ollama_nb.errors import StoreError
from ollama_nb.settings import Settings
from ollama_nb.store import check
from ollama_nb.store.blobs import named
from ollama_nb.store.store import Store
from ollama_nb.store.usage import FileTotals, Usage, files_below, heap, usage


@dataclass(frozen=True, slots=True)
class Cleared:
    """What ``prune`` removed, or would remove. ``young``: files that nothing uses, but not for long enough yet."""

    unused: FileTotals
    partial: FileTotals
    prefixes: FileTotals
    set_aside: FileTotals
    young: FileTotals


@dataclass(frozen=True, slots=True)
class Room:
    """What takes room: the store, and beside it what this program keeps for itself."""

    store: Usage
    prefixes: FileTotals
    set_aside: FileTotals


def open_store(settings: Settings) -> Store:
    return Store(settings.models, others=settings.extra_models)


def fsck(settings: Settings, *, repair: bool, report: Report, cancelled: threading.Event) -> check.CheckResult:
    """Check every blob and manifest; with ``repair``, broken ones are set aside."""
    aside = _aside(settings) / time.strftime("%Y%m%d-%H%M%S") if repair else None
    return check.check(open_store(settings), aside=aside, report=report, cancelled=cancelled)


def df(settings: Settings) -> Room:
    return Room(usage(open_store(settings)), heap(_prefixes(settings)), heap(files_below(_aside(settings))))


def prune(settings: Settings, *, dry_run: bool) -> Cleared:
    """Remove unused blobs and unfinished downloads older than an hour, kept prefixes, and what ``fsck`` set aside.

    Raises StoreError, and removes nothing, when a manifest cannot be read: what it uses is not known.
    """
    store = open_store(settings)
    stale = store.stale()
    if stale is None:
        broken = next((found.error for found in store.survey() if found.manifest is None), "")
        raise StoreError(
            f"nothing was removed, because a manifest cannot be read: {broken}; `ollama-nb fsck --repair` sets it aside"
        )
    room = df(settings)
    unused = heap(path for path in stale if named(path.name))
    partial = heap((path for path in stale if not named(path.name)), sparse=True)
    left = FileTotals(
        room.store.unused.files + room.store.partial.files - unused.files - partial.files,
        room.store.unused.bytes + room.store.partial.bytes - unused.bytes - partial.bytes,
    )
    if not dry_run:
        store.prune()
        tree = disk.Tree(_prefix_folder(settings))
        for path in _prefixes(settings):
            tree.remove(path)
        shutil.rmtree(_aside(settings), ignore_errors=True)
    return Cleared(unused, partial, room.prefixes, room.set_aside, left)


def _aside(settings: Settings) -> Path:
    return settings.home / "set-aside"


def _prefix_folder(settings: Settings) -> Path:
    return settings.home / "prefixes"


def _prefixes(settings: Settings) -> list[Path]:
    folder = _prefix_folder(settings)
    return sorted(folder.glob("*.prefix")) if folder.is_dir() else []
