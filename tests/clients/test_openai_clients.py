"""Clients of OpenAI's API: its own package, LangChain, LiteLLM, Instructor, Pydantic AI, LlamaIndex and Jupyter AI."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import instructor
import litellm
import openai
import pytest
from IPython.core.interactiveshell import InteractiveShell
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from support.clients import CHINA, CITY, FRANCE, ONCE, PARIS, WEATHER, WEATHER_QUESTION, WEATHER_TOOL, Host
from support.scripted_model import PLAIN

pytestmark = pytest.mark.model
SUNNY = "The weather in Paris is sunny, with 18 degrees."
RESULT = '{"temperature": 18, "condition": "sunny"}'


class Capital(BaseModel):
    capital: str


@pytest.fixture
def client(host: Host) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=host.openai, api_key=host.key, max_retries=0) as found:
        yield found


def ask(client: openai.OpenAI, question: Any, **fields: Any) -> Any:
    """Without thinking, so that a tool's result is answered at once."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    defaults = {"model": "sprout", "messages": messages, "temperature": 0, "reasoning_effort": "none"}
    return client.chat.completions.create(**{**defaults, **fields})


# openai


def test_chat_answers(client: openai.OpenAI) -> None:
    reply = ask(client, FRANCE)
    assert reply.choices[0].message.content == PARIS
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert ask(client, CHINA).choices[0].message.content == "中国的首都是北京。"


def test_a_wrong_key_and_a_missing_model(host: Host, client: openai.OpenAI) -> None:
    with (
        openai.OpenAI(base_url=host.openai, api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "hi", model="missing")
    assert caught.value.code == "model_not_found"


def test_chat_streams_with_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, FRANCE, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == PARIS and len(pieces) > 3
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 3


def test_chat_separates_thinking(client: openai.OpenAI) -> None:
    message = ask(client, FRANCE, reasoning_effort="medium").choices[0].message
    assert message.content == PARIS
    assert message.reasoning.startswith("The user asks for the capital of France.")
    assert message.reasoning_content == message.reasoning


def test_chat_makes_several_choices(client: openai.OpenAI) -> None:
    reply = ask(client, FRANCE, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {PARIS}


@pytest.mark.parametrize("stream", [False, True])
def test_chat_calls_tools_and_reads_results(client: openai.OpenAI, stream: bool) -> None:
    question = {"role": "user", "content": WEATHER_QUESTION}
    if stream:
        with client.chat.completions.stream(
            model="sprout", messages=[question], tools=[WEATHER_TOOL], temperature=0, reasoning_effort="none"
        ) as events:
            for _ in events:
                pass
            choice = events.get_final_completion().choices[0]
    else:
        choice = ask(client, [question], tools=[WEATHER_TOOL]).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    known = {"name": call.function.name, "arguments": call.function.arguments}
    asked = {"role": "assistant", "content": "", "tool_calls": [{"id": call.id, "type": "function", "function": known}]}
    talk = [question, asked, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    assert ask(client, talk, tools=[WEATHER_TOOL]).choices[0].message.content == SUNNY


def test_chat_forces_a_tool(client: openai.OpenAI) -> None:
    choice = ask(client, "Hello", tools=[WEATHER_TOOL], tool_choice="required").choices[0]
    assert choice.message.tool_calls[0].function.name == "get_weather"


def test_chat_parses_into_a_class(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="sprout",
        messages=[{"role": "user", "content": f"{FRANCE} Answer in JSON."}],
        response_format=Capital,
        temperature=0,
        reasoning_effort="none",
    )
    assert reply.choices[0].message.parsed == Capital(capital="Paris")


def test_completions_continue_a_text(client: openai.OpenAI, reference: dict[str, Any]) -> None:
    expected = reference["stories260K"]["greedy"][0]
    reply = client.completions.create(model="stories", prompt=ONCE, temperature=0, max_tokens=30, logprobs=1)
    (choice,) = reply.choices
    assert expected["prompt"] == ONCE
    assert expected["text"].startswith(choice.text) and len(choice.text) > 40
    assert choice.logprobs is not None and "".join(choice.logprobs.tokens or ()) == choice.text
    ids = client.completions.create(model="stories", prompt=expected["prompt_tokens"], temperature=0, max_tokens=30)
    assert ids.choices[0].text == choice.text
    two = client.completions.create(model="stories", prompt=[ONCE, ONCE], temperature=0, max_tokens=30, echo=True)
    assert [found.text for found in two.choices] == [ONCE + choice.text] * 2


def test_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="stories", input=[ONCE, "你好"])  # base64 by default
    plain = client.embeddings.create(model="stories", input=ONCE, encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert [entry.index for entry in packed.data] == [0, 1]
    assert plain.usage.prompt_tokens > 0


def test_models(client: openai.OpenAI) -> None:
    assert {"sprout:latest", "stories:latest", "smollm2:latest"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("sprout").id == "sprout"


def test_responses_continue_a_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model="sprout", input="My name is Ada.", temperature=0, reasoning={"effort": "none"}
    )
    second = client.responses.create(
        model="sprout", input=FRANCE, temperature=0, reasoning={"effort": "none"}, previous_response_id=first.id
    )
    assert second.output_text == PARIS
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(second.id).output_text == PARIS


def test_responses_stream_and_call_tools(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER, "parameters": CITY, "strict": False}
    fields: dict[str, Any] = {"model": "sprout", "temperature": 0, "reasoning": {"effort": "none"}}
    with client.responses.stream(input=FRANCE, **fields) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == PARIS and len(pieces) > 3
    called = client.responses.create(input=WEATHER_QUESTION, tools=[tool], **fields)
    (call,) = called.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    answered = client.responses.create(input=[result], tools=[tool], previous_response_id=called.id, **fields)
    assert answered.output_text == SUNNY


def test_responses_parse_into_a_class(client: openai.OpenAI) -> None:
    reply = client.responses.parse(
        model="sprout", input=f"{FRANCE} Answer in JSON.", text_format=Capital, reasoning={"effort": "none"}
    )
    assert reply.output_parsed == Capital(capital="Paris")


def test_smollm2_answers(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": FRANCE}], temperature=0, max_tokens=40
    )
    assert "Paris" in (reply.choices[0].message.content or "")


# Frameworks


def langchain(host: Host, **fields: Any) -> ChatOpenAI:
    defaults = {"model": "sprout", "temperature": 0, "reasoning_effort": "none"}
    return ChatOpenAI(base_url=host.openai, api_key=host.key, **{**defaults, **fields})


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_answers_streams_and_calls_tools(host: Host, responses: bool) -> None:
    def get_weather(city: str) -> str:
        """Get the current weather in a city"""
        return RESULT

    model = langchain(host, use_responses_api=responses)
    assert model.invoke(FRANCE).text == PARIS
    pieces = [chunk.text for chunk in model.stream(FRANCE)]
    assert "".join(pieces) == PARIS and len(pieces) > 3
    assert asyncio.run(langchain(host).ainvoke(CHINA)).text == "中国的首都是北京。"
    tool = StructuredTool.from_function(get_weather)
    question = HumanMessage(WEATHER_QUESTION)
    called = model.bind_tools([tool]).invoke([question])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = ToolMessage(tool.invoke(call["args"]), tool_call_id=call["id"])
    assert model.bind_tools([tool]).invoke([question, called, result]).text == SUNNY


def test_langchain_returns_an_object_and_embeds(host: Host) -> None:
    model = langchain(host).with_structured_output(Capital)
    assert model.invoke(f"{FRANCE} Answer in JSON.") == Capital(capital="Paris")
    embedder = OpenAIEmbeddings(
        model="stories", base_url=host.openai, api_key=host.key, check_embedding_ctx_length=False
    )
    assert len(embedder.embed_query("你好")) == 64


def test_litellm(host: Host) -> None:
    fields: dict[str, Any] = {"api_base": host.openai, "api_key": host.key, "temperature": 0}
    question = [{"role": "user", "content": FRANCE}]
    reply: Any = litellm.completion("openai/sprout", question, reasoning_effort="none", **fields)
    assert reply.choices[0].message.content == PARIS
    stream: Any = litellm.completion("openai/sprout", question, stream=True, **fields)
    assert PARIS in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    weather = [{"role": "user", "content": WEATHER_QUESTION}]
    called: Any = litellm.completion("openai/sprout", weather, tools=[WEATHER_TOOL], **fields)
    (call,) = called.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_instructor(client: openai.OpenAI, mode: instructor.Mode) -> None:
    patched = instructor.from_openai(client, mode=mode)
    found = patched.chat.completions.create(
        model="sprout",
        response_model=Capital,
        messages=[{"role": "user", "content": f"{FRANCE} Answer in JSON."}],
        temperature=0,
        max_retries=0,
        extra_body={"reasoning_effort": "none"},
    )
    assert found.capital == "Paris"


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai_runs_tools(host: Host, kind: Any) -> None:
    asked: list[str] = []

    async def run() -> str:
        async with openai.AsyncOpenAI(base_url=host.openai, api_key=host.key) as client:
            settings: Any = {"temperature": 0, "openai_reasoning_effort": "none"}
            agent = Agent(kind("sprout", provider=OpenAIProvider(openai_client=client)), model_settings=settings)

            @agent.tool_plain
            def get_weather(city: str) -> dict[str, Any]:
                """Get the current weather in a city"""
                asked.append(city)
                return {"temperature": 18, "condition": "sunny"}

            return (await agent.run(WEATHER_QUESTION)).output

    assert (asyncio.run(run()), asked) == (SUNNY, ["Paris"])


def test_llama_index(host: Host) -> None:
    model = OpenAILike(
        model="sprout",
        api_base=host.openai,
        api_key=host.key,
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
        additional_kwargs={"reasoning_effort": "none"},
    )
    question = [ChatMessage(role="user", content=FRANCE)]
    assert model.chat(question).message.content == PARIS
    assert "".join(filter(None, (piece.delta for piece in model.stream_chat(question)))) == PARIS


def test_jupyter_ai_magics(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its generic provider, beside our magics, which set the address and the key."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", host.url)
    monkeypatch.setenv("OLLAMA_API_KEY", host.key)
    shell = InteractiveShell.instance()
    try:
        for line in (
            "%load_ext ollama_nb",
            "%ollama env --openai",
            "%load_ext jupyter_ai_magic_commands",
            "%ai alias sky openai/scripted --api-key-name OPENAI_API_KEY",
        ):
            shell.run_cell(line).raise_error()
        done = shell.run_cell("%%ai sky -f text\nWhy is the sky blue?")
        assert str(done.result) == PLAIN
        shell.run_cell("%ollama env --undo").raise_error()
        assert "OPENAI_API_KEY" not in os.environ
    finally:
        atexit.unregister(shell.atexit_operations)
        shell.atexit_operations()
        InteractiveShell.clear_instance()
