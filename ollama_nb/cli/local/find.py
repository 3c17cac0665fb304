"""`ollama-nb discover` and `outdated`: models that are on this disk already, and models that are newer elsewhere."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import sys
from collections.abc import Sequence

from ollama_nb.api.units import human_bytes
from ollama_nb.cli.progress import Progress
from ollama_nb.cli.tables import table
from ollama_nb.cli.transfer import draw, push_message, with_status
from ollama_nb.client import files
from ollama_nb.client.connect import connect
from ollama_nb.errors import BadRequest, NotFound
from ollama_nb.service.local import OUTDATED, open_store, outdated
from ollama_nb.settings import Settings
from ollama_nb.store.discover import DiscoveredModel, discover


def show_discovered(names: Sequence[str], *, as_: str, json: bool) -> None:
    """Without names: a list. With names: those models are created here, sharing the disk's bytes where it can."""
    found = discover(os.environ)
    if as_ and len(names) != 1:
        raise BadRequest("--as names one model: give the one to create")
    if names:
        for name in names:
            _create(_one(found, name), as_ or name)
    elif json:
        described = [dataclasses.asdict(model) | {"paths": [str(path) for path in model.paths]} for model in found]
        print(jsonlib.dumps(described, indent=2, ensure_ascii=False))
    elif found:
        rows = [(model.name, human_bytes(model.size), model.source, str(model.paths[0])) for model in found]
        sys.stdout.write(table(("NAME", "SIZE", "SOURCE", "FILE"), rows))
        print(f"\nto use one: ollama-nb discover {found[0].name}")
    else:
        print("no GGUF files in the Hugging Face cache or in LM Studio's folders")


def show_outdated(names: Sequence[str], *, insecure: bool, json: bool) -> None:
    settings = Settings.from_env()
    found = list(outdated(settings, open_store(settings), names, insecure=insecure))
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


def _one(found: Sequence[DiscoveredModel], name: str) -> DiscoveredModel:
    for model in found:
        if name in (model.name, model.name.removesuffix(":latest")):
            return model
    raise NotFound(f"no model named '{name}' was discovered: `ollama-nb discover` lists what there is")


def _create(model: DiscoveredModel, name: str) -> None:
    """The files go into this machine's store first; a server that shares it needs no upload."""
    client = connect()
    blobs = open_store(Settings.from_env()).blobs
    with Progress() as progress:
        copying = progress.spinner(f"copying {human_bytes(model.size)} from {model.source}")
        digests = {path: str(blobs.add_file(path)) for path in model.paths}
        copying.stop()
        for path, digest in digests.items():
            files.upload(client, path, digest, lambda sent, size: None)
        named = {path.name: digest for path, digest in digests.items()}
        with with_status(lambda: client.create(name, files=named)) as lines:
            draw(lines, progress, push_message)
