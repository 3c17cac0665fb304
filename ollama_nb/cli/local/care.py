"""`ollama-nb fsck`, `prune` and `df`."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import sys
import threading
from typing import Any

from ollama_nb.api.units import human_bytes
from ollama_nb.cli.local.bars import shown
from ollama_nb.cli.tables import table
from ollama_nb.service import local
from ollama_nb.settings import Settings
from ollama_nb.store.check import CheckResult
from ollama_nb.store.usage import FileTotals


def check_store(*, repair: bool, json: bool) -> int:
    """Exit code 1 when something is wrong that was not put right."""
    settings = Settings.from_env()
    with shown() as report:
        found = local.fsck(settings, repair=repair, report=report, cancelled=threading.Event())
    left = [problem for problem in found.problems if not problem.moved]
    if json:
        _print(found)
    else:
        sys.stdout.write(checked_text(found, repair=repair))
    return 1 if left else 0


def checked_text(found: CheckResult, *, repair: bool) -> str:
    lines = [f"{found.manifests} models and {found.blobs} sound blobs, {human_bytes(found.bytes)} read"]
    for problem in found.problems:
        moved = " (set aside)" if problem.moved else ""
        lines.append(f"{problem.kind} {problem.what}: {problem.why}{moved}")
    models = [problem.what for problem in found.problems if problem.kind == "model"]
    lines += [f"to get it back: ollama-nb pull {name}, or create it again" for name in models]
    if not found.problems:
        lines.append("nothing is wrong")
    elif not repair and any(problem.kind != "model" for problem in found.problems):
        lines.append("`ollama-nb fsck --repair` sets aside what is broken")
    return "\n".join(lines) + "\n"


def prune(*, dry_run: bool, json: bool) -> None:
    cleared = local.prune(Settings.from_env(), dry_run=dry_run)
    if json:
        _print(cleared)
        return
    rows = [
        ("unused blobs", cleared.unused),
        ("unfinished downloads", cleared.partial),
        ("kept prefixes", cleared.prefixes),
        ("set aside by fsck", cleared.set_aside),
    ]
    sys.stdout.write(_heaps("WOULD REMOVE" if dry_run else "REMOVED", rows))
    if cleared.young.files:
        print(f"\n{_count(cleared.young)} left alone: a download or create of the last hour may need them")


def df(*, json: bool) -> None:
    room = local.df(Settings.from_env())
    if json:
        _print(room)
        return
    store = room.store
    if store.models:
        rows = [(model.name, human_bytes(model.bytes), human_bytes(model.own)) for model in store.models]
        print(table(("MODEL", "SIZE", "ITS OWN"), rows))
    heaps = [
        ("models, shared blobs once", store.blobs),
        ("unused blobs", store.unused),
        ("unfinished downloads", store.partial),
        ("kept prefixes", room.prefixes),
        ("set aside by fsck", room.set_aside),
    ]
    sys.stdout.write(_heaps("ON DISK", heaps))
    print(f"\n{human_bytes(store.free)} free")


def _heaps(title: str, rows: list[tuple[str, FileTotals]]) -> str:
    return table(
        (title, "FILES", "SIZE"), [(name, str(totals.files), human_bytes(totals.bytes)) for name, totals in rows]
    )


def _count(totals: FileTotals) -> str:
    return f"{totals.files} file{'s' if totals.files != 1 else ''} ({human_bytes(totals.bytes)})"


def _print(found: Any) -> None:
    print(jsonlib.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
