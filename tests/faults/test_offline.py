"""Without a network, everything local works: no look-up, no connection, no delay."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.service_harness import PLAIN, ServiceHarness, collect, content
from support.stores import check_sound

from ollama_nb.api.requests import CreateRequest, GenerateRequest
from ollama_nb.service import local


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Block and record every attempt to reach the network."""
    found: list[str] = []

    def closed(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **_: Any) -> Any:
            found.append(f"{name} {arguments!r}"[:200])
            raise OSError("the network is down")

        return call

    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, closed(name))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, closed(name))
    return found


def test_models_that_are_here(tmp_path: Path, tried: list[str]) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ["still", " here"])
    harness.make("tales", template=PLAIN)
    service = harness.service

    async def use() -> None:
        await service.start()
        assert [one.model.name.short for one in await service.list()] == ["tales:latest"]
        assert (await service.show("tales")).template == PLAIN
        assert content(await collect(service.generate(GenerateRequest(model="tales", prompt="x")))) == "still here"
        await service.copy("tales", "twin")
        await collect(service.create(CreateRequest(model="child", from_="tales", system="s")))
        await service.delete("tales")
        assert content(await collect(service.generate(GenerateRequest(model="child", prompt="x")))) == "still here"
        await service.close()

    asyncio.run(use())
    local.df(harness.settings)
    check_sound(harness.settings.models)
    assert tried == []
