"""Models that name a renderer or a parser: prompts, replies, answers in a format, and unknown names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.service_harness import PLAIN, THINKS, WEATHER, ServiceHarness, calls, collect, content, done, thinking

from ollama_nb import families
from ollama_nb.api.events import Delta, Event, ToolCalls
from ollama_nb.api.messages import Message
from ollama_nb.api.requests import ChatRequest, CreateRequest, GenerateRequest
from ollama_nb.errors import BadRequest

HI = (Message("user", "hi"),)
HARMONY = (
    "{{ if .ThinkLevel }}Reasoning: {{ .ThinkLevel }} {{ end }}{{ range .Tools }}{{ .Function.Name }} {{ end }}"
    "{{ range .Messages }}<|start|>{{ .Role }}<|message|>{{ .Content }}<|end|>{{ end }}<|start|>assistant"
)
SEND = {"type": "function", "function": {"name": "mail.send-all", "parameters": {"type": "object", "properties": {}}}}


def harness_of(folder: Path, *reply: str, **parts: Any) -> ServiceHarness:
    harness = ServiceHarness(folder, lambda prompt, format: ('{"a": ', "1}") if format else reply)
    harness.make("m", **parts)
    return harness


def chat(harness: ServiceHarness, messages: tuple[Message, ...] = HI, **fields: Any) -> list[Event]:
    return asyncio.run(collect(harness.service.chat(ChatRequest(model="m", messages=messages, **fields))))


def test_a_renderer_writes_the_prompt_and_the_parser_reads(tmp_path: Path) -> None:
    reply = (
        "Look.\n<tool",
        "_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
    )
    harness = harness_of(tmp_path, *reply, renderer="qwen3-coder", parser="qwen3-coder")
    events = chat(harness, tools=(WEATHER,))
    assert (content(events), calls(events)) == ("Look.", ["weather"])
    asked = harness.asks[0]
    assert asked["prompt"].startswith("<|im_start|>system\n")
    assert "<name>weather</name>" in asked["prompt"]
    assert asked["prompt"].endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert asked["preserve"] == families.parser("qwen3-coder").preserve
    assert asked["options"].stop == ()
    assert asyncio.run(harness.service.show("m")).template == "{{ .Prompt }}"


def test_generate_goes_the_same_way(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, "why</think>\n\nso", renderer="qwen3.5", parser="qwen3.5")
    request = GenerateRequest(model="m", prompt="hi", system="be kind")
    events = asyncio.run(collect(harness.service.generate(request)))
    assert (thinking(events), content(events)) == ("why", "so")
    assert "be kind" in harness.asks[0]["prompt"]
    raw = asyncio.run(collect(harness.service.generate(GenerateRequest(model="m", prompt="hi", raw=True))))
    assert (content(raw), harness.asks[1]["prompt"]) == ("why</think>\n\nso", "hi")


def test_a_parser_alone_keeps_the_template(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, "why</think>so", template=PLAIN, parser="deepseek3")
    events = chat(harness)
    assert (thinking(events), content(events)) == ("why", "so")
    assert harness.asks[0]["prompt"] == "<user> hi <assistant>"
    bare = harness_of(tmp_path / "bare", "Hello", parser="passthrough")
    assert content(chat(bare)) == "Hello"
    assert bare.asks[0]["prompt"] == "hi"


def test_a_renderer_alone_leaves_the_template_s_tags(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, "why</think>so", template=THINKS, renderer="glm-4.7")
    events = chat(harness)
    assert (thinking(events), content(events)) == ("why", "so")
    assert "<|user|>hi" in harness.asks[0]["prompt"]


def test_harmony_with_tools_by_other_names(tmp_path: Path) -> None:
    reply = ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary ",
             "to=functions.mail_send_all <|constrain|>json<|message|>{}")  # fmt: skip
    harness = harness_of(tmp_path, *reply, template=HARMONY, parser="harmony")
    events = chat(harness, tools=(SEND, WEATHER), think="max")
    assert (thinking(events), content(events), calls(events)) == ("hm", "", ["mail.send-all"])
    assert harness.asks[0]["prompt"].startswith("Reasoning: high mail_send_all weather <|start|>user")
    assert "<|channel|>" in harness.asks[0]["preserve"]


def test_harmony_goes_on_with_an_answer(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, " there<|end|>", template=HARMONY, parser="harmony")
    assert content(chat(harness, (*HI, Message("assistant", "Hello")))) == " there"


def test_a_call_that_cannot_be_parsed_is_reported_and_ends_nothing(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, "a <tool_call>{bad}</tool_call> b", template=PLAIN, parser="qwen3")
    events = chat(harness, tools=(WEATHER,))
    assert content(events) == "a <tool_call>{bad}</tool_call> b"
    assert [event.tool_error for event in events if isinstance(event, Delta) and event.tool_error] == [
        "the tool call is not valid JSON"
    ]
    assert done(events).warnings == (
        "a tool call could not be read and is shown as text: the tool call is not valid JSON",
    )
    assert not any(isinstance(event, ToolCalls) for event in events)


@pytest.mark.parametrize(
    ("parser", "reply", "prompts"),
    [
        ("qwen3-thinking", ("why</think>\n\n", "so"), ("why</think>\n\n",)),
        ("qwen3-thinking", ("why</think>so",), ("why</think>",)),
        ("qwen3-thinking", ("why",), ("why\n</think>\n\n",)),
        ("qwen3-thinking", ("why</think>\n",), ("why</think>\n",)),
        ("qwen3-thinking", ("why</think>\n<tool_call>{bad}</tool_call>",), ("why</think>\n",)),
        ("deepseek3", ("a</think>b",), ("a</think>",)),
        ("gemma4", ("<|channel>thought\nwhy<channel|>so",), ("<|channel>thought\nwhy<channel|>",)),
        ("gemma4", ("so",), ("",)),
        ("cohere", ("why<|END_THINKING|><|START_TEXT|>so",), ("why<|END_THINKING|><|START_TEXT|>",)),
        ("cohere", ("why",), ("why<|END_THINKING|><|START_TEXT|>",)),
        (
            "harmony",
            ("<|channel|>analysis<|message|>why<|end|>", "<|start|>assistant<|channel|>final<|message|>", "so"),
            ("<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>",),
        ),
        (
            "harmony",
            ("<|channel|>analysis<|message|>why",),
            ("<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>",),
        ),
        (
            "harmony",
            ("<|channel|>analysis<|message|>why<|end|>",),
            ("<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>",),
        ),
        (
            "glimmer",
            (" to=self<|message|>why",),
            (" to=self<|message|>why<|eom|><|start|>assistant to=user<|message|>",),
        ),
    ],
)
def test_a_format_binds_the_answer_where_it_begins(
    tmp_path: Path, parser: str, reply: tuple[str, ...], prompts: tuple[str, ...]
) -> None:
    harness = harness_of(tmp_path, *reply, template=PLAIN, parser=parser)
    events = chat(harness, format="json")
    assert content(events) == '{"a": 1}'
    assert thinking(events) == ("" if reply == ("so",) else "a" if parser == "deepseek3" else "why")
    start = "<user> hi <assistant>"
    assert [asked["prompt"] for asked in harness.asks] == [start, *(start + prompt for prompt in prompts)]
    assert [asked["format"] for asked in harness.asks] == ["", "json"]


@pytest.mark.parametrize(
    ("parser", "more"),
    [
        ("harmony", "<|channel|>final<|message|>"),
        ("qwen3-thinking", ""),
        ("qwen3-vl-thinking", "\n</think>\n\n"),
        ("cohere", "<|START_TEXT|>"),
        ("glimmer", " to=user<|message|>"),
        ("qwen3", ""),
    ],
)
def test_without_thoughts_it_is_bound_at_once(tmp_path: Path, parser: str, more: str) -> None:
    harness = harness_of(tmp_path, "never", template=PLAIN, parser=parser)
    assert content(chat(harness, format="json", think=False)) == '{"a": 1}'
    assert [(asked["prompt"], asked["format"]) for asked in harness.asks] == [("<user> hi <assistant>" + more, "json")]


@pytest.mark.parametrize(
    ("parts", "message"),
    [({"renderer": "none"}, 'unknown renderer "none"'), ({"parser": "none"}, 'unknown parser "none"')],
)
def test_unknown_names(tmp_path: Path, parts: dict[str, str], message: str) -> None:
    harness = harness_of(tmp_path, "x", template=PLAIN, **parts)
    with pytest.raises(BadRequest, match=message):
        chat(harness)
    assert asyncio.run(harness.service.show("m")).capabilities == ("completion",)
    with pytest.raises(BadRequest, match=message):
        asyncio.run(collect(harness.service.create(CreateRequest(model="n", from_="m", **parts))))
