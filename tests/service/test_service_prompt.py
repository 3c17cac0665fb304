"""The order of messages, what may be dropped, and the search for the longest prompt that fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.models import Layer, Manifest, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.requests import GenerateRequest
from ollama_nb.service.prompt import chat_messages, dropped_count, generate_messages, possible_drops

MODEL = Model(
    ModelName("m"), "d", Manifest(Layer("", Digest("0" * 64), 0), ()), ModelConfig(), 0.0, 0,
    system="be kind", messages=(Message("user", "q0"), Message("assistant", "a0")),
)  # fmt: skip
ASK, RULE = Message("user", "q"), Message("system", "be quick")


def test_stored_messages_come_first_and_the_first_message_decides_about_system() -> None:
    assert [m.content for m in chat_messages(MODEL, [ASK])] == ["be kind", "q0", "a0", "q"]
    assert [m.content for m in chat_messages(MODEL, [RULE, ASK])] == ["q0", "a0", "be quick", "q"]
    assert [m.content for m in chat_messages(MODEL, [ASK, RULE])] == ["be kind", "q0", "a0", "q", "be quick"]


def test_generate_builds_a_conversation() -> None:
    def contents(**fields: Any) -> list[str]:
        return [m.content for m in generate_messages(MODEL, GenerateRequest(model="m", prompt="p", **fields))]

    assert contents() == ["be kind", "q0", "a0", "p"]
    assert contents(system="hush") == ["hush", "q0", "a0", "p"]
    assert contents(context=()) == ["be kind", "p"]


def test_old_thinking_is_removed_for_some_families() -> None:
    talk = [ASK, Message("assistant", "<think>a\nb</think>\n\nyes"), ASK, Message("assistant", "<think>c</think>no")]
    old = replace(MODEL, config=ModelConfig(model_family="qwen3"), messages=(), system="")
    assert [m.content for m in chat_messages(old, talk)] == ["q", "yes", "q", "<think>c</think>no"]
    assert "<think>a" in chat_messages(MODEL, talk)[-3].content


def test_a_tool_result_is_never_kept_without_its_call() -> None:
    call = Message("assistant", tool_calls=(ToolCall("f", {}),))
    result = Message("tool", "42")
    assert possible_drops([ASK, call, result, ASK, ASK]) == [1, 3, 4]
    assert possible_drops([ASK, call, result, result]) == [1]
    assert possible_drops([ASK]) == []
    assert dropped_count([RULE, ASK, RULE, ASK], 3) == 1
