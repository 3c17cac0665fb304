"""Lists and details as a notebook shows them: data that one can go on with, drawn as tables.

The text form is the command line's own: columns padded, four blanks after every cell, no lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

from ollama_nb.api.units import human_bytes, human_number, human_time

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


class Table(list[Row]):
    """A list of the server's own objects (``[0]["name"]``) that shows itself as a table of the given columns."""

    def __init__(self, rows: Iterable[Row], columns: Sequence[Column]) -> None:
        super().__init__(rows)
        self._columns = columns

    def cells(self) -> list[list[str]]:
        return [[cell(row) for _, cell in self._columns] for row in self]

    def __repr__(self) -> str:
        titles = [title for title, _ in self._columns]
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        lines = ["    ".join(map(str.ljust, row, widths)).rstrip() for row in (titles, *cells)]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def _repr_html_(self) -> str:
        head = "".join(f"<th{_LEFT}>{escape(title)}</th>" for title, _ in self._columns)
        body = "".join(
            "<tr>" + "".join(f"<td{_LEFT}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_LEFT = ' style="text-align: left"'
_WIDE = ' colspan="2"'


def list_table(models: Iterable[Row]) -> Table:
    return Table(
        models,
        (
            ("NAME", lambda row: str(row.get("name", ""))),
            ("ID", lambda row: str(row.get("digest", ""))[:12]),
            ("SIZE", lambda row: "-" if row.get("remote_model") else human_bytes(row.get("size", 0))),
            ("MODIFIED", lambda row: _when(row.get("modified_at"))),
        ),
    )


def ps_table(models: Iterable[Row]) -> Table:
    return Table(
        models,
        (
            ("NAME", lambda row: str(row.get("name", ""))),
            ("ID", lambda row: str(row.get("digest", ""))[:12]),
            ("SIZE", lambda row: human_bytes(row.get("size", 0))),
            ("PROCESSOR", lambda row: _processor(row.get("size", 0), row.get("size_vram", 0))),
            ("CONTEXT", lambda row: str(row.get("context_length", ""))),
            ("UNTIL", lambda row: _until(row.get("expires_at"))),
        ),
    )


def _processor(size: int, vram: int) -> str:
    if vram == 0 and size:
        return "100% CPU"
    if size == 0 or vram > size:
        return "Unknown"
    if vram == size:
        return "100% GPU"
    cpu = round((size - vram) / size * 100)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def _seconds_from_now(stamp: str | None) -> float | None:
    if not stamp or stamp.startswith("0001-"):  # Go's zero time
        return None
    return datetime.fromisoformat(stamp).timestamp() - time.time()


def _when(stamp: str | None) -> str:
    seconds = _seconds_from_now(stamp)
    return "Never" if seconds is None else human_time(seconds)


def _until(stamp: str | None) -> str:
    seconds = _seconds_from_now(stamp)
    if seconds is None:
        return "Never"
    return human_time(seconds) if seconds > 0 else "Stopping..."


class ModelDetails(dict[str, Any]):
    """A model's ``/api/show`` object that shows itself as the command line's screen; ``verbose``: with its file."""

    verbose = False

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        info, details = self.get("model_info") or {}, self.get("details") or {}
        architecture = str(info.get("general.architecture") or details.get("family") or "")
        count = info.get("general.parameter_count")
        rows = [
            ("architecture", architecture),
            ("parameters", details.get("parameter_size") or (human_number(count) if count else "")),
            *((key.replace("_", " "), info.get(f"{architecture}.{key}")) for key in _LENGTHS),
            ("quantization", details.get("quantization_level")),
            ("requires", self.get("requires")),
        ]
        sections = [("Model", [(name, str(value)) for name, value in rows if value])]
        sections.append(("Capabilities", [(str(name), "") for name in self.get("capabilities") or ()]))
        parameters = (line.split(maxsplit=1) for line in (self.get("parameters") or "").splitlines() if line.strip())
        sections.append(("Parameters", [(name, " ".join(value)) for name, *value in parameters]))
        for title in ("System", "License"):
            lines = _two_lines(self.get(title.lower()) or "")
            sections.append((title, [(line, "") for line in lines]))
        if self.verbose:
            sections.append(("Metadata", [(name, _shortened(info[name])) for name in sorted(info)]))
            tensors = self.get("tensors") or ()
            sections.append(("Tensors", [(t["name"], f"{t['type']}  {t['shape']}") for t in tensors]))
        return [(title, rows) for title, rows in sections if rows]

    def __repr__(self) -> str:
        lines = []
        for title, rows in self.sections():
            width = max(len(name) for name, _ in rows)
            lines.append(f"  {title}")
            lines += [f"    {name.ljust(width)}    {value}".rstrip() for name, value in rows]
            lines.append("")
        return "\n".join(lines).rstrip("\n")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def _repr_html_(self) -> str:
        body = []
        for title, rows in self.sections():
            body.append(f"<tr><th{_LEFT}{_WIDE}>{escape(title)}</th></tr>")
            for name, value in rows:
                second = f"<td{_LEFT}>{escape(value)}</td>" if value else ""
                body.append(f"<tr><td{_LEFT}{'' if value else _WIDE}>{escape(name)}</td>{second}</tr>")
        return f"<table><tbody>{''.join(body)}</tbody></table>"


def _shortened(value: Any) -> str:
    """The first few items of an array, and how many there are."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value[:_ITEMS]))}, … {len(value)} in all]" if len(value) > _ITEMS else str(value)
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


_ITEMS, _LONG = 3, 80
_LENGTHS = ("context_length", "embedding_length")


def _two_lines(text: str) -> list[str]:
    """The first two lines that are not blank, and a sign that there are more."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [*lines[:2], "..."] if len(lines) > 2 else lines


class PlainText(str):
    """A text of the server (a Modelfile, a licence, a template) that shows itself as it is, not as a Python literal."""

    __slots__ = ()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))
