"""Replies of Anthropic's API: messages, streams of events, errors and models; and the routes on a real socket."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.service_harness import ServiceHarness, serve_harness
from test_handler import _request, serve, until

from ollama_nb.api.events import Delta, Done, Event, PromptRead, Stats, ToolCallDelta, ToolCalls
from ollama_nb.api.messages import ToolCall
from ollama_nb.errors import BadRequest, Busy, Forbidden, ModelNotFound, OllamaError, RunnerCrashed
from ollama_nb.server import handler
from ollama_nb.server.dialects.anthropic import replies
from ollama_nb.server.dialects.anthropic.replies import SIGNATURE, MessageReply

STATS = Stats(prompt_tokens=30, cached_tokens=20, output_tokens=7, reasoning_tokens=3)
USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 20,
    "output_tokens": 7,
    "output_tokens_details": {"thinking_tokens": 3},
}
CALL = ToolCall("get_weather", {"city": "北京"}, "call_1", 0)
REQUEST = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "你好"}]}

Frames = list[tuple[str, dict[str, Any]]]


def frames(text: bytes | str) -> Frames:
    """The events of a stream: name and data. Comments are left out."""
    found = []
    for block in (text.decode() if isinstance(text, bytes) else text).split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


def stream(*events: Event, stops: tuple[str, ...] = ()) -> Frames:
    reply = MessageReply("m", "r", stops)
    return frames(reply.start() + b"".join(map(reply.chunk, events)) + reply.end())


def blocks(found: Frames) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each content block and its deltas; checks that blocks begin and end one after the other."""
    result: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    opened = False
    for name, data in found:
        if name.startswith("content_block"):
            assert opened == (name != "content_block_start")
            opened = name != "content_block_stop"
            if name == "content_block_start":
                result.append((data["content_block"], []))
            elif name == "content_block_delta":
                result[-1][1].append(data["delta"])
            assert data["index"] == len(result) - 1
    assert not opened
    return result


def test_a_stream_of_thinking_text_and_a_call() -> None:
    found = stream(
        PromptRead(30, 20), Delta(thinking="h"), Delta(thinking="m"), Delta("天"), Delta("气"), ToolCalls((CALL,)),
        Done("stop", STATS, warnings=("w",)),
    )  # fmt: skip
    names = [name for name, _ in itertools.groupby(name for name, _ in found)]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert names == ["message_start", *block * 3, "message_delta", "message_stop"]
    message = found[0][1]["message"]
    assert message.pop("id").startswith("msg_") and message == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 20,
                  "output_tokens": 0},
    }  # fmt: skip
    assert blocks(found) == [
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": "h"},
                {"type": "thinking_delta", "thinking": "m"},
                {"type": "signature_delta", "signature": SIGNATURE},
            ],
        ),
        (
            {"type": "text", "text": ""},
            [{"type": "text_delta", "text": "天"}, {"type": "text_delta", "text": "气"}],
        ),
        (
            {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {}},
            [{"type": "input_json_delta", "partial_json": '{"city":"北京"}'}],
        ),
    ]
    assert found[-2][1] == {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": USAGE,
        "warnings": ["w"],
    }


def test_arguments_are_streamed_while_they_are_generated() -> None:
    second = ToolCall("now", {}, "call_2", 1)
    found = stream(
        ToolCallDelta(0, "", "get_weather", "call_1"), ToolCallDelta(0, '{"city":'), ToolCallDelta(0, '"北京"}'),
        ToolCalls((CALL,)), ToolCallDelta(1, "{", "now", "call_2"), ToolCallDelta(1, "}"), ToolCalls((second,)),
        Done("stop", STATS),
    )  # fmt: skip
    assert [
        (block["id"], block["name"], "".join(piece["partial_json"] for piece in deltas))
        for block, deltas in blocks(found)
    ] == [("call_1", "get_weather", '{"city":"北京"}'), ("call_2", "now", "{}")]
    assert found[-2][1]["delta"]["stop_reason"] == "tool_use"


def test_text_that_turns_out_not_to_be_a_call_is_text() -> None:
    broken = Delta('{"city":', tool_error="the tool call is not valid JSON")
    found = stream(ToolCallDelta(0, '{"city":', "get_weather", "call_1"), broken, Done("stop", STATS))
    assert [block["type"] for block, _ in blocks(found)] == ["tool_use", "text"]
    assert found[-2][1]["delta"]["stop_reason"] == "end_turn"


def test_a_stream_that_begins_without_the_number_of_tokens() -> None:
    found = stream(Delta("a"), Done("stop", STATS))
    assert found[0][1]["message"]["usage"]["input_tokens"] == 0 and found[-2][1]["usage"] == USAGE


def test_an_empty_reply() -> None:
    found = stream(Done("length", STATS))
    assert [name for name, _ in found] == ["message_start", "message_delta", "message_stop"]
    assert found[0][1]["message"]["usage"]["input_tokens"] == 10
    whole = json.loads(MessageReply("m", "r").whole([Done("length", STATS)]))
    assert (whole["content"], whole["stop_reason"]) == ([], "max_tokens")


def test_a_whole_message() -> None:
    events = [PromptRead(30, 20), Delta(thinking="hm"), Delta("天"), Delta("气"), ToolCallDelta(0, "{", "f", "c"),
              ToolCalls((CALL,)), Done("stop", STATS, warnings=("w",))]  # fmt: skip
    whole = json.loads(MessageReply("模型", "r").whole(events))
    assert whole.pop("id").startswith("msg_") and whole == {
        "type": "message",
        "role": "assistant",
        "model": "模型",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
            {"type": "text", "text": "天气"},
            {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "北京"}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": USAGE,
        "warnings": ["w"],
    }


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (Done("stop", STATS), ("end_turn", None)),
        (Done("length", STATS), ("max_tokens", None)),
        (Done("stop", STATS, stop_sequence="终"), ("stop_sequence", "终")),
        (Done("stop", STATS, stop_sequence="<|im_end|>"), ("end_turn", None)),  # a stop string of the model
    ],
)
def test_stop_reasons(done: Done, expected: tuple[str, str | None]) -> None:
    whole = json.loads(MessageReply("m", "r", ("终",)).whole([Delta("a"), done]))
    assert (whole["stop_reason"], whole["stop_sequence"]) == expected
    delta = stream(Delta("a"), done, stops=("终",))[-2][1]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == expected


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("no"), "invalid_request_error"),
        (Forbidden("no"), "permission_error"),
        (ModelNotFound("no"), "not_found_error"),
        (Busy("no"), "overloaded_error"),
        (RunnerCrashed("no"), "api_error"),
    ],
)
def test_errors(error: OllamaError, kind: str) -> None:
    expected = {
        "type": "error",
        "error": {"type": kind, "message": "no", "code": error.code},
        "request_id": "r",
    }
    assert json.loads(replies.error(error, "r")) == expected
    assert frames(MessageReply("m", "r").fail(error)) == [("error", expected)]


@in_loop
async def test_the_route(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [PromptRead(30, 20), Delta("好"), Done("stop", STATS)]
        whole = await h.client.post("/v1/messages", json=REQUEST, headers={"X-Request-Id": "r1"})
        assert whole.status_code == 200 and whole.headers["content-type"] == "application/json"
        assert whole.headers["request-id"] == whole.headers["x-request-id"] == "r1"
        assert whole.json()["content"] == [{"type": "text", "text": "好"}]
        streamed = await h.client.post("/v1/messages", json={**REQUEST, "stream": True})
        assert streamed.headers["content-type"] == "text/event-stream"
        assert [name for name, _ in frames(streamed.text)][-1] == "message_stop"
        request = h.service.asked[-1]
        assert (request.detailed, request.request_id) == (True, streamed.headers["request-id"])


@in_loop
async def test_errors_before_and_within_a_stream(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for body, status, kind in (
            (b"", 400, "invalid_request_error"),
            (b"{", 400, "invalid_request_error"),
            (b"[]", 400, "invalid_request_error"),
            (b'{"model":"m"}', 400, "invalid_request_error"),
        ):
            reply = await h.client.post("/v1/messages", content=body)
            assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)
            assert reply.json()["request_id"] == reply.headers["request-id"]
        h.service.script = [ModelNotFound("model 'm' not found")]
        missing = await h.client.post("/v1/messages", json={**REQUEST, "stream": True})
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
        h.service.script = [Delta("a"), RunnerCrashed("gone")]
        broken = await h.client.post("/v1/messages", json={**REQUEST, "stream": True})
        name, data = frames(broken.text)[-1]
        assert (broken.status_code, name, data["error"]["code"]) == (200, "error", "runner_crashed")
        assert data["request_id"] == broken.headers["request-id"]


@in_loop
async def test_a_cancelled_message_is_an_error(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), Done("cancelled", STATS)]
        whole = await h.client.post("/v1/messages", json=REQUEST)
        assert (whole.status_code, whole.json()["error"]["code"]) == (499, "cancelled")
        streamed = await h.client.post("/v1/messages", json={**REQUEST, "stream": True})
        name, data = frames(streamed.text)[-1]
        assert (streamed.status_code, name, data["error"]["code"]) == (200, "error", "cancelled")


@in_loop
async def test_strict_requests_refuse_what_would_be_ignored(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Done("stop", STATS)]
        await h.client.post("/v1/messages", json={**REQUEST, "contain": 1}, headers={"X-Ollama-Strict": "true"})
        assert h.service.asked[-1].strict and h.service.asked[-1].ignored == ('ignored field "contain"',)
        counted = await h.client.post("/v1/messages/count_tokens", json={**REQUEST, "contain": 1})
        assert counted.json() == {
            "input_tokens": 3,
            "warnings": ['ignored field "max_tokens"', 'ignored field "contain"'],
        }
        refused = await h.client.post(
            "/v1/messages/count_tokens", json={**REQUEST, "contain": 1}, headers={"X-Ollama-Strict": "1"}
        )
        assert refused.status_code == 400 and 'ignored field "contain"' in refused.json()["error"]["message"]


@in_loop
async def test_comments_then_pings_keep_a_stream_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "KEEP_ALIVE", 0.05)
    async with serve(tmp_path) as h:
        read, write = asyncio.Event(), asyncio.Event()
        h.service.script = [read.wait(), PromptRead(30, 20), write.wait(), Delta("a"), Done("stop", STATS)]
        async with h.client.stream("POST", "/v1/messages", json={**REQUEST, "stream": True}) as reply:
            pieces, seen = reply.aiter_text(), ""
            while seen.count(": keep-alive\n\n") < 2:
                seen += await anext(pieces)
            assert "message_start" not in seen and "ping" not in seen
            read.set()
            while seen.count("event: ping\n") < 2:
                seen += await anext(pieces)
            write.set()
            seen += "".join([piece async for piece in pieces])
        names = [name for name, _ in frames(seen)]
        assert names[:2] == ["message_start", "ping"] and names[-1] == "message_stop"


@in_loop
async def test_a_client_that_disconnects_ends_the_request(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a"), asyncio.Event().wait()]
        async with h.raw(_request("/v1/messages", {**REQUEST, "stream": True})) as (reader, _):
            await reader.readuntil(b"text_delta")
        async with asyncio.timeout(10):
            await h.service.closed.wait()
            await until(lambda: not h.service.requests.queue())


@in_loop
async def test_pages_of_models(tmp_path: Path) -> None:
    h = ServiceHarness(tmp_path)
    async with serve_harness(h) as client:
        client.headers["anthropic-version"] = "2023-06-01"
        empty = {"data": [], "has_more": False, "first_id": None, "last_id": None}
        assert (await client.get("/v1/models")).json() == empty
        for name in ("one", "two", "three"):
            h.make(name)
        whole = (await client.get("/v1/models")).json()
        names = [model["id"] for model in whole["data"]]
        assert sorted(names) == ["one:latest", "three:latest", "two:latest"] and not whole["has_more"]
        pages, after = [], ""
        while True:
            page = (await client.get("/v1/models", params={"limit": 2, "after_id": after})).json()
            pages.append([model["id"] for model in page["data"]])
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert pages == [names[:2], names[2:]]
        back = (await client.get("/v1/models", params={"limit": 1, "before_id": names[2]})).json()
        assert ([model["id"] for model in back["data"]], back["has_more"]) == ([names[1]], True)
        for wrong in ({"limit": 0}, {"limit": "x"}, {"limit": 1001}, {"after_id": "no"}):
            reply = await client.get("/v1/models", params=wrong)
            assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"


@in_loop
async def test_one_model_and_the_dialect_by_header(tmp_path: Path) -> None:
    h = ServiceHarness(tmp_path)
    async with serve_harness(h) as client:
        h.make("me/one")
        ours = {"anthropic-version": "2023-06-01"}
        found = (await client.get("/v1/models/me/one", headers=ours)).json()
        assert found.pop("created_at").endswith("Z") and found == {
            "type": "model", "id": "me/one", "display_name": "me/one:latest", "lifecycle": "active",
            "max_input_tokens": 512,
        }  # fmt: skip
        assert (await client.get("/v1/models/me/one")).json()["object"] == "model"
        missing = await client.get("/v1/models/no", headers=ours)
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
        assert missing.json()["request_id"] == missing.headers["request-id"]
        assert "request-id" not in (await client.get("/v1/models/no")).headers


@in_loop
async def test_a_model_that_cannot_think_answers_without_thinking(tmp_path: Path) -> None:
    thinking = {"model": "m", "thinking": {"type": "enabled", "budget_tokens": 1024}}
    h = ServiceHarness(tmp_path)
    async with serve_harness(h) as client:
        h.make("m")
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            body = {**REQUEST, **thinking}
            reply = await client.post(path, json=body)
            assert reply.status_code == 200
            assert "ignored thinking: this model cannot think" in reply.json()["warnings"]
            refused = await client.post(path, json=body, headers={"X-Ollama-Strict": "true"})
            assert refused.status_code == 400
