"""``%ollama create``: a Modelfile, its files on this machine, and the server's progress in one output."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollama_nb.client import files
from ollama_nb.client.files import SharedStore
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import parse
from ollama_nb.notebook.display import follow
from ollama_nb.notebook.parse import Line
from ollama_nb.notebook.progress import Progress
from ollama_nb.notebook.session import Session


def create(session: Session, line: Line, cell: str | None) -> None:
    """A cell is the Modelfile itself, a line names one. Paths in it start from its folder, or the working folder."""
    name, given = line.words[0], line.get("--file")
    if cell is not None and given is not None:
        raise BadRequest("the cell is the Modelfile, so `--file` is too much")
    source, folder = (cell, Path()) if cell is not None else _read(Path(given or "Modelfile").expanduser())
    parts = parse(source).request_parts()
    for warning in parts.warnings:
        print(warning)
    found = files.resolve_sources(parts, folder)
    fields = {"quantize": line.get("--quantize")} if line.has("--quantize") else {}
    client = session.connect()
    page, screen = Progress(f"created `{name}`"), session.screen()

    def show(status: str, completed: int, total: int) -> None:
        page.feed({"status": status, "completed": completed, "total": total})
        screen.show(page)

    def steps() -> Iterator[Mapping[str, Any]]:
        digests = {}
        shared = SharedStore.find(client) if found.paths() else None
        for path in found.paths():
            yield {"status": f"reading {path.name}"}
            digests[path] = files.file_digest(path)
            files.send(client, shared, path, digests[path], functools.partial(show, f"copying {path.name}"))
        with client.create(name, **files.create_fields(parts, found, digests), **fields) as stream:
            yield from stream

    follow(steps, page, screen)


def _read(path: Path) -> tuple[bytes, Path]:
    try:
        return path.read_bytes(), path.parent
    except FileNotFoundError:
        raise BadRequest(f"no Modelfile at {path}: write it in a cell below `%%ollama create NAME`") from None
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from None
