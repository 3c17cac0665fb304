"""``%ollama pull``, ``push`` and ``create``: long operations of the server, shown with progress bars."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ollama_nb import disk
from ollama_nb.api.names import ModelName
from ollama_nb.api.units import byte_size, human_bytes
from ollama_nb.client import files
from ollama_nb.client.files import SharedStore
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import parse
from ollama_nb.notebook.display import follow
from ollama_nb.notebook.line import Line
from ollama_nb.notebook.render import note_html
from ollama_nb.notebook.session import MagicsSession

_ROW = "display: flex; align-items: center; gap: 0.8em"
_FIGURES = "color: var(--jp-ui-font-color2, #757575); font-variant-numeric: tabular-nums"


class TransferStep:
    """One step of an operation. ``total`` is in bytes; 0 while the size is unknown."""

    def __init__(self, status: str) -> None:
        self.status, self.total, self.completed = status, 0, 0

    @property
    def percent(self) -> int:
        return min(100, self.completed * 100 // self.total) if self.total else 0

    def html(self, *, active: bool) -> str:
        if not self.total:
            return f"<div>{escape(self.status)}{' …' if active else ''}</div>"
        return (
            f'<div style="{_ROW}"><span>{escape(self.status)}</span>'
            f'<progress max="{self.total}" value="{self.completed}" style="width: 16em"></progress>'
            f'<span style="{_FIGURES}">{self.percent}% · '
            f"{human_bytes(self.completed)} / {human_bytes(self.total)}</span></div>"
        )


class TransferPage:
    """A page that follows a stream of ``{"status", "digest"?, "total"?, "completed"?}``.

    It shows a line per step, with a progress bar if the step counts bytes. ``done`` replaces them at the end.
    """

    def __init__(self, done: str) -> None:
        self._done, self._succeeded, self._note = done, False, ""
        self.steps: list[TransferStep] = []
        self._lines: list[str] = []

    def feed(self, chunk: Mapping[str, Any]) -> None:
        status = str(chunk.get("status", ""))
        if status == "success":
            self._succeeded = True
            self._lines.append(self._summary())
            return
        step = next((step for step in self.steps if step.status == status), None)
        if step is None:
            step = TransferStep(status)
            self.steps.append(step)
            self._lines.append(status)
        before = step.percent
        step.total = chunk.get("total") or step.total
        step.completed = chunk.get("completed") or step.completed
        if step.percent // 10 > before // 10:
            self._lines.append(f"{status} {step.percent}%")

    def interrupt(self) -> None:
        self._note = "interrupted"

    def fail(self) -> None:
        self._note = "failed"

    def html(self) -> str:
        if self._succeeded:
            return f"<div>{note_html(self._summary())}</div>"
        lines = [step.html(active=step is self.steps[-1] and not self._note) for step in self.steps]
        if self._note and lines:
            lines.append(f"<div>{self._note}</div>")
        return "".join(lines)

    def plain(self) -> str:
        if self._succeeded:
            return self._summary()
        return "\n".join([step.status for step in self.steps] + ([self._note] if self._note else []))

    def log(self) -> str:
        lines = [*self._lines, self._note] if self._note else self._lines
        return "".join(f"{line}\n" for line in lines)

    def _summary(self) -> str:
        size = sum(step.total for step in self.steps)
        return f"{self._done} ({human_bytes(size)})" if size else self._done


def pull(session: MagicsSession, line: Line, cell: str | None) -> None:
    model, name = line.words[0], line.get("--as") or ""
    client = session.connect()
    page = TransferPage(f"pulled `{name or model}`")
    fields: dict[str, Any] = {"as": name} if name else {}
    if (streams := line.get("--streams")) is not None:
        if not (streams.isascii() and streams.isdigit()):
            raise BadRequest(f"--streams needs a number, not `{streams}`")
        fields["streams"] = int(streams)
    fields |= _registry_fields(line)
    follow(lambda: client.pull(model, **fields), page, session.screen())


def push(session: MagicsSession, line: Line, cell: str | None) -> None:
    model = line.words[0]
    client, page = session.connect(), TransferPage(f"pushed `{ModelName.parse(model).full}`")
    follow(lambda: client.push(model, **_registry_fields(line)), page, session.screen())


def _registry_fields(line: Line) -> dict[str, Any]:
    rate = {"max_rate": byte_size(line.get("--max-rate") or "")} if line.has("--max-rate") else {}
    return {"insecure": line.has("--insecure"), **rate}


def create(session: MagicsSession, line: Line, cell: str | None) -> None:
    """Create a model from a Modelfile, which is the cell, or the file that the line names.

    Paths in the Modelfile are relative to its folder; those in a cell to the working directory.
    """
    name, given = line.words[0], line.get("--file")
    if cell is not None and given is not None:
        raise BadRequest("the cell is the Modelfile: leave out `--file`")
    source, folder = (cell, Path()) if cell is not None else _read_file(Path(given or "Modelfile").expanduser())
    parts = parse(source).request_parts()
    session.asked = parts.from_
    for warning in parts.warnings:
        print(warning)
    found = files.resolve_sources(parts, folder)
    fields = {"quantize": line.get("--quantize")} if line.has("--quantize") else {}
    client = session.connect()
    page, screen = TransferPage(f"created `{name}`"), session.screen()

    def report(status: str, completed: int, total: int) -> None:
        page.feed({"status": status, "completed": completed, "total": total})
        screen.show(page)

    def steps() -> Iterator[Mapping[str, Any]]:
        digests = {}
        shared = SharedStore.find(client) if found.paths() else None
        for path in found.paths():
            yield {"status": f"reading {path.name}"}
            digests[path] = files.file_digest(path)
            files.send(client, shared, path, digests[path], functools.partial(report, f"copying {path.name}"))
        with client.create(name, **files.create_fields(parts, found, digests), **fields) as stream:
            yield from stream

    follow(steps, page, screen)


def _read_file(path: Path) -> tuple[bytes, Path]:
    try:
        return disk.read_regular(path), path.parent
    except FileNotFoundError:
        raise BadRequest(f"no Modelfile at {path}: write it in a cell below `%%ollama create NAME`") from None
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {disk.describe_error(error)}") from None
