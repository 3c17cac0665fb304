"""The verbs that work on this machine's store without a server: ``wheel``, ``export``, ``import``, ``fsck``, ``prune``,
``df``, ``discover`` and ``outdated``.
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ollama_nb.api.units import byte_size, human_bytes
from ollama_nb.cli.progress import ProgressDisplay, report_progress, with_status
from ollama_nb.cli.transfer import draw_progress, push_message
from ollama_nb.client import files
from ollama_nb.client.connect import connect
from ollama_nb.errors import BadRequest, NotFound
from ollama_nb.service import local
from ollama_nb.service.local import OUTDATED, open_store, outdated
from ollama_nb.settings import Settings
from ollama_nb.store.check import CheckResult
from ollama_nb.store.discover import DiscoveredModel, discover
from ollama_nb.store.usage import FileTotals
from ollama_nb.verbs.present import table


def pack_wheel(model: str, *, output: str = "", part_size: str = "100MB", name: str = "", version: str = "1.0") -> None:
    """Pack a model into wheels."""
    store = open_store(Settings.from_env())
    size = byte_size(part_size)
    with report_progress() as report:
        distribution, paths = local.pack_wheel(
            store, model, Path(output or "."), name=name, version=version, part_size=size, report=report
        )
    for path in paths:
        print(f"{path} ({human_bytes(path.stat().st_size)})")
    them = "it" if len(paths) == 1 else "them"
    print(f"serve {them} from any package index, then: ollama-nb pull pip://{distribution}")


def export_models(models: Sequence[str], *, output: str = "") -> None:
    """Write models into one tar file."""
    if not output:
        raise BadRequest("name the file to write: --output FILE.tar")
    path = Path(output)
    with report_progress() as report:
        found = local.export_models(open_store(Settings.from_env()), models, path, report=report)
    names = ", ".join(model.name.short for model in found)
    print(f"exported {names} to '{path}' ({human_bytes(path.stat().st_size)})")


def import_models(file: str, *, as_: str = "") -> None:
    """Add the models of a tar file to the store."""
    with report_progress() as report:
        names = local.import_models(open_store(Settings.from_env()), Path(file), as_=as_, report=report)
    for name in names:
        print(f"imported '{name}'")


def check_store(*, repair: bool = False, json: bool = False) -> int:
    """Check every stored model. Returns exit code 1 when a problem remains."""
    with report_progress() as report:
        found = local.fsck(Settings.from_env(), repair=repair, report=report, cancelled=threading.Event())
    if json:
        _print_json(found)
    else:
        sys.stdout.write(check_text(found, repair=repair))
    return 1 if any(not problem.moved for problem in found.problems) else 0


def check_text(found: CheckResult, *, repair: bool) -> str:
    """The result of a check as text."""
    lines = [f"{found.manifests} models and {found.blobs} intact blobs, {human_bytes(found.bytes)} read"]
    for problem in found.problems:
        moved = " (set aside)" if problem.moved else ""
        lines.append(f"{problem.kind} {problem.what}: {problem.why}{moved}")
    models = [problem.what for problem in found.problems if problem.kind == "model"]
    lines += [f"to restore it: ollama-nb pull {name}, or create it again" for name in models]
    if not found.problems:
        lines.append("no problems found")
    elif not repair and any(problem.kind != "model" for problem in found.problems):
        lines.append("`ollama-nb fsck --repair` sets damaged files aside")
    return "\n".join(lines) + "\n"


def prune(*, dry_run: bool = False, json: bool = False) -> None:
    """Remove files that no model uses."""
    removed = local.prune(Settings.from_env(), dry_run=dry_run)
    if json:
        _print_json(removed)
        return
    totals = [
        ("unused blobs", removed.unused),
        ("unfinished downloads", removed.partial),
        ("prefix caches", removed.prefixes),
        ("set aside by fsck", removed.set_aside),
        ("expired files of batches", removed.expired),
    ]
    sys.stdout.write(_totals_table("WOULD REMOVE" if dry_run else "REMOVED", totals))
    if removed.young.files:
        print(f"\n{_describe_total(removed.young)} kept: a download or create of the last hour may need them")


def show_usage(*, json: bool = False) -> None:
    """Print the disk space that models use."""
    usage = local.df(Settings.from_env())
    if json:
        _print_json(usage)
        return
    store = usage.store
    if store.models:
        rows = [(model.name, human_bytes(model.bytes), human_bytes(model.own)) for model in store.models]
        print(table(("MODEL", "SIZE", "NOT SHARED"), rows))
    totals = [
        ("models, shared blobs once", store.blobs),
        ("unused blobs", store.unused),
        ("unfinished downloads", store.partial),
        ("prefix caches", usage.prefixes),
        ("set aside by fsck", usage.set_aside),
        ("files and batches", usage.batches),
    ]
    sys.stdout.write(_totals_table("ON DISK", totals))
    print(f"\n{human_bytes(store.free)} free")


def show_discovered(names: Sequence[str] = (), *, as_: str = "", json: bool = False) -> None:
    """List the models of other programs; with ``names``, create those models here, without a copy where possible."""
    found = discover(os.environ)
    if as_ and len(names) != 1:
        raise BadRequest("--as names one model: give the one to create")
    if names:
        for name in names:
            _create_discovered(_find_discovered(found, name), as_ or name)
    elif json:
        described = [dataclasses.asdict(model) | {"paths": [str(path) for path in model.paths]} for model in found]
        print(jsonlib.dumps(described, indent=2, ensure_ascii=False))
    elif found:
        rows = [(model.name, human_bytes(model.size), model.source, str(model.paths[0])) for model in found]
        sys.stdout.write(table(("NAME", "SIZE", "SOURCE", "FILE"), rows))
        print(f"\nto use one: ollama-nb discover {found[0].name}")
    else:
        print("no GGUF files in the Hugging Face cache or in LM Studio's folders")


def show_outdated(models: Sequence[str] = (), *, insecure: bool = False, json: bool = False) -> None:
    """Compare stored models with their registries."""
    settings = Settings.from_env()
    found = list(outdated(settings, open_store(settings), models, insecure=insecure))
    if json:
        print(jsonlib.dumps([dataclasses.asdict(model) for model in found], indent=2, ensure_ascii=False))
        return
    rows = [(model.name, model.here[:12], model.there[:12] or "-", model.state) for model in found]
    sys.stdout.write(table(("NAME", "ID HERE", "ID THERE", "STATE"), rows))
    for why in dict.fromkeys(model.why for model in found if model.why):
        print(f"\n{why}")
    newer = [model.name for model in found if model.state == OUTDATED]
    if newer:
        print(f"\nto update: ollama-nb pull {newer[0]}")


def _find_discovered(found: Sequence[DiscoveredModel], name: str) -> DiscoveredModel:
    for model in found:
        if name in (model.name, model.name.removesuffix(":latest")):
            return model
    raise NotFound(f"no model named '{name}' was discovered: `ollama-nb discover` lists the models")


def _create_discovered(model: DiscoveredModel, name: str) -> None:
    """Add the files to this machine's store first: a server that shares it needs no upload."""
    client = connect()
    blobs = open_store(Settings.from_env()).blobs
    with ProgressDisplay() as progress:
        copying = progress.spinner(f"copying {human_bytes(model.size)} from {model.source}")
        digests = {path: str(blobs.add_file(path)) for path in model.paths}
        copying.stop()
        for path, digest in digests.items():
            files.upload(client, path, digest, lambda sent, size: None)
        named = {path.name: digest for path, digest in digests.items()}
        with with_status(lambda: client.create(name, files=named)) as lines:
            draw_progress(lines, progress, push_message)


def _totals_table(title: str, totals: list[tuple[str, FileTotals]]) -> str:
    rows = [(name, str(total.files), human_bytes(total.bytes)) for name, total in totals]
    return table((title, "FILES", "SIZE"), rows)


def _describe_total(total: FileTotals) -> str:
    return f"{total.files} file{'s' if total.files != 1 else ''} ({human_bytes(total.bytes)})"


def _print_json(found: Any) -> None:
    print(jsonlib.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))


COMMANDS: dict[str, Callable[..., int | None]] = {
    "wheel": pack_wheel,
    "export": export_models,
    "import": import_models,
    "fsck": check_store,
    "prune": prune,
    "df": show_usage,
    "discover": show_discovered,
    "outdated": show_outdated,
}
