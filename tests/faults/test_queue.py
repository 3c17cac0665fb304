"""More requests than the queue holds: those beyond it fail at once, all others get exactly one reply."""

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
    """Only one model fits in memory: while it replies, requests for the other one wait."""
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
