"""`ollama-nb wheel`, `export` and `import`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ollama_nb.api.units import byte_size, human_bytes
from ollama_nb.cli.local.bars import shown
from ollama_nb.errors import BadRequest
from ollama_nb.service import local
from ollama_nb.settings import Settings


def pack_wheel(model: str, *, output: str, part_size: str, name: str, version: str) -> None:
    store = local.open_store(Settings.from_env())
    most = byte_size(part_size)
    with shown() as report:
        distribution, paths = local.pack_wheel(
            store, model, Path(output or "."), name=name, version=version, part_size=most, report=report
        )
    for path in paths:
        print(f"{path} ({human_bytes(path.stat().st_size)})")
    print(
        f"serve {'it' if len(paths) == 1 else 'them'} from any package index, then: ollama-nb pull pip://{distribution}"
    )


def export_models(models: Sequence[str], *, output: str) -> None:
    if not output:
        raise BadRequest("name the file to write: --output FILE.tar")
    path = Path(output)
    with shown() as report:
        found = local.export_models(local.open_store(Settings.from_env()), models, path, report=report)
    names = ", ".join(model.name.short for model in found)
    print(f"exported {names} to '{path}' ({human_bytes(path.stat().st_size)})")


def import_models(file: str, *, as_: str) -> None:
    with shown() as report:
        names = local.import_models(local.open_store(Settings.from_env()), Path(file), as_=as_, report=report)
    for name in names:
        print(f"imported '{name}'")
