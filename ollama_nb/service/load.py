"""A place in a model's runner: what every request that needs the model loaded goes through."""

from __future__ import annotations

from ollama_nb.api.chat import ModelRequest
from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.options import Options
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.service.options import options_in_force
from ollama_nb.service.requests import LOADING, PROMPT, LiveRequest
from ollama_nb.service.resolve import weights_header


async def acquire(
    backend: Backend, model: Model, gguf: GGUF, options: Options, keep_alive: float | None, live: LiveRequest
) -> Lease:
    """Wait for the model, loaded if need be. Raises Busy, LoadError, Cancelled when ``live`` was cancelled."""
    if all(running.model.digest != model.digest for running in backend.pool.running()):
        live.state = LOADING
    with live.interruptible():
        lease = await backend.pool.acquire(model, gguf, options, keep_alive)
    live.state = PROMPT
    return lease


async def acquire_for(backend: Backend, request: ModelRequest, model: Model, live: LiveRequest) -> Lease:
    """``acquire`` for a request that has nothing to warn of. Raises BadRequest for its options too."""
    gguf = await weights_header(backend, model, request.model)
    options, _ = options_in_force(model, request.options, request.ignored, strict=request.strict)
    return await acquire(backend, model, gguf, options, request.keep_alive, live)
