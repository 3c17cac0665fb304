"""Only ``{{name}}`` is replaced, and only once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.errors import BadRequest
from ollama_nb.notebook.inputs import insert


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {{name}}!", "Hello Ada!"),
        ("{{name}}{{n}}{{变量}}", "Ada5值"),
        ("{{{name}}}", "{Ada}"),
        ("{name} $name ${name} {{ name }} {{ .Prompt }} {{.Prompt}} {{name.upper}} {{1}}", None),
        ('{"a": {"b": {}}} {{"name"}} {{}}', None),
        ("{{again}}", "{{name}}"),
    ],
)
def test_texts(text: str, expected: str | None) -> None:
    variables = {"name": "Ada", "n": 5, "变量": "值", "again": "{{name}}"}
    assert insert(text, variables) == (text if expected is None else expected)


def test_unknown_name() -> None:
    with pytest.raises(BadRequest, match=r"there is no variable `\{\{titel\}\}`; did you mean `\{\{title\}\}`\?"):
        insert("{{titel}}", {"title": ""})
    with pytest.raises(BadRequest, match="set it in a cell above"):
        insert("{{zzz}}", {"title": ""})


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(BadRequest, match="half of a surrogate pair"):
        insert("{{x}}", {"x": "a\ud800"})


@given(st.text())
@settings(max_examples=200)
def test_a_text_without_marks_is_untouched(text: str) -> None:
    """S24: a text without marks reaches the model as it is."""
    assert insert(text.replace("{{", "{ {"), {}) == text.replace("{{", "{ {")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text().filter(lambda text: "{{" not in text))
@settings(max_examples=200)
def test_a_value_is_data(value: str, around: str) -> None:
    """S24: Marks inside a value are not replaced."""
    around = around.rstrip("{").lstrip("}")
    assert insert(f"{around}{{{{x}}}}{around}", {"x": "{{x}}" + value}) == f"{around}{{{{x}}}}{value}{around}"
