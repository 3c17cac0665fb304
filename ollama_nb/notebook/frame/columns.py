"""Between pandas and requests: rows become texts, outcomes become typed columns.

A text is a template: ``{{column}}`` becomes the row's value, every other character stays as it is. A row with a missing
value (NA) has no text; no request is sent for it, and its result is missing too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ollama_nb.client.shape import properties, resolve
from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.notebook.frame.run import Outcome
from ollama_nb.notebook.inputs import insert, inserted_names

VALUE = "value"
"""The name of a Series' values in templates, beside the Series' own name."""
ERROR = "error"
"""The column of error messages."""
_LISTED = 12  # column names that an error message lists

_LOOKS_LIKE_MARK = re.compile(r"\{\{\s*(.+?)\s*\}\}")
_DTYPES = {"string": "string", "integer": "Int64", "number": "Float64", "boolean": "boolean"}
_DATES = ("date", "date-time", "partial-date-time")

RowText = str | None | BadRequest
"""The text of a row; None if a value is missing, or the reason why it cannot be sent."""


# rows → texts


def texts(rows: pd.DataFrame | pd.Series[Any], template: str | None) -> list[RowText]:
    """One text per row. With ``template`` None, the values of a Series.

    Raises BadRequest for a template that names no column, or one that does not exist.
    """
    if template is not None and not isinstance(template, str):
        raise BadRequest(f"the template must be a str with `{{{{column}}}}` in it, not {type(template).__name__}")
    if template is None:
        if isinstance(rows, pd.DataFrame):
            raise BadRequest('name the columns that make up the text, such as text="{{title}}"')
        return [None if _is_na(value) else _value_text(value) for value in rows]
    columns = _columns(rows, template)
    return [_filled(template, row) for row in _records(columns)]


def _columns(rows: pd.DataFrame | pd.Series[Any], template: str) -> dict[str, list[Any]]:
    """The values of the columns that a template names."""
    known = _known(rows)
    wanted = inserted_names(template)
    for name in wanted:
        if name not in known:
            raise BadRequest(
                f"there is no column `{{{{{name}}}}}`{_nearest(name, known)}; the columns are: {_listed(known)}"
            )
        if isinstance(known[name], pd.DataFrame):
            raise BadRequest(f'there are several columns "{name}": rename all but one')
    _check_marks(template, known, wanted)
    if not wanted:
        meant = (name for name in known if name == template or f"{{{name}}}" in template)
        example = next(meant, next(iter(known), VALUE))
        raise BadRequest(f"the text names no column, so it is the same for every row: write `{{{{{example}}}}}` in it")
    return {name: known[name].tolist() for name in wanted}


def _check_marks(template: str, known: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Raise BadRequest for a mark that names a column but is not written as one."""
    for name in _LOOKS_LIKE_MARK.findall(template):
        if name not in known or name in wanted:
            continue
        if name.isidentifier():
            raise BadRequest(f"write `{{{{{name}}}}}` without spaces inside the braces")
        plain = re.sub(r"\W+", "_", name)
        raise BadRequest(
            f'column "{name}" cannot be inserted: `{{{{…}}}}` takes names of letters, digits and _ only; '
            f'rename it first, `df.rename(columns={{"{name}": "{plain}"}})`'
        )


def _known(rows: pd.DataFrame | pd.Series[Any]) -> dict[str, Any]:
    if isinstance(rows, pd.Series):
        return {VALUE: rows} | ({rows.name: rows} if isinstance(rows.name, str) else {})
    return {name: rows[name] for name in rows.columns if isinstance(name, str)}


def _records(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _filled(template: str, row: dict[str, Any]) -> RowText:
    if any(map(_is_na, row.values())):
        return None
    try:
        return insert(template, row)
    except BadRequest as error:
        return error


def _value_text(value: Any) -> RowText:
    return _filled(f"{{{{{VALUE}}}}}", {VALUE: value})


def _is_na(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _nearest(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean `{{{{{near[0]}}}}}`?" if near else ""


def _listed(known: dict[str, Any]) -> str:
    shown = [*known][:_LISTED]
    return ", ".join(shown) + (", …" if len(known) > len(shown) else "")


# outcomes → columns


def text_column(outcomes: Sequence[Outcome], index: pd.Index[Any], name: str) -> pd.Series[Any]:
    """A column of strings."""
    return pd.Series([_text(outcome) for outcome in outcomes], index=index, dtype="string", name=name)


def label_column(outcomes: Sequence[Outcome], index: pd.Index[Any], name: str, labels: Sequence[str]) -> pd.Series[Any]:
    """A categorical whose categories are all labels, in their order."""
    dtype = pd.CategoricalDtype([*labels])
    return pd.Series([_text(outcome) for outcome in outcomes], index=index, dtype=dtype, name=name)


def record_columns(
    records: Sequence[Mapping[str, Any] | None], index: pd.Index[Any], schema: Mapping[str, Any]
) -> pd.DataFrame:
    """A column per property of ``schema``, with the dtype of its type; lists and objects are kept as Python objects."""
    columns = {
        name: _typed([None if record is None else record.get(name) for record in records], resolve(part, schema))
        for name, part in properties(schema).items()
    }
    return pd.DataFrame({name: values.set_axis(index) for name, values in columns.items()}, index=index)


def with_errors(result: pd.Series[Any] | pd.DataFrame, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The result with a column ``error``: the message of a row that failed, NA for all others."""
    messages = [outcome.message if isinstance(outcome, OllamaError) else None for outcome in outcomes]
    frame = result.to_frame() if isinstance(result, pd.Series) else result
    return frame.assign(**{ERROR: pd.Series(messages, index=frame.index, dtype="string").array})


def _text(outcome: Outcome) -> str | None:
    return outcome["value"] if isinstance(outcome, dict) else None


def _typed(values: list[Any], part: Mapping[str, Any]) -> pd.Series[Any]:
    kind = part.get("type")
    if "enum" in part and all(isinstance(choice, str) for choice in part["enum"]):
        return pd.Series(values, dtype=pd.CategoricalDtype(part["enum"]))
    if kind == "string" and part.get("format") in _DATES:
        return pd.to_datetime(pd.Series(values, dtype="object"), errors="coerce", format="ISO8601")
    if kind == "array" or kind == "object" or kind not in _DTYPES:
        return pd.Series(values, dtype="object")
    return pd.Series(values, dtype=_DTYPES[kind])
