"""More requests than a queue holds, or than a client's share: all get one reply, those beyond the limit an error."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.aio import in_loop
from support.models import heavy
from support.servers import standalone

pytestmark = pytest.mark.model
QUEUE, EXCESS = 4, 50
BUSY = "server busy, please try again.  maximum pending requests exceeded"
SMALL: dict[str, Any] = {"OLLAMA_MAX_QUEUE": str(QUEUE), "OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_NUM_PARALLEL": "2"}


async def add(http: httpx.AsyncClient, name: str, data: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (await http.post(f"/api/blobs/{digest}", content=data)).status_code == 201
    made = await http.post("/api/create", json={"model": name, "files": {"m.gguf": digest}, "stream": False})
    assert made.json() == {"status": "success"}


def question(model: str, prompt: str, predict: int) -> dict[str, Any]:
    options = {"num_predict": predict, "num_ctx": 512, "seed": 1}
    return {"model": model, "prompt": prompt, "raw": True, "options": options}


async def ask(http: httpx.AsyncClient) -> tuple[int, str, float]:
    """Status, error and seconds."""
    began = time.monotonic()
    reply = await http.post("/api/generate", json={**question("sprout", "The sky is", 4), "stream": False})
    if reply.status_code == 503:
        assert reply.headers["Retry-After"] == "1"
    return reply.status_code, reply.json().get("error", ""), time.monotonic() - began


async def ended(tasks: Iterable[asyncio.Task[Any]], count: int) -> tuple[list[Any], set[asyncio.Task[Any]]]:
    """The results of the first ``count`` requests to end, and of the others."""
    waiting, results = set(tasks), []
    while len(results) < count:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        results += [task.result() for task in done]
    return results, waiting


@in_loop
async def test_more_requests_than_places(tmp_path: Path) -> None:
    """F23, G7: only one model fits in memory: while it replies, requests for the other one wait."""
    with standalone(tmp_path, env=SMALL) as server:
        limits = httpx.Limits(max_connections=2 * EXCESS)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
            await add(http, "endless", heavy(tmp_path / "heavy.gguf").read_bytes())
            async with (
                http.stream("POST", "/api/generate", json=question("endless", " bababa" * 4, 100_000)) as first,
                aclosing(first.aiter_lines()) as lines,
            ):
                assert not json.loads(await anext(lines))["done"]
                tasks = [asyncio.ensure_future(ask(http)) for _ in range(QUEUE + EXCESS)]
                refused, waiting = await ended(tasks, EXCESS)
                assert Counter((status, text) for status, text, _ in refused) == {(503, BUSY): EXCESS}
                assert len(waiting) == QUEUE
            served = await asyncio.gather(*waiting)
    assert [(status, text) for status, text, _ in served] == [(200, "")] * QUEUE
    print(f"{EXCESS} at once refused within {max(seconds for *_, seconds in refused) * 1000:.0f} ms")


LIGHT, HEAVY, LENGTH = 6, 60, 192  # requests of each client, and tokens of each reply


@in_loop
async def test_a_light_client_beside_one_that_sends_ten_times_as_much(tmp_path: Path, models: Path) -> None:
    """G7: of two clients, a fair share is one reply of the other between two of one's own; at most two are permitted.

    The heavy client sends all its requests at once, before the light one sends its first.
    """
    served: list[str] = []  # the client of each reply, in the order of arrival
    body = {**question("stories", "Once upon a time", LENGTH), "stream": False}

    async def ask_as(http: httpx.AsyncClient, client: str) -> None:
        reply = (await http.post("/api/generate", json=body, headers={"X-Ollama-Client": client})).json()
        assert (reply["done_reason"], reply["eval_count"]) == ("length", LENGTH)
        served.append(client)

    with standalone(tmp_path, env={"OLLAMA_NUM_PARALLEL": "1"}) as server:
        limits = httpx.Limits(max_connections=HEAVY + 2)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits, trust_env=False) as http:
            await add(http, "stories", (models / "stories260K-q8_0.gguf").read_bytes())
            await ask_as(http, "first")  # loads the model
            heavy_ones = [asyncio.ensure_future(ask_as(http, "heavy")) for _ in range(HEAVY)]
            while len((await http.get("/api/queue")).json()["requests"]) < HEAVY - served.count("heavy"):
                pass
            counts = []
            for _ in range(LIGHT):
                before = len(served)
                await ask_as(http, "light")
                counts.append(len(served) - before - 1)
            print(f"replies of the heavy client during each request of the light one: {counts}")
            await asyncio.gather(*heavy_ones)
    assert max(counts) <= 2
    assert Counter(served) == {"first": 1, "heavy": HEAVY, "light": LIGHT}
