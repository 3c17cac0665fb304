"""Fields without effect in nested objects give warnings, in every API; fields that clients are known to send do not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from ollama_nb.errors import BadRequest
from ollama_nb.server import limits
from ollama_nb.server.dialects import gojson
from ollama_nb.server.dialects.anthropic import requests as anthropic
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.images import LARGE, EncodedImage, cut_images
from ollama_nb.server.dialects.llamacpp import requests as llamacpp
from ollama_nb.server.dialects.native import requests as native
from ollama_nb.server.dialects.openai import requests as openai
from ollama_nb.server.dialects.responses import requests as responses

READERS: dict[str, Callable[[Fields], Any]] = {
    "native": native.read_chat,
    "openai": lambda body: openai.read_chat(body).request,
    "responses": lambda body: responses.read_responses(body).chat,
    "anthropic": anthropic.read_message,
    "infill": lambda body: llamacpp.read_infill(body).request,
}
ADDED: dict[str, dict[str, Any]] = {
    "openai": {"messages": [{"role": "user", "content": "x"}]},
    "responses": {"input": "x"},
    "anthropic": {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]},
    "infill": {"input_prefix": "", "input_suffix": ""},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "enum": ["x"], "x-own": 1}}, "$defs": {}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PNG = "data:image/png;base64,aGk="


def warnings(api: str, body: dict[str, Any]) -> tuple[str, ...]:
    return tuple(READERS[api](Fields({"model": "m", **ADDED.get(api, {}), **body}, "Request")).ignored)


@pytest.mark.parametrize(
    ("api", "body", "expected"),
    [
        ("native", {"messages": [{"role": "user", "text": "say what"}]},
         ("messages[0]: the message is empty: it has no content, images or tool calls",
          'messages[0]: ignored field "text", did you mean "content"?')),
        ("native", {"messages": [{"role": "user", "message": "x"}, {"role": "assistant", "contnet": "x"}]},
         ("messages[0]: the message is empty: it has no content, images or tool calls",
          'messages[0]: ignored field "message", did you mean "content"?',
          "messages[1]: the message is empty: it has no content, images or tool calls",
          'messages[1]: ignored field "contnet", did you mean "content"?')),
        ("native", {"messages": [{"role": "user", "content": ""}]},
         ("messages[0]: the message is empty: it has no content, images or tool calls",)),
        ("native", {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "args": {}}}]}]},
         ('messages[0].tool_calls[0].function: ignored field "args", did you mean "arguments"?',)),
        ("native", {"tools": [{"function": {"name": "f", "paramters": {}}, "x": 1}]},
         ('tools[0]: ignored field "x"',
          'tools[0].function: ignored field "paramters", did you mean "parameters"?')),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "colour": 1}]}]},
         ('messages[0].content[0]: ignored field "colour"',)),
        ("openai", {"messages": [{"role": "user", "content": "x", "contents": 1}]},
         ('messages[0]: ignored field "contents", did you mean "content"?',)),
        ("openai", {"tools": [{"type": "function", "function": {"name": "f", "descripton": "x"}}]},
         ('tools[0].function: ignored field "descripton", did you mean "description"?',)),
        ("openai", {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "shcema": 1}}},
         ('response_format.json_schema: ignored field "shcema", did you mean "schema"?',)),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "colour": 1}]}]},
         ('input[0].content[0]: ignored field "colour"',)),
        ("responses", {"tools": [{"type": "function", "name": "f", "paramters": SCHEMA}]},
         ('tools[0]: ignored field "paramters", did you mean "parameters"?',)),
        ("anthropic", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "colour": 1}]}]},
         ('messages[0].content[0]: ignored field "colour"',)),
        ("anthropic", {"messages": [{"role": "user", "contant": "x"}]},
         ("messages[0]: the message is empty: it has no content, images or tool calls",
          'messages[0]: ignored field "contant", did you mean "content"?')),
        ("anthropic", {"tools": [{"name": "f", "input_shema": SCHEMA}]},
         ('tools[0]: ignored field "input_shema", did you mean "input_schema"?',)),
        ("infill", {"input_extra": [{"text": "x", "filenam": "a.py"}]},
         ('input_extra[0]: ignored field "filenam", did you mean "filename"?',)),
    ],
)  # fmt: skip
def test_fields_without_effect(api: str, body: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert warnings(api, body) == expected


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("native", {"messages": [
            {"role": "user", "content": "x", "images": ["aGk="]},
            {"role": "assistant", "content": "", "thinking": "t", "tool_calls": [
                {"id": "c", "type": "function", "function": {"index": 0, "name": "f", "arguments": {"any": 1}}}]},
            {"role": "tool", "content": "", "tool_name": "f", "tool_call_id": "c"}],
            "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}],
            "format": SCHEMA}),
        ("openai", {"messages": [
            {"role": "user", "name": "n", "content": [
                {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]},
            {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None,
             "function_call": None, "tool_calls": [{**CALL, "index": 0}]},
            {"role": "tool", "tool_call_id": "c", "content": ""}],
            "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
            "stream_options": {"include_usage": True, "include_obfuscation": False}, "metadata": {"any": "x"}}),
        ("responses", {"input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "reasoning", "id": "r", "summary": [], "status": "completed", "encrypted_content": "t"},
            {"type": "message", "role": "assistant", "id": "m", "status": "completed", "phase": None,
             "content": [{"type": "output_text", "text": "y", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "id": "f", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "c", "output": "1"}],
            "tools": [{"type": "function", "name": "f", "strict": True, "parameters": SCHEMA, "description": "d"}],
            "reasoning": {"effort": "low", "summary": "auto"}, "text": {"verbosity": "low", "format": {
                "type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}}}),
        ("anthropic", {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}], "messages": [
            {"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                {"type": "text", "text": "x", "citations": None, "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "redacted_thinking", "data": "d"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"any": 1}, "caller": {"type": "direct"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": ""}]}],
            "tools": [{"name": "f", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
                      {"type": "bash_20250124", "name": "bash"}],
            "thinking": {"type": "adaptive", "display": "omitted"}, "metadata": {"user_id": "u"},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}}),
        ("infill", {"input_extra": [{"text": "x", "filename": "a.py"}]}),
    ],
)  # fmt: skip
def test_fields_that_clients_are_known_to_send_give_no_warning(api: str, body: dict[str, Any]) -> None:
    assert warnings(api, body) == ()


@pytest.mark.parametrize(
    ("api", "body", "text"),
    [
        ("native", {"messages": [{}] * 16_385}, "messages may have 16384 entries at most, but has 16385"),
        ("native", {"options": {str(at): 1 for at in range(1025)}}, "options may have 1024 entries at most"),
        ("native", {"tools": [{}] * 2049}, "tools may have 2048 entries at most"),
        ("native", {"format": {"enum": ["x"] * 50_001}}, "format: a schema may hold 50000 values at most"),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 16_385}]},
         "messages.content may have 16384 entries at most"),
        ("openai", {"logit_bias": {str(at): 1 for at in range(16_385)}}, "logit_bias may have 16384 entries at most"),
        ("responses", {"input": [{"role": "user", "content": "x"}] * 16_385}, "input may have 16384 entries at most"),
        ("anthropic", {"messages": [{"role": "user", "content": "x"}] * 16_385}, "messages may have 16384 entries"),
        ("infill", {"input_extra": [{"text": "x"}] * 16_385}, "input_extra may have 16384 entries at most"),
    ],
)  # fmt: skip
def test_counts_are_limited(api: str, body: dict[str, Any], text: str) -> None:
    """S11: the counts of a request are bounded."""
    with pytest.raises(BadRequest, match=text):
        warnings(api, body)


def test_ten_thousand_texts_and_a_million_tokens_are_accepted() -> None:
    assert len(native.read_embed(Fields({"model": "m", "input": ["x"] * 10_000}, "E")).inputs or ()) == 10_000
    tokens = [1] * limits.MAX_NUMBERS
    assert len(native.read_generate(Fields({"context": tokens}, "G")).context or ()) == limits.MAX_NUMBERS
    with pytest.raises(BadRequest, match="context may have 1048576 entries at most, but has 1048577"):
        native.read_generate(Fields({"context": [*tokens, 1]}, "G"))
    with pytest.raises(BadRequest, match="prompt may have 1048576 entries at most"):
        openai.read_completion(Fields({"prompt": [*tokens, 1]}, "C"))


IMAGE = bytes(range(256)) * 400
TEXT = base64.b64encode(IMAGE).decode()


@pytest.mark.parametrize("data", [IMAGE, IMAGE + b"x", IMAGE + b"xy"])
def test_large_images_are_decoded_before_the_body_is_parsed(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    body = {
        "messages": [
            {"content": text, "images": [text, "aGk="], "tool_calls": [{"function": {"arguments": {"data": text}}}]},
            {"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}]},
        ],
        text: 1,
        "prompt": text,
    }
    decoded = gojson.decode(json.dumps(body).encode())
    first, second = decoded["messages"]
    assert first["images"] == [EncodedImage("", data), "aGk="] and decoded["prompt"] == text and decoded[text] == 1
    assert first["tool_calls"][0]["function"]["arguments"] == {"data": text}
    assert second["content"][0]["image_url"]["url"].text() == f"data:image/png;base64,{text}"
    message = Fields(decoded, "R").structs("messages", "M")[0]
    assert message.blobs("images") == (data, b"hi") and message.text("content") == text


@pytest.mark.parametrize(
    "text",
    [
        TEXT[:-4] + "aB==",  # not canonical
        TEXT[: LARGE - 4] + "====" + TEXT,
        TEXT + "\\n",
        "\\" * 2 + TEXT,
        '\\"' + TEXT,
        " " + TEXT,
        TEXT[:-1],
        "data:image/png,base64" + TEXT,
    ],
    ids=lambda text: text[:10] + text[-4:],
)
def test_other_long_texts_stay_in_the_body(text: str) -> None:
    body = f'{{"images":["{text}"]}}'.encode()
    assert cut_images(body) == (body, {})
    assert gojson.decode(body) == json.loads(body)


@pytest.mark.parametrize("filler", ["{", "[", ",", '\\"{', "\\\\"])
def test_text_in_strings_does_not_count(filler: str) -> None:
    text = filler * 1_000_000
    body = f'{{"a":"{text}","b":["{text}",1]}}'.encode()
    assert gojson.decode(body) == json.loads(body)
