"""The inventory of the API contract: every route and every field of a request has a test, which is here.

Each field of ``inventory.yaml`` is sent with a valid value, which must change what the server or the model does, and
with a wrong one, which must be refused with 400 in the dialect's own error object. The real service runs over a
scripted pool.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.aio import in_loop
from support.hostile import CASES, HOSTILE, JSON_VALUES, NOT_OURS
from support.openapi import BY_ROUTE, Operation, check_reply, code_of
from support.service_harness import INSERTS, PLAIN, THINKS, TOOLS, ServiceHarness, serve_harness

from ollama_nb.api.events import Progress

INVENTORY: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("inventory.yaml").read_text("utf-8"))
FIELDS = [(route, field) for route, entry in INVENTORY.items() for field in entry.get("fields", ())]
VOLATILE = re.compile(r'"(?:created_at|completed_at|modified_at|request_id|\w+_duration|id|created)":[^,}]*')


def test_the_routes_are_those_of_the_description() -> None:
    assert INVENTORY.keys() == BY_ROUTE.keys()


@pytest.mark.parametrize("route", BY_ROUTE)
def test_the_fields_are_those_of_the_description(route: str) -> None:
    described, listed = BY_ROUTE[route].fields, INVENTORY[route].get("fields", {})
    assert described.keys() == {field for field in listed if "." not in field}
    replies = set(INVENTORY[route].get("replies", ()))
    assert replies <= set(BY_ROUTE[route].reply_fields()), "fields of replies that are not described"


def test_every_row_has_what_a_test_needs() -> None:
    for route, field in FIELDS:
        row = INVENTORY[route]["fields"][field]
        assert "value" in row and ("wrong" in row or row["unchecked"]), f"{route}: {field} has no test"


class Bench:
    """A server over the real service, which records what reaches models and other servers."""

    def __init__(self, harness: ServiceHarness, client: httpx.AsyncClient) -> None:
        self.harness, self.client, self.transfers = harness, client, []  # type: ignore[var-annotated]
        for name in ("pull", "push", "create"):
            setattr(harness.service, name, self._transfer)

    async def _transfer(self, request: Any) -> AsyncIterator[Progress]:
        self.transfers.append(request)
        yield Progress("success")

    async def send(self, route: str, body: Any) -> tuple[httpx.Response, str]:
        """The reply, and everything that can be observed of the request."""
        operation = BY_ROUTE[route]
        pool, renderer = self.harness.pool, self.harness.renderer
        for seen in (pool.runner.asks, pool.acquired, pool.unloaded, renderer.jobs, self.transfers):
            seen.clear()
        pool.runner.tokenized = None
        headers = {"X-Request-Id": "same", "X-Ollama-Run-Record": "false"}
        reply = await self.client.request(operation.method, operation.path, json=body, headers=headers)
        acquired = [(model.name, options, keep) for model, options, keep in pool.acquired]
        heard = (pool.runner.asks, acquired, pool.unloaded, renderer.jobs, self.transfers, pool.runner.tokenized)
        text = VOLATILE.sub("", reply.text)
        return reply, f"{reply.status_code} {reply.headers.get('content-type')} {text} {_unseeded(heard)}"


def _unseeded(value: Any) -> str:
    """The text of a value without the random seed."""
    return re.sub(r"seed=\d{3,}|'seed': \d{3,}", "seed", repr(value))


@contextlib.asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    harness = ServiceHarness(folder)
    for name, template in (("m", PLAIN), ("thinks", THINKS), ("tools", TOOLS), ("inserts", INSERTS)):
        harness.make(name, template=template)
    harness.make("embedder", "all-MiniLM-L6-v2-q8_0.gguf")
    for digit in "01":
        harness.service.batches.store.upload().commit("input", "batch", id=f"file-{digit * 24}")
    async with serve_harness(harness) as client:
        yield Bench(harness, client)


def changed(body: Any, changes: dict[str, Any]) -> Any:
    """The body with other values at dotted paths; None removes a field."""
    found = copy.deepcopy(body)
    for path, value in changes.items():
        *above, last = path.split(".")
        at = found
        for key in above:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        if value is None:
            at.pop(last, None)
        else:
            at[int(last) if isinstance(at, list) else last] = value
    return found


def rows(route: str) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Field, row and the request without the field."""
    entry = INVENTORY[route]
    for field, row in entry.get("fields", {}).items():
        yield field, row, changed(entry["request"], row.get("with", {}))


@pytest.mark.parametrize("route", [route for route, entry in INVENTORY.items() if entry.get("fields")])
def test_every_field_of_a_request(route: str, tmp_path: Path) -> None:
    @in_loop
    async def check() -> None:
        operation = BY_ROUTE[route]
        async with bench(tmp_path) as h:
            failures = [
                line for field, row, base in rows(route) async for line in _check(h, operation, field, row, base)
            ]
        assert not failures, "\n".join(failures)

    check()


async def _check(h: Bench, operation: Operation, field: str, row: dict[str, Any], base: Any) -> AsyncIterator[str]:
    """What is wrong with a field: its value has no effect, or a wrong value is not refused."""
    route = f"{operation.method} {operation.path}"
    _, without = await h.send(route, base)
    reply, with_value = await h.send(route, changed(base, {field: row["value"]}))
    if reply.status_code != row.get("status", 200):
        yield f"{field}: {row['value']!r} gives {reply.status_code} {reply.text[:300]}"
    if (with_value == without) != ("accepted" in row):
        yield f"{field}: {row['value']!r} has {'no' if with_value == without else 'an'} effect"
    if "wrong" in row:
        refused, _ = await h.send(route, changed(base, {field: row["wrong"]}))
        if refused.status_code != 400:
            yield f"{field}: {row['wrong']!r} gives {refused.status_code} {refused.text[:300]}"
        else:
            (error,) = check_reply(operation, 400, refused.headers["content-type"], refused.content)
            assert code_of(error)


SHARE = 1 if CASES else 8  # without HOSTILE_CASES, a field gets every eighth value, starting at its own number


@pytest.mark.parametrize("route", [route for route, entry in INVENTORY.items() if entry.get("fields")])
def test_no_value_of_any_field_is_an_internal_error(route: str, tmp_path: Path) -> None:
    """S8, S11, S30: huge, negative, deep, long and mistyped values of every field are used or refused."""

    @in_loop
    async def check(values: Sequence[Any], share: int) -> None:
        operation = BY_ROUTE[route]
        async with bench(tmp_path) as h:
            for number, (field, _, base) in enumerate(rows(route)):
                for value in values[number % share :: share]:
                    body = json.dumps(changed(base, {field: value}), allow_nan=True).encode()
                    reply = await h.client.request(operation.method, operation.path, content=body)
                    about = f"{field}: {str(value)[:60]!r} gives {reply.status_code} {reply.text[:300]}"
                    if reply.status_code not in (400, 404):
                        last = check_described(operation, reply, about)
                        assert reply.status_code < 500 or code_of(last) in NOT_OURS, about
                    assert '"internal_error"' not in reply.text, about  # in a stream

    def check_described(operation: Operation, reply: httpx.Response, about: str) -> Any:
        try:
            kind = reply.headers.get("content-type", "")
            (*_, last) = check_reply(operation, reply.status_code, kind, reply.content) or [None]
        except Exception as error:
            raise AssertionError(f"{about}: {error}") from error
        return last

    check(HOSTILE, SHARE)
    if CASES:
        options = settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        options(given(st.lists(JSON_VALUES, min_size=CASES, max_size=CASES))(lambda values: check(values, 1)))()


def test_a_field_without_a_test_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    route = "POST /api/chat"
    entry = json.loads(json.dumps(INVENTORY[route]))
    del entry["fields"]["think"]
    monkeypatch.setitem(INVENTORY, route, entry)
    with pytest.raises(AssertionError):
        test_the_fields_are_those_of_the_description(route)
