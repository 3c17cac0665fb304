"""The text of ``/metrics``."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.aio import in_loop
from support.service_harness import PLAIN, ServiceHarness, serve_harness

from ollama_nb.api.events import Delta, Event, Stats
from ollama_nb.errors import BadRequest
from ollama_nb.runner import wire
from ollama_nb.server.metrics import MAX_MODELS, Metrics
from ollama_nb.service.requests import Metering

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def figures(text: str) -> Figures:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Figures, name: str, **labels: str) -> float:
    return found[(name, frozenset(labels.items()))]


@in_loop
async def test_all_metrics(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ["Once", " upon"])
    harness.make("tales", template=PLAIN)
    async with serve_harness(harness) as client:
        secret = "a prompt that nobody may read"
        for _ in range(2):
            reply = await client.post("/api/generate", json={"model": "tales", "prompt": secret, "stream": False})
            assert reply.status_code == 200, reply.text
        await client.post("/api/generate", json={"model": secret, "prompt": "x"})
        await client.get(f"/api/{secret}")
        scraped = await client.get("/metrics")
        assert scraped.headers["content-type"].startswith("text/plain; version=")
        found = figures(scraped.text)
        assert value(found, "ollama_nb_requests_total", route="/api/generate", model="tales:latest", code="200") == 2
        assert value(found, "ollama_nb_requests_total", route="/api/generate", model="", code="400") == 1
        assert value(found, "ollama_nb_requests_total", route="other", model="", code="404") == 1
        assert value(found, "gen_ai_server_time_to_first_token_seconds_count", gen_ai_request_model="tales:latest") == 2
        assert value(found, "ollama_nb_output_tokens_total", model="tales:latest") > 0
        assert value(found, "ollama_nb_replies_total", model="tales:latest", reason="stop") == 2
        assert value(found, "ollama_nb_requests_in_flight") == 1, "the scrape itself"
        assert value(found, "ollama_nb_store_bytes", kind="used") > 100_000
        assert value(found, "ollama_nb_disk_free_bytes") > 0
        assert value(found, "ollama_nb_process_memory_bytes") > 1 << 20
        assert value(found, "ollama_nb_queue_depth", state="queued") == 0
        assert secret not in scraped.text and "nobody" not in scraped.text
        assert str(tmp_path) not in scraped.text
        assert not re.search(r"_created\b.*nan", scraped.text)


@in_loop
async def test_draft_tokens_are_counted(tmp_path: Path) -> None:
    pieces = (wire.TextOutput(1, "Once", (), 5), wire.TextOutput(1, " upon", drafted=4, accepted=3))
    harness = ServiceHarness(tmp_path, lambda prompt, format: pieces)
    harness.make("tales", template=PLAIN)
    async with serve_harness(harness) as client:
        for _ in range(2):
            reply = (await client.post("/api/generate", json={"model": "tales", "prompt": "x", "stream": False})).json()
            assert (reply["drafted_tokens"], reply["accepted_tokens"]) == (4, 3)
        found = figures((await client.get("/metrics")).text)
    assert value(found, "ollama_nb_drafted_tokens_total", model="tales:latest") == 8
    assert value(found, "ollama_nb_accepted_draft_tokens_total", model="tales:latest") == 6


@in_loop
async def test_cancelled_replies_are_counted_by_phase(tmp_path: Path) -> None:
    """A request cancelled in the queue, one cancelled during its reply, and a failed one, which does not count."""
    metrics = Metrics()

    async def reply(*events: Event) -> None:
        with Metering(metrics, "m") as metering:
            for event in events:
                metering.counted(event)
            await asyncio.Event().wait()

    for events in ((), (Delta("a"),)):
        task = asyncio.ensure_future(reply(*events))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    with pytest.raises(BadRequest), Metering(metrics, "m"):
        raise BadRequest("no")
    service = ServiceHarness(tmp_path).service
    engines = [("tales", {"slots": 4, "pid": 7, "rows": {}})]
    text = await metrics.text(
        busy=0, queue=(), running=(), engines=engines, store=service.store, batches=service.batches.store
    )
    await metrics.close()
    found = figures(text.decode())
    assert value(found, "ollama_nb_cancelled_total", phase="waiting") == 1
    assert value(found, "ollama_nb_cancelled_total", phase="generating") == 1
    assert {key: number for key, number in found.items() if key[0] == "ollama_nb_engine"} == {
        ("ollama_nb_engine", frozenset({("model", "tales:latest"), ("figure", "slots")})): 4
    }


@in_loop
async def test_the_number_of_labels_is_bounded(tmp_path: Path) -> None:
    metrics = Metrics()
    for number in range(MAX_MODELS + 30):
        metrics.done(f"model{number}", "stop", Stats(output_tokens=1, prompt_tokens_dropped=number % 2))
    service = ServiceHarness(tmp_path).service
    text = (
        await metrics.text(busy=0, queue=(), running=(), engines=(), store=service.store, batches=service.batches.store)
    ).decode()
    await metrics.close()
    found = figures(text)
    models = {dict(labels)["model"] for name, labels in found if name == "ollama_nb_output_tokens_total"}
    assert len(models) == MAX_MODELS + 1
    assert value(found, "ollama_nb_output_tokens_total", model="other") == 30
    assert value(found, "ollama_nb_truncations_total", model="other") == 15


@in_loop
async def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = ServiceHarness(tmp_path)
    never = asyncio.Event()
    monkeypatch.setattr("ollama_nb.server.dialects.native.routes._READY_SECONDS", 0.01)

    async def stuck(*_: object) -> None:
        await never.wait()

    async with serve_harness(harness) as client:
        with monkeypatch.context() as patch:
            patch.setattr("ollama_nb.server.dialects.native.routes.asyncio.to_thread", stuck)
            late = await client.get("/readyz")
        assert (late.status_code, late.text) == (503, "the disk of the model store does not answer")
        assert (await client.get("/livez")).text == "ok"
