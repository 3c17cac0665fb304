"""``ollama pull``, ``push`` and ``create``: the server's progress lines, drawn."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ollama_nb import disk
from ollama_nb.api.names import ModelName
from ollama_nb.api.units import byte_size
from ollama_nb.cli.progress import ProgressDisplay, Spinner, TransferBar, with_status
from ollama_nb.client import files
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.errors import AccessDenied, BadRequest, CredentialsRequired, OllamaError
from ollama_nb.modelfile import Modelfile, Parts, parse


def pull_model(model: str, *, as_: str = "", insecure: bool = False, max_rate: str = "", streams: int = 0) -> None:
    """Pull a model; ``as_`` is its local name, ``streams`` the number of connections per file."""
    fields = _transfer_fields(insecure=insecure, max_rate=max_rate) | ({"streams": streams} if streams else {})
    pull(connect(), model, **fields | ({"as": as_} if as_ else {}))


def pull(client: Client, model: str, **fields: Any) -> None:
    """Pull with progress. Interrupting cancels the request; the next pull resumes."""
    with ProgressDisplay() as progress, with_status(lambda: client.pull(model, **fields)) as lines:
        draw_progress(lines, progress, pull_message)


def push_model(model: str, *, insecure: bool = False, max_rate: str = "") -> None:
    """Push a model and print its address."""
    fields = _transfer_fields(insecure=insecure, max_rate=max_rate)
    client = connect()
    try:
        with ProgressDisplay() as progress, with_status(lambda: client.push(model, **fields)) as lines:
            draw_progress(lines, progress, push_message)
    except CredentialsRequired:
        raise
    except AccessDenied:
        raise OllamaError(
            "you are not authorized to push to this namespace, create the model under a namespace you own"
        ) from None
    print(f"\nYou can find your model at:\n\n\t{_destination(model)}")


def draw_progress(
    lines: Iterable[Mapping[str, Any]], progress: ProgressDisplay, message: Callable[[Mapping[str, Any]], str]
) -> None:
    """Draw a bar per digest and a spinner per status; a finished spinner stays as a line."""
    bars: dict[str, TransferBar] = {}
    status, spinner = "", None
    for line in lines:
        digest, completed = line.get("digest") or "", line.get("completed") or 0
        if digest:
            if not completed and digest not in bars:
                continue
            _stop_spinner(spinner)
            bar = bars.get(digest)
            if bar is None:
                bar = bars[digest] = progress.bar(message(line), line.get("total") or 0, completed)
            bar.set(completed)
            progress.touch(bar)
        elif line.get("status") != status:
            _stop_spinner(spinner)
            status = line.get("status") or ""
            spinner = progress.spinner(status)


def pull_message(line: Mapping[str, Any]) -> str:
    """The message of a pull's bar."""
    return f"pulling {_short_digest(line['digest'])}:"


def push_message(line: Mapping[str, Any]) -> str:
    """The message of a push's or create's bar."""
    return str(line.get("status") or f"pushing {_short_digest(line['digest'])}...")


def _transfer_fields(*, insecure: bool, max_rate: str) -> dict[str, Any]:
    """The request fields of the flags that both verbs have."""
    return ({"insecure": True} if insecure else {}) | ({"max_rate": byte_size(max_rate)} if max_rate else {})


def _stop_spinner(spinner: Spinner | None) -> None:
    if spinner is not None:
        spinner.stop()


def _short_digest(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12] if digest.startswith("sha256:") else digest


def _destination(model: str) -> str:
    name = ModelName.parse(model)
    if name.host.endswith("ollama.ai") or name.host.endswith("ollama.com"):
        return f"https://ollama.com/{name.short.removesuffix(':latest')}"
    return name.full


# create


def create_model(
    model: str, *, file: str = "", quantize: str = "", draft_quantize: str = "", link: bool = False
) -> None:
    """Create a model from a Modelfile, whose files are sent to the server first.

    ``link``: files become hard links in the store of a server on this machine. Raises OllamaError for an invalid name
    or Modelfile, and for missing files.
    """
    ModelName.parse(model)
    modelfile, folder = read_modelfile(file)
    parts = modelfile.request_parts()
    for warning in parts.warnings:
        print(warning, file=sys.stderr)
    if draft_quantize and not parts.draft:
        raise BadRequest("--draft-quantize requires a DRAFT model")
    client = connect()
    with ProgressDisplay() as progress:
        found, digests = _send_files(client, parts, folder, progress, link)
        fields = files.create_fields(parts, found, digests)
        flags = {"quantize": quantize, "draft_quantize": draft_quantize}
        fields |= {name: value for name, value in flags.items() if value}
        with with_status(lambda: client.create(model, **fields)) as lines:
            draw_progress(lines, progress, push_message)


def read_modelfile(file: str) -> tuple[Modelfile, Path]:
    """The Modelfile and the folder that its paths are relative to; without one, the weights of the current folder."""
    path = Path(file or "Modelfile").absolute()
    if path.is_dir():
        raise BadRequest(f"{file or path} is a folder, not a Modelfile")
    try:
        source = disk.read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        if file:
            raise BadRequest("specified Modelfile wasn't found") from None
        source = b"FROM ."
    except OSError as error:
        raise BadRequest(f"{file or path} cannot be read: {disk.describe_error(error)}") from None
    return parse(source), path.parent


def _send_files(
    client: Client, parts: Parts, folder: Path, progress: ProgressDisplay, link: bool
) -> tuple[files.ModelSources, dict[Path, str]]:
    gathering = progress.spinner("gathering model components")
    found = files.resolve_sources(parts, folder)
    digests = {path: files.file_digest(path) for path in found.paths()}
    gathering.stop()
    shared = files.SharedStore.find(client) if digests else None
    if link and digests and shared is None:
        raise BadRequest("--link: the server does not keep its models where this user can write")
    for path, digest in digests.items():
        copying = progress.spinner(f"copying file {digest}")
        files.send(client, shared, path, digest, functools.partial(_report_sent, progress, copying), link=link)
        copying.percent = 100
        copying.stop()
    return found, digests


def _report_sent(progress: ProgressDisplay, copying: Spinner, sent: int, size: int) -> None:
    copying.percent = sent * 100 // size if size else 100
    progress.touch(copying)


COMMANDS: dict[str, Callable[..., None]] = {"create": create_model, "pull": pull_model, "push": push_model}
