"""Anthropic's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from support.clients import CHINA, CITY, FRANCE, PARIS, WEATHER, WEATHER_QUESTION, Host

pytestmark = pytest.mark.model
TOOL: Any = {**WEATHER, "input_schema": CITY}


@pytest.fixture
def client(host: Host) -> Iterator[anthropic.Anthropic]:
    """Sends the key as ``x-api-key``."""
    with anthropic.Anthropic(base_url=host.url, api_key=host.key, max_retries=0) as found:
        yield found


def ask(client: anthropic.Anthropic, question: Any, **fields: Any) -> anthropic.types.Message:
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    defaults = {"model": "sprout", "max_tokens": 100, "messages": messages, "extra_body": {"temperature": 0}}
    return client.messages.create(**{**defaults, **fields})


def test_answers(client: anthropic.Anthropic) -> None:
    reply = ask(client, FRANCE)
    (block,) = reply.content
    assert block.type == "text" and block.text == PARIS
    assert reply.stop_reason == "end_turn"
    assert reply.usage.output_tokens > 3
    assert ask(client, CHINA).content[0].text == "中国的首都是北京。"


def test_a_key_as_bearer_token(host: Host) -> None:
    with anthropic.Anthropic(base_url=host.url, auth_token=host.key, api_key=None, max_retries=0) as client:
        assert ask(client, FRANCE).content[0].text == PARIS
    with (
        anthropic.Anthropic(base_url=host.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        ask(client, FRANCE)


def test_streams(client: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {"model": "sprout", "max_tokens": 100, "extra_body": {"temperature": 0}}
    with client.messages.stream(messages=[{"role": "user", "content": FRANCE}], **fields) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == PARIS and len(pieces) > 3
    assert final.stop_reason == "end_turn"


def test_thinks(client: anthropic.Anthropic) -> None:
    reply = ask(client, FRANCE, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})
    thinking, text = reply.content
    assert thinking.type == "thinking" and thinking.thinking.startswith("The user asks for the capital of France.")
    assert text.type == "text" and text.text == PARIS


def test_calls_tools_and_reads_results(client: anthropic.Anthropic) -> None:
    called = ask(client, WEATHER_QUESTION, tools=[TOOL])
    (call,) = called.content
    assert called.stop_reason == "tool_use"
    assert call.type == "tool_use" and (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"temperature": 18, "condition": "sunny"}'}
    talk = [
        {"role": "user", "content": WEATHER_QUESTION},
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result]},
    ]
    assert ask(client, talk, tools=[TOOL]).content[0].text == "The weather in Paris is sunny, with 18 degrees."


def test_forces_a_tool(client: anthropic.Anthropic) -> None:
    reply = ask(client, "Hello", tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"})
    assert reply.stop_reason == "tool_use"
    assert {block.name for block in reply.content if block.type == "tool_use"} == {"get_weather"}


def test_counts_tokens_and_lists_models(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="sprout", messages=[{"role": "user", "content": FRANCE}])
    usage = ask(client, FRANCE).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert {"sprout:latest", "stories:latest", "smollm2:latest"} <= {model.id for model in client.models.list()}


def test_errors_have_their_class(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not found"):
        ask(client, "hi", model="missing")


def test_smollm2_answers(client: anthropic.Anthropic) -> None:
    assert "Paris" in ask(client, FRANCE, model="smollm2").content[0].text
