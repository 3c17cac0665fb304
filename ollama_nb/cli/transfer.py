"""`ollama pull` and `push`: the server's progress lines, drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from ollama_nb.api.names import ModelName
from ollama_nb.api.units import byte_size
from ollama_nb.cli.bars import Bar, Spinner
from ollama_nb.cli.progress import Progress
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.errors import AccessDenied, ConnectError, OllamaError, Unauthorized, from_code

_OURS = (".ollama.ai", ".ollama.com")
T = TypeVar("T")


def pull_model(model: str, *, as_: str = "", insecure: bool = False, max_rate: str = "", streams: int = 0) -> None:
    fields = _wishes(insecure=insecure, max_rate=max_rate) | ({"streams": streams} if streams else {})
    pull(connect(), model, **fields | ({"as": as_} if as_ else {}))


def pull(client: Client, model: str, **fields: Any) -> None:
    """Pull and show how it goes. Interrupting hangs up; what has arrived stays for the next time."""
    with Progress() as progress, with_status(lambda: client.pull(model, **fields)) as lines:
        draw(lines, progress, pull_message)


def push_model(model: str, *, insecure: bool = False, max_rate: str = "") -> None:
    fields = _wishes(insecure=insecure, max_rate=max_rate)
    client = connect()
    try:
        with Progress() as progress, with_status(lambda: client.push(model, **fields)) as lines:
            draw(lines, progress, push_message)
    except Unauthorized:
        raise OllamaError("pushing needs an account, and cloud accounts are not supported") from None
    except AccessDenied:
        raise OllamaError(
            "you are not authorized to push to this namespace, create the model under a namespace you own"
        ) from None
    print(f"\nYou can find your model at:\n\n\t{_destination(model)}")


def draw(lines: Iterable[Mapping[str, Any]], progress: Progress, message: Callable[[Mapping[str, Any]], str]) -> None:
    """One bar per digest, one spinner per status; a spinner that is over stays as a line."""
    bars: dict[str, Bar] = {}
    status, spinner = "", None
    for line in lines:
        digest, completed = line.get("digest") or "", line.get("completed") or 0
        if digest:
            if not completed and digest not in bars:
                continue
            _stop(spinner)
            bar = bars.get(digest)
            if bar is None:
                bar = bars[digest] = progress.bar(message(line), line.get("total") or 0, completed)
            bar.set(completed)
            progress.touch(bar)
        elif line.get("status") != status:
            _stop(spinner)
            status = line.get("status") or ""
            spinner = progress.spinner(status)


def pull_message(line: Mapping[str, Any]) -> str:
    return f"pulling {_short(line['digest'])}:"


def push_message(line: Mapping[str, Any]) -> str:
    return str(line.get("status") or f"pushing {_short(line['digest'])}...")


def with_status(call: Callable[[], T]) -> T:
    """Start a stream; if the server refuses it at once, its status line stands before its words, as in Ollama."""
    try:
        return call()
    except ConnectError:
        raise
    except OllamaError as error:
        status = str(error.status)
        with contextlib.suppress(ValueError):  # a status without a name
            status += f" {HTTPStatus(error.status).phrase}"
        raise from_code(error.code, f"{status}: {error.message}", error.status) from None


def _wishes(*, insecure: bool, max_rate: str) -> dict[str, Any]:
    """Fields of the request, for what was asked for."""
    return ({"insecure": True} if insecure else {}) | ({"max_rate": byte_size(max_rate)} if max_rate else {})


def _stop(spinner: Spinner | None) -> None:
    if spinner is not None:
        spinner.stop()


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12] if digest.startswith("sha256:") else digest


def _destination(model: str) -> str:
    name = ModelName.parse(model)
    if name.host.endswith("ollama.ai") or name.host.endswith("ollama.com"):
        return f"https://ollama.com/{name.short.removesuffix(':latest')}"
    return name.full
