"""Prompts of named renderers, as jobs of the render process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ollama_nb import families
from ollama_nb.api.messages import Message
from ollama_nb.api.requests import PromptJob
from ollama_nb.errors import TemplateError
from ollama_nb.template.prompt import render

BOS = {
    "cogito": "<｜begin▁of▁sentence｜>",
    "deepseek3.1": "<｜begin▁of▁sentence｜>",
    "functiongemma": "<bos>",
    "gemma4": "<bos>",
    "gemma4-large": "<bos>",
    "gemma4-small": "<bos>",
    "glimmer": "<|begin_of_text|>",
    "laguna": "〈|EOS|〉",
    "lfm2": "<|startoftext|>",
    "lfm2-thinking": "<|startoftext|>",
    "poolside-v1": "〈|EOS|〉",
}

TALK = (Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Yes"), Message("user", "你好"))


def job(renderer: str, drops: tuple[int, ...] = (0,)) -> PromptJob:
    return PromptJob(kind="renderer", template="", renderer=renderer, messages=TALK, drops=drops)


def test_one_prompt_per_drop_keeps_the_system_message() -> None:
    system, user, last = (
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n",
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
    )
    assert render(job("qwen3-coder", drops=(0, 3)), families.render) == (system + user + last, system + last)


def test_unknown_name() -> None:
    with pytest.raises(TemplateError, match=r'^unknown renderer "qwen9"$'):
        render(job("qwen9"), families.render)


@pytest.mark.parametrize("name", sorted(families.renderers().keys()))
def test_the_tokenizer_s_bos_replaces_the_family_s(name: str) -> None:
    """The tokenizer then does not add a second one. Without one in the tokenizer, the family's remains."""
    asked = PromptJob(kind="renderer", template="", renderer=name, messages=TALK, bos="<first>")
    (plain,), (added,) = render(asked, families.render), render(replace(asked, add_bos=True), families.render)
    assert "<first>" not in plain
    assert plain.endswith(added.removeprefix("<first>"))
    own = plain.removesuffix(added.removeprefix("<first>"))
    assert own == BOS.get(name, "") and added.startswith("<first>") == bool(own)
