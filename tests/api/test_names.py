"""Model names: invalid names and the reasons in the errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_nb.api.names import ModelName
from ollama_nb.errors import InvalidName

NAME = 'may hold only A-Z, a-z, 0-9, "_", "-" and ".", not '


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("中文名", f'the model part {NAME}"中"'),
        ("名/m", 'the namespace part may hold only A-Z, a-z, 0-9, "_" and "-", not "名"'),
        ("hf.co/us.er/m", 'the namespace part may hold only A-Z, a-z, 0-9, "_" and "-", not "."'),
        ("my host/u/m", 'the host part may hold only A-Z, a-z, 0-9, "_", "-", "." and ":", not " "'),
        ("m:v 1", f'the tag part {NAME}" "'),
        ("m@sha256:12", f'the model part {NAME}"@"'),
        ("m\u200b", f"the model part {NAME}'\\u200b'"),
        ("", "the model part is empty"),
        ("m:", "the tag part is empty"),
        ("/m", "the namespace part is empty"),
        ("a/b/c/d", 'too many "/": a name is [host/][namespace/]model[:tag]'),
        ("-m", 'the model part must begin with a letter, a digit or "_", not with "-"'),
        ("m:.x", 'the tag part must begin with a letter, a digit or "_", not with "."'),
        ("x" * 81, "the model part is too long: 81 characters"),
    ],
)
def test_reasons(text: str, fault: str) -> None:
    assert ModelName.fault(text) == fault
    with pytest.raises(InvalidName) as caught:
        ModelName.parse(text)
    assert caught.value.message.startswith("invalid model name") and caught.value.message.endswith(f" ({fault})")


def test_a_password_in_an_address_is_hidden() -> None:
    with pytest.raises(InvalidName) as caught:
        ModelName.parse("https://anna:hunter2@example.com/a/m")
    assert caught.value.message.startswith("invalid model name: https://***@example.com/a/m (the host part")


def test_the_error_shows_the_name_in_one_readable_line() -> None:
    for text, told in (("a b", ": a b ("), ("a\nb", r": 'a\nb' ("), ("", " ("), ("é" * 200, f": {'é' * 100} (")):
        with pytest.raises(InvalidName) as caught:
            ModelName.parse(text)
        assert caught.value.message.startswith(f"invalid model name{told}")


@given(st.text(alphabet="aZ0_-.:/ @名\n", max_size=12))
def test_a_name_without_a_fault_is_valid(text: str) -> None:
    if ModelName.fault(text):
        with pytest.raises(InvalidName):
            ModelName.parse(text)
    else:
        name = ModelName.parse(text)
        assert name.full == ModelName.parse(name.full).full
