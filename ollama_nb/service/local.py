"""What the command line does with this machine's own store, without a server. All functions block.

Check and clean the store, compare models with their registries, and carry models elsewhere without a registry: packed
into wheels, or into one tar file and back. Changes hold the store's lock, so a server may run at the same time.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ollama_nb import disk, modelfile
from ollama_nb.api.events import Report
from ollama_nb.api.models import Model
from ollama_nb.api.names import DEFAULT_TAG, Digest, ModelName
from ollama_nb.api.units import human_bytes
from ollama_nb.errors import BadRequest, OllamaError, StoreError
from ollama_nb.service.batch_store import BatchStore
from ollama_nb.service.bundled import is_bundled
from ollama_nb.service.models import modelfile_commands
from ollama_nb.service.resolve import find_in, parse_name
from ollama_nb.settings import Settings
from ollama_nb.store import archive, check, wheelhouse
from ollama_nb.store.blobs import digest_in_name
from ollama_nb.store.manifest import GGUF_KINDS
from ollama_nb.store.registry.client import RegistryAccess, open_registry
from ollama_nb.store.registry.errors import NotInRegistry, RegistryUnreachable
from ollama_nb.store.store import Store
from ollama_nb.store.usage import FileTotals, Usage, file_totals, files_below, usage

CURRENT, OUTDATED, LOCAL, UNKNOWN = "current", "outdated", "only here", "unknown"


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What ``prune`` removed or would remove.

    ``young``: unused files of the last hour, which it keeps. ``expired``: uploaded files and batches that have expired.
    """

    unused: FileTotals
    partial: FileTotals
    prefixes: FileTotals
    set_aside: FileTotals
    young: FileTotals
    expired: FileTotals


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Disk usage of the store, and of the files that this program keeps beside it."""

    store: Usage
    prefixes: FileTotals
    set_aside: FileTotals
    batches: FileTotals


def open_store(settings: Settings) -> Store:
    return Store(settings.models, others=settings.extra_models)


def fsck(settings: Settings, *, repair: bool, report: Report, cancelled: threading.Event) -> check.CheckResult:
    """Check every blob and manifest; with ``repair``, move broken ones out of the store."""
    aside = _aside(settings) / time.strftime("%Y%m%d-%H%M%S") if repair else None
    return check.check(open_store(settings), aside=aside, report=report, cancelled=cancelled)


def df(settings: Settings) -> DiskUsage:
    return DiskUsage(
        usage(open_store(settings)),
        file_totals(_prefixes(settings)),
        file_totals(files_below(_aside(settings))),
        file_totals(files_below(BatchStore(settings.home).root)),
    )


def prune(settings: Settings, *, dry_run: bool) -> PruneResult:
    """Remove unused blobs and unfinished downloads older than an hour, stored prefixes, what ``fsck`` set aside, and
    expired files and batches.

    Raises StoreError, and removes nothing, when a manifest cannot be read: what it uses is not known.
    """
    store = open_store(settings)
    stale = store.stale()
    if stale is None:
        broken = next((found.error for found in store.survey() if found.manifest is None), "")
        raise StoreError(
            f"nothing was removed, because a manifest cannot be read: {broken}; `ollama-nb fsck --repair` sets it aside"
        )
    used, batches = df(settings), BatchStore(settings.home)
    expired = file_totals(batches.stale())
    unused = file_totals(path for path in stale if digest_in_name(path.name))
    partial = file_totals((path for path in stale if not digest_in_name(path.name)), sparse=True)
    left = FileTotals(
        used.store.unused.files + used.store.partial.files - unused.files - partial.files,
        used.store.unused.bytes + used.store.partial.bytes - unused.bytes - partial.bytes,
    )
    if not dry_run:
        store.prune()
        tree = disk.Tree(_prefix_folder(settings))
        for path in _prefixes(settings):
            tree.remove(path)
        shutil.rmtree(_aside(settings), ignore_errors=True)
        batches.remove_stale()
    return PruneResult(unused, partial, used.prefixes, used.set_aside, left, expired)


def _aside(settings: Settings) -> Path:
    return settings.home / "set-aside"


def _prefix_folder(settings: Settings) -> Path:
    return settings.home / "prefixes"


def _prefixes(settings: Settings) -> list[Path]:
    folder = _prefix_folder(settings)
    return sorted(folder.glob("*.prefix")) if folder.is_dir() else []


@dataclass(frozen=True, slots=True)
class VersionCheck:
    """The manifest digests of a model on this machine and in its registry. ``why`` explains an unknown state."""

    name: str
    here: str
    there: str
    state: str
    why: str = ""


def outdated(
    settings: Settings, store: Store, texts: Sequence[str], *, insecure: bool = False
) -> Iterator[VersionCheck]:
    """Compare the named models, or all installed ones. A registry that does not respond is contacted only once.

    The registries learn the names of the models.
    """
    models = [find_in(store, text) for text in texts] if texts else store.models()
    access = RegistryAccess.of_user(settings.key, settings.home)
    unreachable: dict[str, str] = {}
    for model in sorted(models, key=lambda model: model.name):
        yield _compare(model.name, model.digest, access, unreachable, insecure)


def _compare(
    name: ModelName, here: str, access: RegistryAccess, unreachable: dict[str, str], insecure: bool
) -> VersionCheck:
    if is_bundled(name):
        return VersionCheck(name.short, here, "", LOCAL)
    if name.host in unreachable:
        return VersionCheck(name.short, here, "", UNKNOWN, unreachable[name.host])
    try:
        with open_registry(name, access, threading.Event(), insecure=insecure) as registry:
            there = hashlib.sha256(registry.manifest()).hexdigest()
    except NotInRegistry:
        return VersionCheck(name.short, here, "", LOCAL)
    except OllamaError as error:
        if isinstance(error, RegistryUnreachable):
            unreachable[name.host] = error.message
        return VersionCheck(name.short, here, "", UNKNOWN, error.message)
    return VersionCheck(name.short, here, there, CURRENT if here == there else OUTDATED)


def pack_wheel(
    store: Store, text: str, folder: Path, *, name: str = "", version: str = "1.0", part_size: int, report: Report
) -> tuple[str, list[Path]]:
    """Pack a model into wheels in ``folder``; return the distribution's name and the wheels, the main one first.

    Raises ModelNotFound, BadRequest for a model that cannot be packed, StoreError for a damaged one.
    """
    model = find_in(store, text)
    distribution = name or wheelhouse.distribution_name(_plain_name(model))
    files = _files(model)
    lines = [f"FROM ./{next(iter(files))}"]
    lines += [f"{_command(file)} ./{file}" for file in list(files)[1:]]
    written = "\n".join(lines + modelfile_commands(model, model.system, model.params, ())) + "\n"
    _check_modelfile(model, written)
    content = wheelhouse.WheelContent(
        distribution, version, model.name.short, files, written, _card(store, model, distribution), model.licenses
    )
    paths = wheelhouse.pack(
        content, store.blobs, folder, part_size=part_size, report=report, cancelled=threading.Event()
    )
    return distribution, paths


def export_models(store: Store, texts: Sequence[str], path: Path, *, report: Report) -> list[Model]:
    """Write models into one tar file. A model that is named twice is written once."""
    models = list({model.name: model for model in (find_in(store, text) for text in texts)}.values())
    archive.export(models, store.blobs, path, report=report, cancelled=threading.Event())
    return models


def import_models(store: Store, path: Path, *, as_: str = "", report: Report) -> list[str]:
    """Import the models of a tar file; return their short names."""
    target = parse_name(as_) if as_ else None
    names = archive.import_models(path, store, as_=target, report=report, cancelled=threading.Event())
    return [name.short for name in names]


def _plain_name(model: Model) -> str:
    name = model.name
    return name.model if name.tag == DEFAULT_TAG else f"{name.model}-{name.tag}"


def _files(model: Model) -> dict[str, Digest]:
    """The GGUF files of a model by their names in the wheel, weights first."""
    files: dict[str, Digest] = {}
    for kind in GGUF_KINDS:
        for layer in model.manifest.layers:
            if layer.kind == kind:
                number = sum(name.startswith(kind) for name in files)
                files[f"{kind}-{number + 1}.gguf" if number else f"{kind}.gguf"] = layer.digest
    if "model.gguf" not in files:
        raise BadRequest(f"model '{model.name.short}' has no GGUF weights, and a wheel can contain nothing else")
    return files


def _command(file: str) -> str:
    """The Modelfile command for a file of that name."""
    return {"adapter": "ADAPTER", "draft": "DRAFT"}.get(file.partition(".")[0].partition("-")[0], "FROM")


def _check_modelfile(model: Model, text: str) -> None:
    """Raise BadRequest if the Modelfile loses anything of the model."""
    parts = modelfile.parse(text).request_parts()
    if parts.parameters != dict(model.params):
        changed = sorted(set(model.params) - set(parts.parameters)) or sorted(model.params)
        raise BadRequest(f"the parameters {', '.join(changed)} of '{model.name.short}' cannot be put into a Modelfile")
    if parts.messages != model.messages:
        raise BadRequest(f"'{model.name.short}' has messages with images or tool calls, which a Modelfile cannot hold")


def _card(store: Store, model: Model, distribution: str) -> str:
    """The model card, which an index shows as the wheel's description."""
    gguf = store.gguf(model)
    facts = {
        "architecture": model.config.model_family,
        "parameters": model.config.model_type,
        "quantization": model.config.file_type,
        "context length": str(gguf.arch("context_length", "")) if gguf else "",
        "size": human_bytes(model.size),
        "weights": f"sha256:{model.weights_digest.hex}" if model.weights_digest else "",
        "model": f"sha256:{model.digest}",
    }
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items() if value)
    name = model.name.model
    return (
        f"# {model.name.short}\n\n"
        "A language model as a wheel. It carries data only and is not meant to be installed.\n\n"
        f"    ollama-nb pull pip://{distribution} --as {name}\n    ollama-nb run {name}\n\n"
        f"| | |\n|---|---|\n{rows}"
    )
