"""The two templates of the bundled model, Go in its Modelfile and Jinja in its GGUF, render the same prompts."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import pytest

import ollama_nb.sprout
from ollama_nb.api.messages import Message, Think, ToolCall
from ollama_nb.api.requests import PromptJob, TemplateKind
from ollama_nb.template.facts import facts, jinja_facts, jinja_preferred
from ollama_nb.template.prompt import render

FOLDER = Path(ollama_nb.sprout.__file__).parent
MODELFILE = (FOLDER / "Modelfile").read_text("utf-8")
GO = re.search(r'TEMPLATE """(.*?)"""', MODELFILE, re.DOTALL)[1]  # type: ignore[index]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}},
    },
}
SYSTEM, USER = Message("system", "Be kind."), Message("user", "你好")
CALLS = Message("assistant", "", tool_calls=(ToolCall("get_weather", {"city": "Paris"}), ToolCall("get_weather", {})))
RESULT = Message("tool", "sunny", tool_name="get_weather")


@pytest.fixture(scope="module")
def jinja() -> str:
    reader = gguf.GGUFReader(FOLDER / "sprout-q8_0.gguf")
    return str(reader.fields["tokenizer.chat_template"].contents())


def prompt(kind: TemplateKind, template: str, *messages: Message, think: Think = None, tools: bool = False) -> str:
    job = PromptJob(kind=kind, template=template, messages=messages, think=think, tools=(WEATHER,) if tools else ())
    return render(job)[0]


@pytest.mark.parametrize("think", [None, False, True])
@pytest.mark.parametrize(
    "messages",
    [
        (USER,),
        (SYSTEM, USER),
        (USER, Message("assistant", "Hello!"), Message("user", "Bye")),
        (SYSTEM, USER, CALLS, RESULT),
        (USER, Message("assistant", "I", thinking=""), Message("user", "a <b> & c\n")),
    ],
)
def test_both_templates_agree(jinja: str, messages: tuple[Message, ...], think: Think) -> None:
    def spaced(text: str) -> str:
        """Remove the spaces that Python's JSON has and Go's does not."""
        return text.replace('{"city":"', '{"city": "')

    assert spaced(prompt("go", GO, *messages, think=think)) == prompt("jinja", jinja, *messages, think=think)


def test_plain_chat() -> None:
    assert prompt("go", GO, SYSTEM, USER) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )


def test_thinking_is_opened_only_on_request() -> None:
    assert prompt("go", GO, USER, think=True).endswith("assistant\n<think>\n")
    assert prompt("go", GO, USER, think=False).endswith("assistant\n")
    assert prompt("go", GO, USER).endswith("assistant\n")


def test_tools_and_their_results() -> None:
    text = prompt("go", GO, SYSTEM, USER, CALLS, RESULT, tools=True)
    assert text.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n\nYou may call these functions:\n<tools>\n")
    assert (
        '{"type": "function", "function": {"name":"get_weather","description":"Weather of a city","parameters":'
        '{"type":"object","required":["city"],"properties":{"city":{"type":"string"}}}}}\n</tools>'
    ) in text
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city":"Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    ) in text


def test_an_answer_is_continued() -> None:
    assert prompt("go", GO, USER, Message("assistant", "Hel")).endswith("<|im_start|>assistant\nHel")


def test_fill_in_the_middle() -> None:
    job = PromptJob(kind="go", template=GO, prompt="def f(", suffix="return 1")
    assert render(job) == ("<|fim_prefix|>def f(<|fim_suffix|>return 1<|fim_middle|>",)


def test_facts(jinja: str) -> None:
    known = facts(GO)
    assert known.thinking == ("<think>", "</think>")
    assert known.tool_marker == jinja_facts(jinja).tool_marker == "<tool_call>"
    assert known.tools and known.insert and known.tool_roundtrip
    assert not jinja_preferred(known, jinja_facts(jinja))
