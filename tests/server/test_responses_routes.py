"""The routes of the Responses API on a real socket, with a scripted service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support.aio import in_loop
from support.openapi import BY_ID, check_reply, events
from test_handler import ServedService, _request, serve, until

from ollama_nb.api.events import Delta, Done, PromptRead, Stats, ToolCalls
from ollama_nb.api.messages import Message, ToolCall, ToolChoice
from ollama_nb.errors import BadRequest, RunnerCrashed
from ollama_nb.server import handler
from ollama_nb.server.dialects.responses import background, routes
from ollama_nb.server.dialects.responses.store import new_id
from ollama_nb.server.keys import INFER
from ollama_nb.server.routes import ROUTES

DONE = Done("stop", Stats(prompt_tokens=5, output_tokens=2))
ASK = {"model": "m", "input": "你好"}


class Gate:
    """A step of a script that lasts until it is opened."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._opened.wait().__await__()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (background, routes):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


def payloads(body: bytes) -> list[dict[str, Any]]:
    check_reply(BY_ID["createResponse"], 200, "text/event-stream", body)
    return [json.loads(data) for _, data in events(body)]


async def ask(h: ServedService, *script: Any, **fields: Any) -> dict[str, Any]:
    h.service.script = list(script) or [Delta("好"), DONE]
    reply = await h.client.post("/v1/responses", json={**ASK, **fields})
    assert reply.status_code == 200, reply.text
    check_reply(BY_ID["createResponse"], 200, reply.headers["content-type"], reply.content)
    found: dict[str, Any] = reply.json()
    return found


async def read(h: ServedService, response_id: str, status: int = 200) -> dict[str, Any]:
    reply = await h.client.get(f"/v1/responses/{response_id}")
    assert reply.status_code == status, reply.text
    check_reply(BY_ID["getResponse"], status, reply.headers["content-type"], reply.content)
    found: dict[str, Any] = reply.json()
    return found


async def when(h: ServedService, response_id: str, status: str) -> dict[str, Any]:
    while (found := await read(h, response_id))["status"] != status:
        assert found["status"] in ("queued", "in_progress"), found
    return found


def stored(h: ServedService) -> list[Path]:
    return sorted((h.service.home / "responses").glob("resp_*"))


@in_loop
async def test_a_conversation_is_continued(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        call = ToolCalls((ToolCall("weather", {"city": "北京"}, "c1"),))
        first = await ask(
            h, Delta(thinking="想"), call, DONE, instructions="一", tools=[{"type": "function", "name": "weather"}]
        )
        output = {"type": "function_call_output", "call_id": "c1", "output": "3 °C"}
        second = await ask(h, previous_response_id=first["id"], input=[output])
        third = await ask(h, previous_response_id=second["id"], input="谢谢", instructions="二")
        answered = (
            Message("user", "你好"),
            Message("assistant", thinking="想", tool_calls=(ToolCall("weather", {"city": "北京"}, "c1"),)),
            Message("tool", "3 °C", tool_name="weather", tool_call_id="c1"),
        )
        asked = [request.messages for request in h.service.asked]
        assert asked[1] == answered  # without the instructions, which are not inherited
        assert asked[2] == (Message("system", "二"), *answered, Message("assistant", "好"), Message("user", "谢谢"))
        assert (await read(h, third["id"]))["previous_response_id"] == second["id"]
        await h.client.delete(f"/v1/responses/{first['id']}")
        await ask(h, previous_response_id=third["id"])
        assert h.service.asked[3].messages[:3] == answered  # a response stands for itself


@in_loop
async def test_an_item_is_referred_to(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        first = await ask(h)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        second = await ask(h, input=[reference, {"role": "user", "content": "再说一遍"}])
        assert h.service.asked[1].messages == (Message("assistant", "好"), Message("user", "再说一遍"))
        assert (await ask(h, previous_response_id=second["id"]))["status"] == "completed"
        gone = await h.client.post("/v1/responses", json={**ASK, "input": [{**reference, "id": "msg_1"}]})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


@in_loop
async def test_input_items(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        first = await ask(h)
        second = await ask(
            h,
            previous_response_id=first["id"],
            input=[{"role": "user", "content": "一"}, {"role": "user", "content": "二"}],
        )

        async def listed(**arguments: Any) -> dict[str, Any]:
            reply = await h.client.get(f"/v1/responses/{second['id']}/input_items", params=arguments)
            check_reply(BY_ID["listInputItems"], reply.status_code, reply.headers["content-type"], reply.content)
            found: dict[str, Any] = reply.json()
            return found

        texts = ["二", "一", "好", "你好"]
        page = await listed()
        assert [item["content"][0]["text"] for item in page["data"]] == texts and not page["has_more"]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        start = await listed(limit=3)
        assert start["has_more"] and (await listed(after=start["last_id"]))["data"] == page["data"][3:]
        assert (await listed(order="asc"))["data"] == page["data"][::-1]
        for wrong in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}, {"after": "msg_x"}):
            assert (await listed(**wrong))["error"]["code"] == "bad_request", wrong


@in_loop
async def test_only_what_should_be_stored_is_stored(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        unstored = await ask(h, store=False)
        assert unstored["store"] is False and stored(h) == []
        await read(h, unstored["id"], 404)
        h.service.script = [BadRequest("no")]
        assert (await h.client.post("/v1/responses", json={**ASK, "stream": True})).status_code == 400
        h.service.script = [Delta("好"), RunnerCrashed("gone")]
        assert (await h.client.post("/v1/responses", json=ASK)).status_code == 500
        assert stored(h) == []
        refused = await h.client.post("/v1/responses", json={**ASK, "previous_response_id": unstored["id"]})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (
            400,
            "response_not_found",
            "previous_response_id",
        )


@in_loop
async def test_an_error_in_a_stream_is_stored(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for failure, reason in (
            ([RunnerCrashed("gone")], "runner_crashed"),
            ([ValueError()], "internal_error"),
            ([], "internal_error"),
        ):
            h.service.script = [Delta("好"), *failure]
            reply = await h.client.post("/v1/responses", json={**ASK, "stream": True})
            assert reply.status_code == 200 and reply.headers["content-type"] == "text/event-stream"
            last = payloads(reply.content)[-1]
            assert (last["type"], last["response"]["error"]["reason"]) == ("response.failed", reason)
            assert last["response"] == await read(h, last["response"]["id"])


@in_loop
async def test_a_client_that_disconnects_leaves_what_it_has_seen(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("好"), Gate()]
        async with h.raw(_request("/v1/responses", {**ASK, "stream": True})) as (reader, _):
            await reader.readuntil(b"output_text.delta")
        await h.service.closed.wait()
        await until(lambda: h.state.busy == 0)
        (file,) = stored(h)
        response = await read(h, file.stem)
        assert (response["status"], response["output"][0]["status"]) == ("cancelled", "incomplete")
        await ask(h, previous_response_id=response["id"], input="继续")
        assert h.service.asked[-1].messages[1] == Message("assistant", "好")
        h.service.script = [Delta("好"), Gate()]
        async with h.raw(_request("/v1/responses", ASK)):
            await until(lambda: h.service.yielded == 4)
        await until(lambda: h.state.busy == 0)
        assert len(stored(h)) == 2  # that client has never seen an id


@in_loop
async def test_a_response_that_cannot_be_stored(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.home.mkdir()
        (h.service.home / "responses").write_text("a file")
        response = await ask(h)
        assert response["status"] == "completed" and response["store"] is False
        assert "was not stored" in response["warnings"][0]
        h.service.script = [DONE]
        later = await h.client.post("/v1/responses", json={**ASK, "background": True})
        assert later.json()["error"]["code"] == "store_error" and h.service.asked[1:] == []


@in_loop
async def test_keep_alives_while_the_prompt_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "KEEP_ALIVE", 0.02)
    monkeypatch.setattr(routes, "KEEP_ALIVE", 0.02)
    async with serve(tmp_path) as h:
        for more in ({}, {"background": True}):
            gate = Gate()
            h.service.script = [gate, Delta("好"), DONE]
            async with h.client.stream("POST", "/v1/responses", json={**ASK, "stream": True, **more}) as reply:
                body = b""
                async for piece in reply.aiter_raw():
                    body += piece
                    if b": keep-alive" in body:
                        gate.open()
            assert b"response.created" in body.partition(b": keep-alive")[0]
            assert payloads(body)[-1]["type"] == "response.completed"


@in_loop
async def test_a_response_in_the_background(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        gate = Gate()
        response = await ask(h, PromptRead(5), gate, Delta("好"), DONE, background=True)
        assert (response["status"], response["background"], response["output"]) == ("queued", True, [])
        assert (await when(h, response["id"], "in_progress"))["usage"] is None
        early = await h.client.post("/v1/responses", json={**ASK, "previous_response_id": response["id"]})
        assert early.status_code == 400 and "still being generated" in early.json()["error"]["message"]
        assert h.state.working == 1  # Jupyter does not cull the server meanwhile
        assert h.service.asked[0].request_id == response["id"]  # as which /api/queue shows it
        gate.open()
        ended = await when(h, response["id"], "completed")
        assert ended["output"][0]["content"][0]["text"] == "好"
        assert (await ask(h, previous_response_id=response["id"]))["status"] == "completed"
        missing = await h.client.post("/v1/responses", json={**ASK, "model": "no", "background": True})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@in_loop
async def test_errors_in_the_background(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for script, reason in (
            ([RunnerCrashed("gone")], "runner_crashed"),
            ([Delta("好"), ValueError()], "internal_error"),
            ([Delta("好")], "internal_error"),
        ):
            response = await ask(h, *script, background=True)
            failed = await when(h, response["id"], "failed")
            assert (failed["error"]["code"], failed["error"]["reason"]) == ("server_error", reason)


@in_loop
async def test_cancel(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        response = await ask(h, Delta("好"), Gate(), background=True)
        await when(h, response["id"], "in_progress")
        path = f"/v1/responses/{response['id']}/cancel"
        cancelled = (await h.client.post(path)).json()
        assert h.service.closed.is_set()
        assert (cancelled["status"], cancelled["output"][0]["content"][0]["text"]) == ("cancelled", "好")
        assert (await h.client.post(path)).json() == cancelled == await read(h, response["id"])
        waiting = await ask(h)
        refused = await h.client.post(f"/v1/responses/{waiting['id']}/cancel")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")
        assert (await h.client.post(f"/v1/responses/{new_id()}/cancel")).status_code == 404


@in_loop
async def test_delete(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        kept, running = await ask(h), await ask(h, Gate(), background=True)
        for response in (kept, running):
            reply = await h.client.delete(f"/v1/responses/{response['id']}")
            assert reply.json() == {"id": response["id"], "object": "response", "deleted": True}
            await read(h, response["id"], 404)
            assert (await h.client.delete(f"/v1/responses/{response['id']}")).status_code == 404
        assert h.service.closed.is_set() and h.state.busy == 0


@in_loop
async def test_a_background_stream_is_resumed(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        gate = Gate()
        h.service.script = [Delta("好"), gate, Delta("的"), DONE]
        async with h.raw(_request("/v1/responses", {**ASK, "stream": True, "background": True})) as (reader, _):
            await reader.readuntil(b"output_text.delta")
        (file,) = stored(h)
        path = f"/v1/responses/{file.stem}"
        assert (await read(h, file.stem))["status"] == "in_progress"  # the client is gone, the response is not
        async with h.client.stream("GET", path, params={"stream": "true", "starting_after": 4}) as reply:
            gate.open()
            rest = payloads(await reply.aread())
        assert [payload["sequence_number"] for payload in rest] == list(range(5, 11))
        whole = payloads((await h.client.get(path, params={"stream": "true"})).content)
        assert whole[5:] == rest and rest[-1]["type"] == "response.completed"
        assert rest[-1]["response"] == await read(h, file.stem)
        for response in (await ask(h), await ask(h, background=True)):
            refused = await h.client.get(f"/v1/responses/{response['id']}", params={"stream": "true"})
            assert refused.status_code == 400, refused.text
        assert (await h.client.get(path, params={"stream": "true", "starting_after": "x"})).status_code == 400


@in_loop
async def test_two_servers_of_one_user(tmp_path: Path) -> None:
    async with serve(tmp_path) as one, serve(tmp_path) as two:
        never = Gate()
        cancelled, deleted = [await ask(one, Delta("好"), never, background=True, stream=False) for _ in "12"]
        one.service.script = [Delta("好"), never]
        async with one.raw(_request("/v1/responses", {**ASK, "stream": True, "background": True})) as (reader, _):
            head = await reader.readuntil(b"output_text.delta")
        streamed = head.partition(b'"id":"')[2][:37].decode()
        await when(two, cancelled["id"], "in_progress")
        assert (await two.client.post(f"/v1/responses/{cancelled['id']}/cancel")).json()["status"] == "cancelled"
        assert (await two.client.delete(f"/v1/responses/{deleted['id']}")).status_code == 200
        async with two.client.stream("GET", f"/v1/responses/{streamed}?stream=true&starting_after=9") as reply:
            await two.client.post(f"/v1/responses/{streamed}/cancel")
            (last,) = payloads(await reply.aread())
        assert (last["sequence_number"], last["response"]["status"]) == (10, "cancelled")
        await until(lambda: one.state.busy == 0)  # the owner has stopped all three
        for h in (one, two):
            assert (await read(h, cancelled["id"]))["status"] == "cancelled"
            await read(h, deleted["id"], 404)


@in_loop
async def test_a_server_that_ends_says_so_in_its_responses(tmp_path: Path) -> None:
    async with serve(tmp_path) as one:
        response = await ask(one, Gate(), background=True)
    async with serve(tmp_path) as two:
        failed = await read(two, response["id"])
        assert (failed["status"], failed["error"]["reason"]) == ("failed", "shutting_down")
        assert not list((two.service.home / "responses").glob(".*"))


@in_loop
async def test_strict_requests_and_compressed_bodies(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        body = zstandard.compress(json.dumps({**ASK, "tools": [{"type": "web_search"}]}).encode())
        headers = {"Content-Encoding": "zstd", "X-Ollama-Strict": "true", "X-Ollama-Run-Record": "true"}
        h.service.script = [DONE]
        assert (await h.client.post("/v1/responses", content=body, headers=headers)).status_code == 200
        request = h.service.asked[0]
        assert (
            request.strict
            and request.run_record
            and request.ignored == ('ignored tool "web_search": this server does not provide it',)
        )
        assert request.tool_choice == ToolChoice()


def test_a_key_needs_the_same_scope_for_every_route() -> None:
    """Stored responses hold prompts and answers: a key that only reads the server's state must not see them."""
    scopes = {route.scope for path, methods in ROUTES.items() if path.startswith("/v1/responses")
              for route in methods.values()}  # fmt: skip
    assert scopes == {INFER}
