from __future__ import annotations

import re

import pytest

from ollama_nb import errors
from ollama_nb.errors import OllamaError

CLASSES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, OllamaError)]


def test_the_table_lists_every_class_with_its_status_and_code() -> None:
    rows = re.findall(r"^ *(\w+) +(\d{3}) +(\w+) ", errors.__doc__ or "", re.MULTILINE)
    assert rows == [(found.__name__, str(found.status), found.code) for found in CLASSES]


def test_codes_are_unique() -> None:
    assert len({found.code for found in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_survives_as_its_code(kind: type[OllamaError]) -> None:
    rebuilt = errors.from_code(kind.code, "text", kind.status)
    assert (type(rebuilt), rebuilt.message, rebuilt.status) == (kind, "text", kind.status)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, errors.NotFound), (413, errors.RequestTooLarge), (418, errors.BadRequest), (502, OllamaError)],
)
def test_an_unknown_code_gives_the_class_of_the_status(status: int, kind: type[OllamaError]) -> None:
    for code in ("", "unheard_of"):
        rebuilt = errors.from_code(code, "text", status)
        assert (type(rebuilt), rebuilt.status) == (kind, status)
