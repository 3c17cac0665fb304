"""The built-in chat formats: each renders its golden conversation and is recognised by its markers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_nb.api.messages import Message
from ollama_nb.api.requests import PromptJob
from ollama_nb.template.builtin import NAMES, builtin, recognise
from ollama_nb.template.prompt import render

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "builtin_templates.json").read_text("utf-8"))
CONVERSATIONS = {name: tuple(Message(*turn) for turn in turns) for name, turns in GOLDEN["conversations"].items()}


def prompt(name: str, *messages: Message) -> str:
    return render(PromptJob(kind="go", template=builtin(name).text, messages=messages))[0]


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_golden_conversations(name: str, conversation: str) -> None:
    assert prompt(name, *CONVERSATIONS[conversation]) == GOLDEN["prompts"][name][conversation]


def test_every_format_has_golden_prompts() -> None:
    assert GOLDEN["prompts"].keys() == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_last_answer_is_continued(name: str) -> None:
    asked = prompt(name, Message("user", "Count."))
    text = prompt(name, Message("user", "Count."), Message("assistant", "One, two"))
    assert text.startswith(asked.rstrip()) and text.endswith("One, two")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_stop_string_is_blank(name: str) -> None:
    stops = builtin(name).parameters["stop"]
    assert stops and all(stop.strip() for stop in stops)


def by_role(turn: str, start: str) -> str:
    return "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + start + "{% endif %}"


def by_words(user: str, assistant: str, system: str = "") -> str:
    system_turn = f"{{{{ '{system}' + m['content'] }}}}" if system else ""
    return (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        f"{{{{ '{user}' + m['content'] }}}}{{% elif m['role'] == 'system' %}}{system_turn}{{% else %}}"
        f"{{{{ '{assistant}' + m['content'] + eos_token }}}}{{% endif %}}{{% endfor %}}{{{{ '{assistant}' }}}}"
    )


CHATML = by_role("{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}", "<|im_start|>assistant\\n")
RECOGNISED = [
    ("chatml", CHATML),
    ("chatml", CHATML.replace("{% for", "{{ 'Always rhyme.' }}{%- for", 1)),
    ("chatml", CHATML + "{# You are DBRX" + " and more" * 180 + "#}"),
    ("zephyr", by_role("{{ '<|user|>\n' + m.content + eos_token }}", "<|assistant|>")),
    ("phi-3", by_role("{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}", "<|assistant|>\n")),
    ("llama3-instruct", by_role("<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>", "")),
    ("llama3-instruct", '{% if custom_tools %}{% endif %}"26 Jul 2024"<|eot_id|>' + "{# tools #}" * 416),
    ("gemma-instruct", by_role("<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n", "'model'")),
    ("gemma3-instruct", "{{ first_user_prefix }}<start_of_turn><end_of_turn>" + "{# images #}" * 120),
    ("command-r", by_words("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")),
    ("openchat", by_role("GPT4 Correct {{ m.role.title() }}: {{ m.content }}<|end_of_turn|>", "")),
    ("alfred", by_words("<start_user>", "<end_message><start_assistant>")),
    ("llama2-chat", by_words("[INST] <<SYS>>\\n<</SYS>>", " [/INST]")),
    ("mistral-instruct", by_words("[INST] ", " [/INST]")),
    ("codellama-70b-instruct", by_words("Source: user", " <step> Source: assistant\\nDestination: user")),
    ("magicoder", by_words("@@ Instruction\\n", "@@ Response\\n")),
    ("starcoder2-instruct", by_words("### Instruction\\n", "### Response\\n")),
    ("alpaca", by_words("### Instruction:\\n", "### Response:\\n")),
    ("solar-instruct", by_words("### User:\\n", "### Assistant:\\n", "### System:\\n")),
    ("granite-instruct", by_words("Question:\\n", "Answer:\\n")),
    ("falcon-instruct", by_words("User: ", "Falcon:")),
    ("chatqa", by_words("User: ", "Assistant:")),
    ("chatqa", by_words("User: ", "Assistant:", "System: ")),
]


@pytest.mark.parametrize(("name", "text"), RECOGNISED)
def test_recognised(name: str, text: str) -> None:
    found = recognise(text)
    assert found is not None and found.name == name


def test_every_format_is_recognised() -> None:
    assert {name for name, _ in RECOGNISED} == NAMES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{{ messages[0].content }}",
        CHATML.replace("{% for", "{% if tools %}{{ tools | tojson }}{% endif %}{% for", 1),
        CHATML.replace("m.content", "m.content.split('</think>')[-1]"),
        CHATML + "{# a long comment #}" * 30,
        CHATML + "{# a long comment #}" * 80,
        by_role("<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>", "") + " " * 500,
        by_role("{{ '<|user|>' + m.content + '<|end|>' + eos_token }}" + " " * 300, "<|assistant|>"),
        "[INST] {{ tools }} [/INST]",
    ],
)
def test_templates_that_are_not_replaced(text: str) -> None:
    assert recognise(text) is None
