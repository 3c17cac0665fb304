"""What each route does, in a few lines: read the body, ask the service, write the reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ollama_nb import __version__
from ollama_nb.api.names import Digest
from ollama_nb.errors import Forbidden, NotFound, OllamaError, Unauthorized
from ollama_nb.server.bodies import MIB, Discarded, Sink, Upload
from ollama_nb.server.dialects import native, native_models, native_reply
from ollama_nb.server.handlers import Endpoint, Route
from ollama_nb.server.metrics import CONTENT_TYPE
from ollama_nb.server.relay import passed_on

OLLAMA_API_VERSION = "0.17.0"
"""The level of Ollama's API that is followed; clients compare it."""

_IMAGES = 256 * MIB
_READY_SECONDS = 2.0
_ENGINE_SECONDS = 0.2
_TEXT = "text/plain; charset=utf-8"


async def root(call: Endpoint) -> None:
    await call.send(b"Ollama is running", _TEXT)


async def version(call: Endpoint) -> None:
    await call.send(native_reply.encode({"version": OLLAMA_API_VERSION, "ollama_nb": __version__}))


async def status(call: Endpoint) -> None:
    await call.send(b'{"cloud":{"disabled":true,"source":"config"}}')


async def chat(call: Endpoint) -> None:
    body = call.fields("ChatRequest")
    request = replace(native.read_chat(body, call.id), strict=call.wants("Strict"), run_record=call.wants("Run-Record"))
    if not request.unloads and await passed_on(call, request.model, "chat"):
        return
    reply = native_reply.ChatReply(request.model, call.id)
    await call.send_events(call.service.chat(request), reply, stream=native.wants_stream(body))


async def generate(call: Endpoint) -> None:
    body = call.fields("GenerateRequest")
    request = native.read_generate(body, call.id)
    request = replace(request, strict=call.wants("Strict"), run_record=call.wants("Run-Record"))
    if not request.unloads and await passed_on(call, request.model, "generate"):
        return
    reply = native_reply.GenerateReply(request.model, call.id)
    await call.send_events(call.service.generate(request), reply, stream=native.wants_stream(body))


async def embed(call: Endpoint) -> None:
    request = replace(native.read_embed(call.fields("EmbedRequest"), call.id), strict=call.wants("Strict"))
    if await passed_on(call, request.model, "embed"):
        return
    result = await call.service.embed(request)
    pieces = []
    for piece in native_reply.embed(request.model, result):
        pieces.append(piece)
        await asyncio.sleep(0)  # thousands of vectors must not hold up the streams of others
    await call.send(b"".join(pieces))


async def embeddings(call: Endpoint) -> None:
    request = native.read_embeddings(call.fields("EmbeddingRequest"), call.id)
    if await passed_on(call, request.model, "embed"):
        return
    await call.send(native_reply.embeddings(await call.service.embeddings(request)))


async def rerank(call: Endpoint) -> None:
    request = replace(native.read_rerank(call.fields("RerankRequest"), call.id), strict=call.wants("Strict"))
    if await passed_on(call, request.model, "rerank"):
        return
    await call.send(native_reply.ranking(request, await call.service.rerank(request)))


async def tokenize(call: Endpoint) -> None:
    request = native.read_tokenize(call.fields("TokenizeRequest"))
    tokens = await call.service.tokenize(request)
    # A million numbers take a while to write.
    await call.send(await asyncio.to_thread(native_reply.encode, {"model": request.model, "tokens": tokens}))


async def detokenize(call: Endpoint) -> None:
    body = call.fields("DetokenizeRequest")
    model = body.text("model")
    content = await call.service.detokenize(model, body.wholes("tokens") or ())
    await call.send(native_reply.encode({"model": model, "content": content}))


async def tags(call: Endpoint) -> None:
    await call.send(native_models.tags(await call.service.list()))


async def show(call: Endpoint) -> None:
    request = native.read_show(call.fields("ShowRequest"))
    shown = await call.service.show(request.model, request.verbose, request.system, request.options)
    # This client lists models by their base name and must find the name that it can ask for.
    copilot = call.request.headers.get("User-Agent", "").startswith("GitHubCopilotChat/")
    # A whole vocabulary is megabytes of JSON.
    await call.send(await asyncio.to_thread(native_models.show, shown, request.model if copilot else ""))


async def ps(call: Endpoint) -> None:
    await call.send(native_models.ps(call.service.running()))


async def create(call: Endpoint) -> None:
    body = call.fields("CreateRequest")
    request = replace(native.read_create(body, call.id), strict=call.wants("Strict"))
    await call.send_progress(call.service.create(request), stream=native.wants_stream(body))


async def pull(call: Endpoint) -> None:
    body = call.fields("PullRequest")
    await call.send_progress(call.service.pull(native.read_pull(body, call.id)), stream=native.wants_stream(body))


async def push(call: Endpoint) -> None:
    body = call.fields("PushRequest")
    await call.send_progress(call.service.push(native.read_push(body, call.id)), stream=native.wants_stream(body))


async def copy(call: Endpoint) -> None:
    body = call.fields("CopyRequest")
    await call.service.copy(body.text("source"), body.text("destination"))
    await call.send()


async def delete(call: Endpoint) -> None:
    body = call.fields("DeleteRequest")
    await call.service.delete(body.text("model", "name"))
    await call.send()


async def has_blob(call: Endpoint) -> None:
    digest = Digest.parse(call.path_args[0])
    if not call.service.blobs.has(digest):
        raise NotFound(f'blob "{digest}" not found')
    await call.send()


async def stored_blob(call: Endpoint) -> None:
    """The upload has arrived: 201 for a new blob, 200 for one that was there."""
    if isinstance(call.sink, Upload):
        await call.sink.commit()
        await call.send(status=201)
    else:
        await call.send()


def upload(call: Endpoint) -> Sink:
    digest = Digest.parse(call.path_args[0])
    blobs = call.service.blobs
    return Discarded() if blobs.has(digest) else Upload(blobs.writer(), digest)


async def cancel(call: Endpoint) -> None:
    request_id = call.path_args[0]
    if not call.service.requests.cancel(request_id):
        raise NotFound(f'request "{request_id}" not found')
    await call.send(native_reply.encode({"id": request_id, "state": "cancelled"}))


async def queue(call: Endpoint) -> None:
    await call.send(native_models.queue(call.service.requests.queue()))


async def livez(call: Endpoint) -> None:
    await call.send(b"ok", _TEXT)


async def readyz(call: Endpoint) -> None:
    """Ready when the store can be read, without much waiting: a read-only one serves its models, too."""
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await asyncio.to_thread(call.service.store.names)
    except OllamaError as error:
        await call.send(error.message.encode(), _TEXT, 503)
    except TimeoutError:
        await call.send(b"the disk of the model store does not answer", _TEXT, 503)
    else:
        await call.send(b"ok", _TEXT)


async def metrics(call: Endpoint) -> None:
    service = call.service
    engines: Sequence[tuple[str, Mapping[str, Any]]] = ()
    with contextlib.suppress(TimeoutError):  # a runner in the middle of a long step answers after it
        async with asyncio.timeout(_ENGINE_SECONDS):
            engines = await service.runner_stats()
    text = await call.state.metrics.text(
        busy=call.state.busy,
        queue=service.requests.queue(),
        running=service.running(),
        engines=engines,
        store=service.store,
    )
    await call.send(text, CONTENT_TYPE)


def refuse(error: OllamaError) -> Callable[[Endpoint], Awaitable[None]]:
    """A route that only ever says no."""

    async def run(call: Endpoint) -> None:
        raise error

    return run


def fixed(body: str) -> Callable[[Endpoint], Awaitable[None]]:
    async def run(call: Endpoint) -> None:
        await call.send(body.encode())

    return run


def _read(run: Callable[[Endpoint], Awaitable[None]]) -> Mapping[str, Route]:
    return {"HEAD": Route(run), "GET": Route(run)}


_NOT_SIGNED_IN = Route(refuse(Unauthorized("you are not currently signed in")))


def _web(what: str) -> Mapping[str, Route]:
    return {"POST": Route(refuse(Forbidden(f"ollama cloud is disabled: {what} is unavailable")))}


ROUTES: dict[str, Mapping[str, Route]] = {
    "/": _read(root),
    "/api/version": _read(version),
    "/api/status": {"GET": Route(status)},
    "/api/generate": {"POST": Route(generate, _IMAGES)},
    "/api/chat": {"POST": Route(chat, _IMAGES)},
    "/api/embed": {"POST": Route(embed)},
    "/api/embeddings": {"POST": Route(embeddings)},
    "/api/rerank": {"POST": Route(rerank)},
    "/v1/rerank": {"POST": Route(rerank, error=native_reply.openai_error)},
    "/api/tokenize": {"POST": Route(tokenize)},
    "/api/detokenize": {"POST": Route(detokenize)},
    "/api/tags": _read(tags),
    "/api/show": {"POST": Route(show)},
    "/api/create": {"POST": Route(create)},
    "/api/copy": {"POST": Route(copy)},
    "/api/delete": {"DELETE": Route(delete)},
    "/api/pull": {"POST": Route(pull)},
    "/api/push": {"POST": Route(push)},
    "/api/blobs/([^/]+)": {"HEAD": Route(has_blob), "POST": Route(stored_blob, sink=upload)},
    "/api/ps": {"GET": Route(ps)},
    "/api/me": {"POST": Route(refuse(Unauthorized("unauthorized")))},
    "/api/signout": {"POST": _NOT_SIGNED_IN},
    "/api/user/keys/([^/]+)": {"DELETE": _NOT_SIGNED_IN},
    "/api/experimental/web_search": _web("web search"),
    "/api/experimental/web_fetch": _web("web fetch"),
    "/api/experimental/model-recommendations": {"GET": Route(fixed('{"recommendations":[]}'))},
    "/api/requests/([^/]+)": {"DELETE": Route(cancel)},
    "/api/queue": {"GET": Route(queue)},
    "/livez": {"GET": Route(livez)},
    "/readyz": {"GET": Route(readyz)},
    "/metrics": {"GET": Route(metrics)},
}
