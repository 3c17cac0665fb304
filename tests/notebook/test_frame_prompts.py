"""From rows to texts: only ``{{column}}`` is replaced, rows with NA have no text, and mistakes raise errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.errors import BadRequest
from ollama_nb.notebook.frame.columns import texts

FRAME = pd.DataFrame({"title": ["Sea", "山"], "year": [1999, 2024], "First Name": ["a", "b"]})


def test_columns_are_inserted_and_nothing_else() -> None:
    template = '{{title}} of {{year}}, {title}, $year, {"a": 1}, {{ .Prompt }}'
    assert texts(FRAME, template) == [
        'Sea of 1999, {title}, $year, {"a": 1}, {{ .Prompt }}',
        '山 of 2024, {title}, $year, {"a": 1}, {{ .Prompt }}',
    ]


def test_values_are_data() -> None:
    assert texts(pd.Series(["{{value}} {{x}}"]), "<{{value}}>") == ["<{{value}} {{x}}>"]


def test_a_series_is_called_value_or_by_its_name() -> None:
    series = pd.Series(["a"], name="word")
    assert texts(series, "{{value}} {{word}}") == ["a a"]
    assert texts(series, None) == ["a"]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_a_row_that_lacks_a_value_has_no_text(missing: Any) -> None:
    assert texts(pd.Series(["a", missing], dtype="object"), None) == ["a", None]
    frame = pd.DataFrame({"a": pd.Series(["x", missing], dtype="object"), "b": ["y", "z"]})
    assert texts(frame, "{{a}}{{b}}") == ["xy", None]
    assert texts(frame, "{{b}}") == ["y", "z"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{{titel}}",
            "there is no column `{{titel}}`, did you mean `{{title}}`?; the columns are: title, year, First Name",
        ),
        ("title", "the text names no column, so it is the same for every row: write `{{title}}`"),
        ("Hello", "names no column"),
        ("{{First Name}}", 'column "First Name" cannot be inserted.*"First_Name"'),
        ("{{title}} {{ year }}", "write `{{year}}` without spaces inside the braces"),
        ("When was {year}?", "the same for every row: write `{{year}}` in it"),
        (5, "the template must be a str with `{{column}}` in it, not int"),
        (FRAME["title"], "the template must be a str with `{{column}}` in it, not Series"),
        (None, "name the columns"),
    ],
)
def test_mistakes_are_named(template: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words.replace("{", r"\{").replace("?", r"\?")):
        texts(FRAME, template)


def test_two_columns_of_one_name_are_an_error() -> None:
    with pytest.raises(BadRequest, match='several columns "a"'):
        texts(pd.DataFrame([[1, 2]], columns=["a", "a"]), "{{a}}")


def test_a_value_that_cannot_be_sent_is_that_row_s_error() -> None:
    first, second = texts(pd.Series(["ok", "\ud800"]), None)
    assert first == "ok"
    assert isinstance(second, BadRequest)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=8))
def test_texts_arrive_as_they_are(values: list[str]) -> None:
    assert texts(pd.Series(values, dtype="object"), None) == values
    assert texts(pd.Series(values, dtype="object"), "{{value}}!") == [f"{value}!" for value in values]
