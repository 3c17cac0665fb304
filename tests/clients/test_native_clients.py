"""Clients of Ollama's own API other than its official one: LangChain, LiteLLM, LlamaIndex, llm."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import litellm
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama as LlamaIndexOllama
from pydantic import BaseModel
from support.clients import FRANCE, ONCE, PARIS, WEATHER_QUESTION, WEATHER_TOOL, Host

pytestmark = pytest.mark.model


class Capital(BaseModel):
    capital: str


def get_weather(city: str) -> str:
    """Get the current weather in a city"""
    return json.dumps({"temperature": 18, "condition": "sunny", "city": city}).replace(f', "city": "{city}"', "")


def langchain(host: Host, **fields: Any) -> ChatOllama:
    return ChatOllama(
        model="sprout",
        base_url=host.url,
        client_kwargs={"headers": host.headers, "trust_env": False},
        **{"temperature": 0, "reasoning": False, **fields},
    )


def test_langchain_answers_whole_and_streamed(host: Host) -> None:
    model = langchain(host)
    reply = model.invoke(FRANCE)
    assert reply.content == PARIS
    assert reply.usage_metadata is not None and reply.usage_metadata["output_tokens"] > 3
    pieces = [chunk.content for chunk in model.stream(FRANCE)]
    assert "".join(map(str, pieces)) == PARIS and len(pieces) > 3
    assert asyncio.run(langchain(host).ainvoke("中国的首都是哪里？")).content == "中国的首都是北京。"


def test_langchain_separates_thinking(host: Host) -> None:
    reply = langchain(host, reasoning=True).invoke(FRANCE)
    assert reply.content == PARIS
    assert reply.additional_kwargs["reasoning_content"].startswith("The user asks for the capital of France.")


def test_langchain_calls_tools(host: Host) -> None:
    tool = StructuredTool.from_function(get_weather)
    model = langchain(host).bind_tools([tool])
    question = HumanMessage(WEATHER_QUESTION)
    called = model.invoke([question])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = ToolMessage(tool.invoke(call["args"]), tool_call_id=call["id"])
    assert model.invoke([question, called, result]).content == "The weather in Paris is sunny, with 18 degrees."


def test_langchain_returns_an_object(host: Host) -> None:
    model = langchain(host).with_structured_output(Capital)
    assert model.invoke(f"{FRANCE} Answer in JSON.") == Capital(capital="Paris")


def test_langchain_embeds(host: Host) -> None:
    embedder = OllamaEmbeddings(
        model="stories", base_url=host.url, client_kwargs={"headers": host.headers, "trust_env": False}
    )
    first, second = embedder.embed_documents([ONCE, "你好"])
    assert len(first) == len(second) == 64
    assert embedder.embed_query(ONCE) == pytest.approx(first, abs=1e-5)


def lite(host: Host, model: str = "ollama_chat/sprout", **fields: Any) -> Any:
    question = [{"role": "user", "content": FRANCE}]
    return litellm.completion(
        model, **{"messages": question, "api_base": host.url, "api_key": host.key, "temperature": 0, **fields}
    )


def test_litellm_answers_whole_and_streamed(host: Host) -> None:
    reply = lite(host, reasoning_effort="none")
    assert reply.choices[0].message.content == PARIS
    assert reply.choices[0].finish_reason == "stop"
    pieces = [chunk.choices[0].delta.content or "" for chunk in lite(host, stream=True)]
    assert PARIS in "".join(pieces)


def test_litellm_calls_tools(host: Host) -> None:
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    reply = lite(host, messages=messages, tools=[WEATHER_TOOL])
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})


def test_llama_index_answers_and_calls_tools(host: Host) -> None:
    from ollama import Client

    client = Client(host=host.url, headers=host.headers, trust_env=False, timeout=300)
    model = LlamaIndexOllama("sprout", client=client, temperature=0, thinking=False, request_timeout=300)
    assert model.chat([ChatMessage(role="user", content=FRANCE)]).message.content == PARIS
    streamed = [piece.delta for piece in model.stream_chat([ChatMessage(role="user", content=FRANCE)])]
    assert "".join(filter(None, streamed)) == PARIS
    called = model.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg=WEATHER_QUESTION)
    (call,) = model.get_tool_calls_from_response(called)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})
    client._client.close()


def run_llm(host: Host, home: Path, *args: str) -> str:
    """Run the ``llm`` program in the environment of a notebook's terminal."""
    env = {**os.environ, "LLM_USER_PATH": str(home), "OLLAMA_HOST": host.url, "OLLAMA_API_KEY": host.key}
    done = subprocess.run([sys.executable, "-m", "llm", *args], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llm_ollama_lists_answers_and_embeds(host: Host, tmp_path: Path) -> None:
    assert "Ollama: smollm2:latest" in run_llm(host, tmp_path, "models")
    answer = run_llm(host, tmp_path, "-m", "smollm2", "-o", "temperature", "0", "What is the capital of France?")
    assert "Paris" in answer
    vector = json.loads(run_llm(host, tmp_path, "embed", "-m", "stories:latest", "-c", "你好"))
    assert len(vector) == 64


def test_llm_ollama_returns_an_object(host: Host, tmp_path: Path) -> None:
    schema = json.dumps({"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]})
    text = run_llm(host, tmp_path, "-m", "sprout", "-o", "temperature", "0", "--schema", schema, FRANCE)
    assert json.loads(text) == {"capital": "Paris"}
