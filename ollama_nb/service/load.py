"""A place in a model's runner: what every request that needs the model loaded goes through."""

from __future__ import annotations

from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.options import Options
from ollama_nb.runner.pool import Lease
from ollama_nb.service.requests import LOADING, PROMPT, LiveRequest
from ollama_nb.service.rooms import Rooms


async def acquire(
    rooms: Rooms, model: Model, gguf: GGUF, options: Options, keep_alive: float | None, live: LiveRequest
) -> Lease:
    """Wait for the model, loaded if need be. Raises Busy, LoadError, Cancelled when ``live`` was cancelled."""
    if all(running.model.digest != model.digest for running in rooms.pool.running()):
        live.state = LOADING
    with live.interruptible():
        lease = await rooms.pool.acquire(model, gguf, options, keep_alive)
    live.state = PROMPT
    return lease
