"""From rows to texts: ``{{column}}`` becomes that row's value, every other character stays what it is.

Rule: a row that lacks a value (NA) has no text: nothing is asked about it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from ollama_nb.errors import BadRequest
from ollama_nb.notebook.insert import insert, names

VALUE = "value"
"""What the values of a Series are called beside the Series' own name."""

_LOOKS_LIKE_MARK = re.compile(r"\{\{\s*(.+?)\s*\}\}")

Text = str | None | BadRequest
"""A row's text, None where it lacks a value, or why it cannot be sent."""


def texts(rows: pd.DataFrame | pd.Series[Any], template: str | None) -> list[Text]:
    """One text a row. ``template`` None: the values of a Series as they are.

    Raises BadRequest for a template that names a column which is not there, or none at all.
    """
    if template is not None and not isinstance(template, str):
        raise BadRequest(f"a text with `{{{{column}}}}` in it is needed, not a {type(template).__name__}")
    if template is None:
        if isinstance(rows, pd.DataFrame):
            raise BadRequest('say which columns the text is made of, such as text="{{title}}"')
        return [None if _is_na(value) else _as_text(value) for value in rows]
    columns = _columns(rows, template)
    return [_filled(template, row) for row in _dicts(columns)]


def _columns(rows: pd.DataFrame | pd.Series[Any], template: str) -> dict[str, list[Any]]:
    """The columns that a template names, as lists."""
    known = _known(rows)
    wanted = names(template)
    for name in wanted:
        if name not in known:
            raise BadRequest(f"`{{{{{name}}}}}` is no column here{_nearest(name, known)}; there are: {_listed(known)}")
        if isinstance(known[name], pd.DataFrame):
            raise BadRequest(f'there are several columns "{name}": rename all but one')
    for looks_like in _LOOKS_LIKE_MARK.findall(template):
        if looks_like in known and looks_like.isidentifier() and looks_like not in wanted:
            raise BadRequest(f"write `{{{{{looks_like}}}}}` without blanks between the braces")
        if looks_like in known and looks_like not in wanted:
            plain = re.sub(r"\W+", "_", looks_like)
            raise BadRequest(
                f'column "{looks_like}" cannot be inserted: `{{{{…}}}}` takes names of letters, digits and _ only; '
                f'rename it first, `df.rename(columns={{"{looks_like}": "{plain}"}})`'
            )
    if not wanted:
        meant = (name for name in known if name == template or f"{{{name}}}" in template)
        example = next(meant, next(iter(known), VALUE))
        raise BadRequest(f"the text names no column, so it is the same for every row: write `{{{{{example}}}}}` in it")
    return {name: known[name].tolist() for name in wanted}


def _known(rows: pd.DataFrame | pd.Series[Any]) -> dict[str, Any]:
    if isinstance(rows, pd.Series):
        return {VALUE: rows} | ({rows.name: rows} if isinstance(rows.name, str) else {})
    return {name: rows[name] for name in rows.columns if isinstance(name, str)}


def _dicts(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _filled(template: str, row: dict[str, Any]) -> Text:
    if any(map(_is_na, row.values())):
        return None
    try:
        return insert(template, row)
    except BadRequest as error:
        return error


def _as_text(value: Any) -> Text:
    return _filled(f"{{{{{VALUE}}}}}", {VALUE: value})


def _is_na(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _nearest(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean `{{{{{near[0]}}}}}`?" if near else ""


def _listed(known: dict[str, Any]) -> str:
    shown = [*known][:12]
    return ", ".join(shown) + (", …" if len(known) > len(shown) else "")
