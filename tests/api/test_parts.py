"""Names of files that are parts of one model."""

from __future__ import annotations

import pytest

from ollama_nb.api.parts import FilePart, check_parts
from ollama_nb.errors import BadRequest


def shards(*numbers: int, count: int = 3, suffix: str = "safetensors") -> list[str]:
    return [f"model-{number:05d}-of-{count:05d}.{suffix}" for number in numbers]


@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["model.safetensors", "config.json", "a-of-b.gguf"],
        shards(3, 1, 2),
        [*shards(1, 2, 3), *shards(1, 2, count=2, suffix="gguf")],
        [*(f"a/{path}" for path in shards(1, 2, count=2)), *shards(1, 2, 3)],
        shards(1, count=1),
    ],
)
def test_complete_sets(paths: list[str]) -> None:
    check_parts(paths)


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 3), r'"model-00001-of-00003\.S" has 2 shards, expected 3: model-00002-of-00003\.S is missing'),
        ((2,), r"has 1 shards, expected 3: model-00001-of-00003\.S, model-00003-of-00003\.S are missing"),
        ((1, 2, 3, 4), r'"model-00004-of-00003\.S": there is no part 4 of 3'),
        ((0, 1, 2, 3), "there is no part 0 of 3"),
    ],
)
def test_incomplete_sets(numbers: tuple[int, ...], message: str, suffix: str) -> None:
    with pytest.raises(BadRequest, match=message.replace("S", suffix, 2) if "S" in message else message):
        check_parts(shards(*numbers, suffix=suffix))


def test_a_part_that_is_given_twice() -> None:
    with pytest.raises(BadRequest, match="are the same part of one model"):
        check_parts([*shards(1, 2, 3), "model-2-of-3.safetensors"])


def test_sets_of_different_counts() -> None:
    with pytest.raises(BadRequest, match="not parts of one model: their counts differ"):
        check_parts([*shards(1, 2, 3), *shards(1, 2, count=2)])


def test_an_absurd_count_is_described_briefly() -> None:
    with pytest.raises(BadRequest, match="and 999995 more are missing") as caught:
        check_parts(["m-000001-of-999999.gguf"])
    assert len(caught.value.message) < 200


def test_a_sibling() -> None:
    part = FilePart.of("deep/model-00002-of-00003.gguf")
    assert part is not None
    assert (part.sibling(1), part.set) == ("deep/model-00001-of-00003.gguf", ("deep/model.gguf", 3))
