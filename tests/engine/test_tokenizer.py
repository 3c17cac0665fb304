"""The tokens of a long text: piece by piece the same as in one native call, in linear time, with a bounded stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import vocabulary

from ollama_nb.engine.llama import LlamaModel, model
from ollama_nb.engine.tokenizer import _SENTINELS, BPE, MAX_UNSPLIT, PIECE, SPM, WPM, TextSplitter
from ollama_nb.errors import BadRequest
from ollama_nb.sprout import GGUF

# Expressions by which BPE vocabularies split a text first: all that llama.cpp knows of different shape.
EXPRESSIONS = (
    "llama-bpe", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "starcoder", "gpt-2", "qwen2", "qwen35",
    "stablelm2", "poro-chat", "bloom", "chatglm-bpe", "viking", "tekken", "gpt-4o", "superbpe", "bailingmoe",
    "seed-coder", "hunyuan", "kimi-k2", "minerva-7b", "smollm", "exaone", "olmo", "dbrx", "jais", "youtu", "tiny_aya",
)  # fmt: skip
WORDS = st.sampled_from(
    ["the", "Once", " upon", " a", "time", "\n", "\n\n", " ", "  ", "\t", "\r\n", "12", "345", ".", ", ", "!?", "'s",
     "'", "你好", "。", "é", "😀", "A", "aB", "x", "-", "<s>", "</s>", "[SEP]", "<mask>", "<|im_end|>", "<|", "_",
     "\u00a0", "½", "ا"]
)  # fmt: skip
TEXTS = st.lists(WORDS, max_size=40).map("".join) | st.text(max_size=60)


def assert_same(found: LlamaModel, text: str) -> None:
    for add_special in (False, True):
        for parse_special in (False, True):
            parsed = add_special and parse_special
            whole = found._tokenize(found._without_bos(text, parsed), add_special, parse_special)
            assert found.tokenize(text, add_special=add_special, parse_special=parse_special) == whole


def with_end(tokens: list[str]) -> list[str]:
    """The vocabulary with a token that llama.cpp needs for the names of this model family, which has RSTRIP tokens."""
    return [*tokens[:-1], "<|endoftext|>"]


def with_mask(tokens: list[str]) -> list[str]:
    """The vocabulary with the text of a special token replaced by one before which white space is removed."""
    return ["<mask>" if token == "<|im_start|>" else token for token in tokens]


@pytest.fixture(params=["stories", "spaced", "rstrip", "lstrip", "minilm", "sprout"])
def split(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path
) -> Iterator[LlamaModel]:
    """A vocabulary of each type, whose texts are cut at every third character if that is safe."""
    monkeypatch.setattr(model, "PIECE", 3)
    stories, path = models / "stories260K-q8_0.gguf", tmp_path / "vocabulary.gguf"
    found = LlamaModel(
        str(
            {
                "stories": lambda: stories,
                "spaced": lambda: vocabulary(stories, path, add_space_prefix=False),
                "rstrip": lambda: vocabulary(stories, path, "phi-3", tokens=with_end),
                "lstrip": lambda: vocabulary(GGUF, path, pre="jina-v2-de", tokens=with_mask),
                "minilm": lambda: models / "all-MiniLM-L6-v2-q8_0.gguf",
                "sprout": lambda: GGUF,
            }[request.param]()
        ),
        vocab_only=True,
    )
    yield found
    found.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_pieces_have_the_tokens_of_the_whole_text(split: LlamaModel, text: str) -> None:
    assert_same(split, text)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_pieces_have_the_tokens_of_the_whole_text_with_every_expression(
    expression: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(model, "PIECE", 3)
    path = vocabulary(GGUF, tmp_path_factory.mktemp("vocabulary") / "bpe.gguf", pre=expression)
    found = LlamaModel(str(path), vocab_only=True)

    @settings(max_examples=150, deadline=None)
    @given(text=TEXTS)
    def check(text: str) -> None:
        assert_same(found, text)

    check()
    found.close()


@pytest.mark.parametrize("unit", ["\n", "好", "\u0001", "a\n", "word 好\n"])
def test_no_native_call_reads_a_long_text(unit: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters that are in no token took quadratic time in one call."""
    found = LlamaModel(str(models / "stories260K-q8_0.gguf"), vocab_only=True)
    sizes: list[int] = []
    native = found._tokenize

    def measured(text: str, add_special: bool, parse_special: bool) -> list[int]:
        sizes.append(len(text))
        return native(text, add_special, parse_special)

    monkeypatch.setattr(found, "_tokenize", measured)
    text = unit * (400_000 // len(unit))
    tokens = found.tokenize(text, add_special=False)
    assert found.detokenize(tokens).decode() == text
    assert max(sizes) < 2 * PIECE
    found.close()


def test_the_bytes_of_every_bpe_character_are_known() -> None:
    """Latin-1 without blanks as it is, the rest from U+0100 on: the tokens of single bytes are such characters."""
    splitter = TextSplitter(BPE, ["oĠ".encode()])
    assert splitter.joins("o", " ") and not splitter.joins("o", "\n") and not splitter.joins("a", " ")


def test_vocabularies_of_other_types_get_the_whole_text() -> None:
    assert list(TextSplitter(4, [b"a"], piece=2).split("ab cd ef")) == ["ab cd ef"]


def test_without_an_unused_character_spm_texts_are_whole() -> None:
    everything = "".join(_SENTINELS).encode()
    assert list(TextSplitter(SPM, [everything], piece=2).split("ab cd ef")) == ["ab cd ef"]
    assert list(TextSplitter(WPM, [everything], piece=2).split("ab cd ef")) == ["ab", " cd", " ef"]


def test_a_text_that_cannot_be_cut_is_refused_before_it_overflows_the_stack() -> None:
    """Native BPE code recurses once per character of a long word."""
    found = LlamaModel(str(GGUF), vocab_only=True)
    with pytest.raises(BadRequest, match=f"at most {MAX_UNSPLIT} can be tokenized"):
        found.tokenize("a" * (MAX_UNSPLIT + 1))
    found.close()
