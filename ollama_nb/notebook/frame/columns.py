"""From outcomes to typed columns: the index of the rows they came from, their order, and NA where there is nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ollama_nb.client.shape import properties, resolve
from ollama_nb.errors import OllamaError
from ollama_nb.notebook.frame.run import Outcome

ERROR = "error"
_DTYPES = {"string": "string", "integer": "Int64", "number": "Float64", "boolean": "boolean"}
_DATES = ("date", "date-time")


def text_column(outcomes: Sequence[Outcome], index: pd.Index[Any], name: str) -> pd.Series[Any]:
    return pd.Series([_text(outcome) for outcome in outcomes], index=index, dtype="string", name=name)


def label_column(outcomes: Sequence[Outcome], index: pd.Index[Any], name: str, labels: Sequence[str]) -> pd.Series[Any]:
    """A categorical with all labels as categories, in their order."""
    dtype = pd.CategoricalDtype([*labels])
    return pd.Series([_text(outcome) for outcome in outcomes], index=index, dtype=dtype, name=name)


def record_columns(
    records: Sequence[Mapping[str, Any] | None], index: pd.Index[Any], schema: Mapping[str, Any]
) -> pd.DataFrame:
    """A column for each property, of the dtype of its type; lists and objects stay what they are."""
    columns = {
        name: _typed([None if record is None else record.get(name) for record in records], resolve(part, schema))
        for name, part in properties(schema).items()
    }
    return pd.DataFrame({name: values.set_axis(index) for name, values in columns.items()}, index=index)


def with_errors(result: pd.Series[Any] | pd.DataFrame, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The result with a column ``error`` beside it: why a row has none, NA for all others."""
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
