"""Prompts of model families by name, as a job of the render process."""

from __future__ import annotations

import pytest

from ollama_nb.api.chat import PromptJob
from ollama_nb.api.messages import Message
from ollama_nb.errors import TemplateError
from ollama_nb.template.prompt import render

TALK = (Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Yes"), Message("user", "你好"))


def job(renderer: str, drops: tuple[int, ...] = (0,)) -> PromptJob:
    return PromptJob(path="renderer", template="", renderer=renderer, messages=TALK, drops=drops)


def test_one_prompt_per_drop_keeps_the_system_message() -> None:
    system, user, last = (
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n",
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
    )
    assert render(job("qwen3-coder", drops=(0, 3))) == (system + user + last, system + last)


def test_unknown_name() -> None:
    with pytest.raises(TemplateError, match=r'^unknown renderer "qwen9"$'):
        render(job("qwen9"))
