"""Other servers of the same user on this machine, and which of them has a model in memory already.

Rule: only who this user's own files name is asked, and only while that user's process listens there: a prompt must
never reach anybody else's server.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ollama_nb.errors import OllamaError
from ollama_nb.runtime import RuntimeInfo, running_servers
from ollama_nb.server.exchange import Broken, Head, ask
from ollama_nb.service.service import Service

ASK_SECONDS = 1.0


class Neighbours:
    """Finds servers by the runtime files in ``home`` (background and standalone ones) and ``jupyter``'s folder."""

    def __init__(self, home: Path, jupyter: Path) -> None:
        self._home, self._jupyter = home, jupyter

    async def with_model(self, service: Service, model: str) -> RuntimeInfo | None:
        """One that has in memory what ``model`` means here, when this server has it not; else None."""
        others = await asyncio.to_thread(self.found)
        if not others:
            return None
        try:
            digest = await service.digest(model)
        except OllamaError:
            return None
        if any(running.model.digest == digest for running in service.running()):
            return None
        answers = await asyncio.gather(*(_has(other, model, digest) for other in others))
        return next((other for other, has in zip(others, answers, strict=True) if has), None)

    def found(self) -> list[RuntimeInfo]:
        """All that run now, except this process."""
        return running_servers(self._home, self._jupyter)


async def _has(other: RuntimeInfo, model: str, digest: str) -> bool:
    """Whether it has the model of that digest in memory, under a name that ``model`` means there, too."""
    try:
        async with asyncio.timeout(ASK_SECONDS), aclosing(ask(other, "GET", "/api/ps")) as reply:
            body = b"".join([piece async for piece in reply if not isinstance(piece, Head)])
        return any(_means(entry, model) for entry in json.loads(body)["models"] if entry["digest"] == digest)
    except (Broken, TimeoutError, ValueError, KeyError, TypeError):
        return False


def _means(entry: dict[str, Any], model: str) -> bool:
    name = model.partition("@")[0].removesuffix(":local").lower()
    return str(entry["name"]).lower() in (name, f"{name}:latest")
