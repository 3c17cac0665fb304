"""Requests that do work are activity for Jupyter, requests that only read are not; servers share loaded models."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from ollama_nb_ext.activity import ActivityReporter
from support.aio import in_loop
from support.servers import RunningServer, jupyter, until
from support.service_harness import MODELS, ServiceHarness

from ollama_nb import Client
from ollama_nb.client.files import file_digest
from ollama_nb.server.state import ServerState


@in_loop
async def test_the_time_is_written_during_work(tmp_path: Path) -> None:
    state, times = ServerState(ServiceHarness(tmp_path).service), dict[str, datetime]()
    activity = ActivityReporter(state, times)
    activity.start()
    try:
        looking, working = asyncio.Event(), asyncio.Event()
        state.enter(asyncio.ensure_future(_until(looking)), works=False)
        activity.beat()
        assert not times and (state.busy, state.working) == (1, 0)
        task = asyncio.ensure_future(_until(working))
        state.enter(task)
        began = times.pop("ollama_nb")
        activity.beat()
        assert times.pop("ollama_nb") >= began and began.tzinfo is not None
        working.set()
        await task
        assert times.pop("ollama_nb") >= began
        activity.beat()
        assert not times and state.working == 0
        state.service.batches.active = 1
        activity.beat()
        assert times.pop("ollama_nb") >= began and state.working == 1 and state.idle_seconds() < 1, "a batch is work"
        state.service.batches.active = 0
        looking.set()
    finally:
        activity.stop()
        await state.drain(5)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def last_activity(server: RunningServer) -> str:
    root = server.url.removesuffix("/ollama")
    return str(
        httpx.get(f"{root}/api/status", headers=server.headers, timeout=60, trust_env=False).json()["last_activity"]
    )


def client_of(server: RunningServer) -> Client:
    return Client(server.url, "test-token")


@pytest.mark.model
def test_two_servers_share_a_model_and_a_pull_is_activity(tmp_path: Path) -> None:
    with jupyter(tmp_path) as first, jupyter(tmp_path, base_url="/user/x/") as second:
        until(second, (tmp_path / "jupyter_runtime_dir" / f"ollama-nb-{second.pid}.json").exists)
        one, two = client_of(first), client_of(second)
        began = last_activity(first)
        one.list(), one.ps(), one.queue()
        assert last_activity(first) == began
        for chunk in one.pull("sprout"):
            assert last_activity(first) > began, chunk
        pulled = last_activity(first)
        file = MODELS / "stories260K-q8_0.gguf"
        with file.open("rb") as opened:
            one.upload_blob(digest := file_digest(file), opened, file.stat().st_size)
        list(one.create("tiny", files={file.name: digest}))
        one.generate("tiny", stream=False)
        assert last_activity(first) > pulled
        messages = [{"role": "user", "content": "Once upon"}]
        pieces = list(two.chat("tiny", messages, options={"num_predict": 8}))
        assert pieces[-1]["done"] and len(pieces) > 2
        assert ([m["name"] for m in one.ps()["models"]], two.ps()["models"]) == (["tiny:latest"], [])
