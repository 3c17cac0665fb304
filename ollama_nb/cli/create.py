"""`ollama create`: a Modelfile read here, its files sent, the model made by the server."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from ollama_nb.api.names import ModelName
from ollama_nb.cli.bars import Spinner
from ollama_nb.cli.progress import Progress
from ollama_nb.cli.transfer import draw, push_message, with_status
from ollama_nb.client import files
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.client.shared import SharedStore
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import Modelfile, Parts, parse


def create_model(model: str, file: str, quantize: str, *, draft_quantize: str = "", link: bool = False) -> None:
    """Raises OllamaError for a bad name, a Modelfile that does not parse, files that are not there.

    ``link``: files become hard links in the store of a server on this machine.
    """
    ModelName.parse(model)
    modelfile, folder = read_modelfile(file)
    parts = modelfile.request_parts()
    for warning in parts.warnings:
        print(warning, file=sys.stderr)
    if draft_quantize and not parts.draft:
        raise BadRequest("--draft-quantize requires a DRAFT model")
    client = connect()
    with Progress() as progress:
        found, digests = _send_files(client, parts, folder, progress, link)
        fields = files.create_fields(parts, found, digests)
        wishes = {"quantize": quantize, "draft_quantize": draft_quantize}
        fields |= {name: value for name, value in wishes.items() if value}
        with with_status(lambda: client.create(model, **fields)) as lines:
            draw(lines, progress, push_message)


def read_modelfile(file: str) -> tuple[Modelfile, Path]:
    """The Modelfile and the folder that its paths start from. Without one, the folder's weights are the model."""
    path = Path(file or "Modelfile").absolute()
    try:
        source = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if file:
            raise BadRequest("specified Modelfile wasn't found") from None
        source = b"FROM ."
    except IsADirectoryError:
        raise BadRequest(f"{file} is a folder, not a Modelfile") from None
    return parse(source), path.parent


def _send_files(
    client: Client, parts: Parts, folder: Path, progress: Progress, link: bool
) -> tuple[files.Sources, dict[Path, str]]:
    gathering = progress.spinner("gathering model components")
    found = files.sources(parts, folder)
    digests = {path: files.file_digest(path) for path in found.paths()}
    gathering.stop()
    shared = SharedStore.find(client) if digests else None
    if link and digests and shared is None:
        raise BadRequest("--link: the server does not keep its models where this user can write")
    for path, digest in digests.items():
        copying = progress.spinner(f"copying file {digest}")
        files.send(client, shared, path, digest, functools.partial(_sent, progress, copying), link=link)
        copying.percent = 100
        copying.stop()
    return found, digests


def _sent(progress: Progress, copying: Spinner, sent: int, size: int) -> None:
    copying.percent = sent * 100 // size if size else 100
    progress.touch(copying)
