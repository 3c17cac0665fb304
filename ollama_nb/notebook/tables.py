"""Details of a model and texts of the server as results of a cell: data that displays itself.

The text forms are those of the terminal program, without trailing spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ollama_nb.verbs import present

_LEFT = ' style="text-align: left"'


class ModelDetails(dict[str, Any]):
    """The ``/api/show`` object of a model. ``verbose``: display the metadata and tensors too."""

    verbose = False

    def __repr__(self) -> str:
        return trimmed(present.show_screen(self, verbose=self.verbose))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def _repr_html_(self) -> str:
        body = []
        for section in present.show_sections(self, verbose=self.verbose):
            width = max(map(len, section.rows))
            body.append(f'<tr><th{_LEFT} colspan="{width}">{escape(section.title)}</th></tr>')
            body += [_html_row(row, width) for row in section.rows]
        return f"<table><tbody>{''.join(body)}</tbody></table>"


class PlainText(str):
    """A text of the server (a Modelfile, license or template) that is displayed as it is, without quotes."""

    __slots__ = ()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of left-aligned cells."""
    head = "".join(f"<th{_LEFT}>{escape(title)}</th>" for title in header)
    body = "".join(_html_row(row, len(row)) for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def trimmed(text: str) -> str:
    """The text without trailing spaces and without empty lines at its end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n")


def _html_row(cells: Sequence[str], width: int) -> str:
    """A row of a table with ``width`` columns; the last cell takes the remaining ones."""
    *first, last = cells
    span = width - len(first)
    attributes = _LEFT if span == 1 else f'{_LEFT} colspan="{span}"'
    return f"<tr>{''.join(f'<td{_LEFT}>{escape(cell)}</td>' for cell in first)}<td{attributes}>{escape(last)}</td></tr>"
