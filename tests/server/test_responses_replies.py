"""Replies of the Responses API: the events of a chat to a response and its server-sent events."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.openapi import BY_ID, check_reply, events

from ollama_nb.api.events import Delta, Done, Event, PromptRead, Stats, TokenLogprob, ToolCallDelta, ToolCalls
from ollama_nb.api.messages import ToolCall
from ollama_nb.errors import Busy, ContextOverflow, OllamaError, RunnerCrashed, TemplateError
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.responses import replies
from ollama_nb.server.dialects.responses.replies import ResponseEncoder, ResponseReply, StringReader
from ollama_nb.server.dialects.responses.requests import read_responses

STATS = Stats(prompt_tokens=11, cached_tokens=4, output_tokens=7, reasoning_tokens=3)
DONE = Done("stop", STATS)
CUSTOM = {"type": "custom", "name": "edit"}
SPACE = {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "weather"}]}
TOOLS = [{"type": "function", "name": "weather"}, CUSTOM, SPACE]


def new_reply(*, stream: bool = True, **fields: Any) -> ResponseReply:
    body = {"model": "m", "input": "hi", "stream": stream, "tools": TOOLS, **fields}
    return ResponseReply(read_responses(Fields(body, "ResponsesRequest")))


def streamed(reply: ResponseReply, *found: Event | OllamaError) -> list[dict[str, Any]]:
    """The events of the stream, checked against the description and for their numbers."""
    for event in found:
        if isinstance(event, OllamaError):
            reply.fail(event)
        else:
            reply.add(event)
    reply.conclude()
    body = "".join(reply.frames).encode()
    check_reply(BY_ID["createResponse"], 200, "text/event-stream", body)
    payloads = [json.loads(data) for _, data in events(body)]
    assert [name for name, _ in events(body)] == [payload["type"] for payload in payloads]
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    return payloads


def kinds(payloads: list[dict[str, Any]]) -> list[str]:
    return [payload["type"].removeprefix("response.") for payload in payloads]


def test_thinking_then_text() -> None:
    payloads = streamed(new_reply(), PromptRead(11, 4), Delta(thinking="想"), Delta("天空"), Delta("是蓝色的。"), DONE)
    assert kinds(payloads) == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    response = payloads[-1]["response"]
    thought, message = response["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "想"}]
    assert thought["content"] == [{"type": "reasoning_text", "text": "想"}] and "encrypted_content" not in thought
    assert message["content"][0]["text"] == "天空是蓝色的。"
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert (response["status"], response["error"], response["incomplete_details"]) == ("completed", None, None)
    assert response["completed_at"] >= response["created_at"]
    assert response["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 18,
    }
    assert payloads[0]["response"]["output"] == [] and payloads[0]["response"]["usage"] is None
    places = [payload["output_index"] for payload in payloads if "output_index" in payload]
    assert places == [0] * 6 + [1] * 7


def test_text_around_calls_is_kept_and_every_item_has_its_place() -> None:
    """Ollama drops such text in whole replies and gives it the place of the first call in streams."""
    calls = ToolCalls((ToolCall("weather", {"city": "北京"}, "c1"), ToolCall("mcp.weather", {}, "c2", 1)))
    payloads = streamed(new_reply(), Delta("先查。"), calls, Delta("完"), DONE)
    before, first, second, after = payloads[-1]["response"]["output"]
    assert (before["content"][0]["text"], after["content"][0]["text"]) == ("先查。", "完")
    assert (first["name"], first["arguments"], first["call_id"]) == ("weather", '{"city":"北京"}', "c1")
    assert (second["name"], second["namespace"], second["arguments"]) == ("weather", "mcp", "{}")
    added = [payload for payload in payloads if payload["type"] == "response.output_item.added"]
    assert [payload["output_index"] for payload in added] == [0, 1, 2, 3]
    assert len({payload["item"]["id"] for payload in added}) == 4
    done = next(payload for payload in payloads if payload["type"] == "response.function_call_arguments.done")
    assert (done["name"], done["arguments"]) == ("weather", '{"city":"北京"}')


def test_arguments_are_streamed_as_they_come() -> None:
    payloads = streamed(
        new_reply(),
        ToolCallDelta(0, name="weather", id="c1"),
        ToolCallDelta(0, '{"city": '),
        ToolCallDelta(0, '"北京"}'),
        ToolCalls((ToolCall("weather", {"city": "北京"}, "c1"),)),
        DONE,
    )
    assert kinds(payloads)[2:] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    pieces = [payload["delta"] for payload in payloads if "delta" in payload]
    (call,) = payloads[-1]["response"]["output"]
    assert "".join(pieces) == call["arguments"] == '{"city": "北京"}'


def test_text_that_began_like_a_call_ends_an_incomplete_item() -> None:
    payloads = streamed(
        new_reply(), ToolCallDelta(0, '{"ci', "weather", "c1"), Delta("x", tool_error="not valid"), DONE
    )
    call, message = payloads[-1]["response"]["output"]
    assert (call["status"], message["status"]) == ("incomplete", "completed")
    assert "response.function_call_arguments.done" not in [payload["type"] for payload in payloads]


def test_custom_tools_get_their_input_as_text() -> None:
    call = ToolCall("edit", {"input": "*** 补丁\n"}, "c1")
    arguments = ('{"inp', 'ut": "*** ', "补", "丁\\", 'n"', "}")
    pieces = [ToolCallDelta(0, piece, "edit", "c1") for piece in arguments]
    payloads = streamed(new_reply(), *pieces, ToolCalls((call,)), DONE)
    assert kinds(payloads)[2:-1] == [
        "output_item.added", *["custom_tool_call_input.delta"] * 4, "custom_tool_call_input.done", "output_item.done",
    ]  # fmt: skip
    assert [payload["delta"] for payload in payloads if "delta" in payload] == ["*** ", "补", "丁", "\n"]
    (item,) = payloads[-1]["response"]["output"]
    assert (item["type"], item["input"], item["call_id"], item["name"]) == (
        "custom_tool_call", "*** 补丁\n", "c1", "edit",
    )  # fmt: skip


@pytest.mark.parametrize("as_ascii", [False, True])
@given(text=st.text(), cuts=st.lists(st.integers(0, 200)))
@settings(max_examples=50)
def test_every_split_of_a_json_string_gives_its_text(as_ascii: bool, text: str, cuts: list[int]) -> None:
    written = json.dumps({"input": text}, ensure_ascii=as_ascii)
    ends = sorted({0, *(min(cut, len(written)) for cut in cuts), len(written)})
    reader = StringReader("input")
    assert "".join(reader.read(written[start:end]) for start, end in pairwise(ends)) == text


def test_a_string_that_is_not_a_text_ends_early() -> None:
    for written, text in (
        ('{"input": "a\\ud83dx"}', "a"),
        ('{"input": "a\\q"}', "a"),
        ('{"input": 5}', ""),
        ('{"output": "a"}', ""),
    ):
        assert StringReader("input").read(written) == text


def test_logprobs() -> None:
    sky = "天".encode()
    token = TokenLogprob(sky[:2], -0.5)
    rest = TokenLogprob(sky[2:], float("-inf"), ((b"x", -1.5),))
    found = (Delta(logprobs=(token,)), Delta("天", logprobs=(rest,)), Delta("空", logprobs=(token,)), DONE)
    payloads = streamed(new_reply(include=["message.output_text.logprobs"]), *found)
    first, second = (payload["logprobs"] for payload in payloads if payload["type"].endswith("output_text.delta"))
    assert [entry["bytes"] for entry in first] == [list(sky[:2]), list(sky[2:])] and len(second) == 1
    assert first[1] == {
        "token": "\ufffd", "bytes": [sky[2]], "logprob": -9999.0,
        "top_logprobs": [{"token": "x", "bytes": [120], "logprob": -1.5}],
    }  # fmt: skip
    (message,) = payloads[-1]["response"]["output"]
    assert message["content"][0]["logprobs"] == first + second
    without = streamed(new_reply(), *found)[-1]["response"]["output"]
    assert without[0]["content"][0]["logprobs"] == []


def test_the_length_limit_makes_a_response_incomplete() -> None:
    payloads = streamed(new_reply(), Delta("天"), Done("length", STATS))
    response = payloads[-1]["response"]
    assert payloads[-1]["type"] == "response.incomplete"
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete" and response["completed_at"] is None


def test_a_cancelled_request() -> None:
    payloads = streamed(new_reply(), Delta("天"), Done("cancelled", STATS))
    assert (payloads[-1]["type"], payloads[-1]["response"]["status"]) == ("response.incomplete", "cancelled")


@pytest.mark.parametrize(
    ("failure", "code", "event_code"),
    [
        (RunnerCrashed("gone"), "server_error", "runner_crashed"),
        (Busy("full"), "rate_limit_exceeded", "busy"),
        (ContextOverflow("long"), "context_length_exceeded", "context_length_exceeded"),
        (TemplateError("bad"), "invalid_prompt", "template_error"),
    ],
)
def test_an_error_in_a_stream(failure: OllamaError, code: str, event_code: str) -> None:
    payloads = streamed(new_reply(), Delta("天"), failure)
    assert kinds(payloads)[-2:] == ["error", "failed"]
    assert {name: payloads[-2][name] for name in ("code", "message")} == {
        "code": event_code,
        "message": failure.message,
    }
    response = payloads[-1]["response"]
    assert response["status"] == "failed" and response["output"][0]["status"] == "incomplete"
    assert response["error"] == {"code": code, "message": failure.message, "reason": failure.code}


def test_a_context_overflow_has_the_code_that_clients_know() -> None:
    body = json.loads(replies.error(ContextOverflow("long", field="input")))
    assert (body["error"]["code"], body["error"]["param"]) == ("context_length_exceeded", "input")
    assert body["error"]["type"] == "invalid_request_error"


def test_encrypted_content_only_where_it_is_included() -> None:
    payloads = streamed(new_reply(include=["reasoning.encrypted_content"]), Delta(thinking="想"), Delta("a"), DONE)
    assert payloads[-1]["response"]["output"][0]["encrypted_content"] == "想"


def test_a_background_response_is_queued_first() -> None:
    payloads = streamed(new_reply(background=True), PromptRead(3), Delta("a"), DONE)
    assert kinds(payloads)[:3] == ["created", "queued", "in_progress"]
    assert [payload["response"]["status"] for payload in payloads[:3]] == ["queued", "queued", "in_progress"]


def test_a_reply_at_once_is_the_response_of_the_stream() -> None:
    found = (Delta(thinking="想"), Delta("天"), ToolCalls((ToolCall("weather", {}, "c1"),)), DONE)
    reply = new_reply(stream=False)
    for event in found:
        reply.add(event)
    assert reply.frames == []
    body = ResponseEncoder(reply).whole(found)
    (whole,) = check_reply(BY_ID["createResponse"], 200, "application/json", body)
    other = streamed(new_reply(), *found)[-1]["response"]
    for response in (whole, other):
        response.pop("id")
        for item in response["output"]:
            item.pop("id")
    assert whole == other


def test_warnings_and_the_run_record() -> None:
    reply = new_reply()
    reply.not_stored(OllamaError("no space"))
    run = {"model": "m", "model_digest": "", "template_hash": "", "prompt_hash": "", "options": {}, "seed": 7,
           "engine_build": ""}  # fmt: skip
    response = streamed(reply, Done("stop", STATS, warnings=("w",), run=run))[-1]["response"]
    assert response["run"] == run
    assert response["warnings"] == ["the response was not stored: no space", "w"] and response["store"] is False
