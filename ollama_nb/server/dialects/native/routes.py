"""The routes of the native API and of the server itself: one function per route, and at the end the table of paths.

Each function reads the body, calls the service and writes the reply. To add a route, write a function and a row.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ollama_nb import __version__
from ollama_nb.api.names import Digest
from ollama_nb.errors import Forbidden, NotFound, OllamaError, Unauthorized
from ollama_nb.server import description
from ollama_nb.server.access import offered_key
from ollama_nb.server.dialects.native import replies, requests
from ollama_nb.server.handler import OllamaHandler, Route
from ollama_nb.server.keys import INFER, READ, WRITE
from ollama_nb.server.limits import MAX_IMAGES
from ollama_nb.server.metrics import CONTENT_TYPE
from ollama_nb.server.relay import to_neighbour
from ollama_nb.server.streams import BodySink, DiscardedBody, UploadedBlob

OLLAMA_API_VERSION = "0.17.0"  # the version of Ollama's API that this server implements; clients compare it

_READY_SECONDS = 2.0  # for the store to answer /readyz, and for a child process to start
_STATS_SECONDS = 0.2  # for the runners to answer /metrics
_TEXT = "text/plain; charset=utf-8"


async def root(call: OllamaHandler) -> None:
    await call.send(b"Ollama is running", _TEXT)


async def version(call: OllamaHandler) -> None:
    await call.send(replies.encode({"version": OLLAMA_API_VERSION, "ollama_nb": __version__}))


async def status(call: OllamaHandler) -> None:
    await call.send(b'{"cloud":{"disabled":true,"source":"config"}}')


async def chat(call: OllamaHandler) -> None:
    request, body = await call.read("ChatRequest", requests.read_chat)
    request = replace(request, **from_headers(call), run_record=call.wants("Run-Record"))
    reply = replies.ChatReply(request.model, call.id, n=request.n)
    await call.send_events(call.service.chat(request), reply, stream=requests.wants_stream(body))


async def generate(call: OllamaHandler) -> None:
    request, body = await call.read("GenerateRequest", requests.read_generate)
    request = replace(request, **from_headers(call), run_record=call.wants("Run-Record"))
    reply = replies.GenerateReply(request.model, call.id, n=request.n)
    await call.send_events(call.service.generate(request), reply, stream=requests.wants_stream(body))


async def embed(call: OllamaHandler) -> None:
    request, _ = await call.read("EmbedRequest", requests.read_embed)
    result = await call.service.embed(replace(request, **from_headers(call)))
    await call.send_pieces(await call.state.in_worker(replies.embed, request.model, result))


async def embeddings(call: OllamaHandler) -> None:
    request, _ = await call.read("EmbeddingRequest", requests.read_embeddings)
    result = await call.service.embeddings(replace(request, request_id=call.id))
    await call.send(await call.state.in_worker(replies.embeddings, result))


async def rerank(call: OllamaHandler) -> None:
    request, _ = await call.read("RerankRequest", requests.read_rerank)
    result = await call.service.rerank(replace(request, **from_headers(call)))
    await call.send(await call.state.in_worker(replies.ranking, request, result))


async def tokenize(call: OllamaHandler) -> None:
    request, _ = await call.read("TokenizeRequest", requests.read_tokenize)
    tokens = await call.service.tokenize(request)
    await call.send(await call.state.in_worker(replies.encode, {"model": request.model, "tokens": tokens}))


async def detokenize(call: OllamaHandler) -> None:
    (model, tokens), _ = await call.read("DetokenizeRequest", requests.read_detokenize)
    content = await call.service.detokenize(model, tokens)
    await call.send(await call.state.in_worker(replies.encode, {"model": model, "content": content}))


async def tags(call: OllamaHandler) -> None:
    await call.send(await call.state.in_worker(replies.tags, await call.service.list()))


async def show(call: OllamaHandler) -> None:
    request, _ = await call.read("ShowRequest", requests.read_show)
    shown = await call.service.show(request.model, request.verbose, request.system, request.options)
    # This client lists models by their base name and must find the name that it can request.
    copilot = call.request.headers.get("User-Agent", "").startswith("GitHubCopilotChat/")
    await call.send(await call.state.in_worker(replies.show, shown, request.model if copilot else ""))


async def ps(call: OllamaHandler) -> None:
    await call.send(replies.ps(call.service.running()))


async def create(call: OllamaHandler) -> None:
    request, body = await call.read("CreateRequest", requests.read_create)
    request = replace(request, **from_headers(call))
    await call.send_progress(call.service.create(request), stream=requests.wants_stream(body))


async def pull(call: OllamaHandler) -> None:
    request, body = await call.read("PullRequest", requests.read_pull)
    request = replace(request, request_id=call.id)
    await call.send_progress(call.service.pull(request), stream=requests.wants_stream(body))


async def push(call: OllamaHandler) -> None:
    request, body = await call.read("PushRequest", requests.read_push)
    request = replace(request, request_id=call.id)
    await call.send_progress(call.service.push(request), stream=requests.wants_stream(body))


async def copy(call: OllamaHandler) -> None:
    body = await call.fields("CopyRequest")
    await call.service.copy(body.text("source"), body.text("destination"))
    await call.send()


async def delete(call: OllamaHandler) -> None:
    body = await call.fields("DeleteRequest")
    await call.service.delete(body.text("model", "name"))
    await call.send()


async def has_blob(call: OllamaHandler) -> None:
    digest = Digest.parse(call.path_args[0])
    if not call.service.blobs.has(digest):
        raise NotFound(f'blob "{digest}" not found')
    await call.send()


def open_upload(call: OllamaHandler) -> BodySink:
    digest = Digest.parse(call.path_args[0])
    blobs = call.service.blobs
    return DiscardedBody() if blobs.has(digest) else UploadedBlob(blobs.writer(), digest)


async def upload_blob(call: OllamaHandler) -> None:
    """Runs when the body has been received: 201 for a new blob, 200 for one that the store has already."""
    if isinstance(call.sink, UploadedBlob):
        await call.sink.commit()
        await call.send(status=201)
    else:
        await call.send()


async def cancel(call: OllamaHandler) -> None:
    request_id = call.path_args[0]
    if not call.service.requests.cancel(request_id):
        raise NotFound(f'request "{request_id}" not found')
    await call.send(replies.encode({"id": request_id, "state": "cancelled"}))


async def queue(call: OllamaHandler) -> None:
    unfinished = await asyncio.to_thread(call.service.batches.store.unfinished)
    await call.send(await call.state.in_worker(replies.queue, call.service.requests.queue(), unfinished))


async def livez(call: OllamaHandler) -> None:
    await call.send(b"ok", _TEXT)


async def readyz(call: OllamaHandler) -> None:
    """Ready if the store can be read (it need not be writable) and a child can be started, each in time."""
    late = "the disk of the model store does not answer"
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await asyncio.to_thread(call.service.store.names)
        late = f"no child process started within {_READY_SECONDS:.0f} s"
        async with asyncio.timeout(_READY_SECONDS):
            await call.service.check_start()
    except OllamaError as error:
        await call.send(call.service.public(error).message.encode(), _TEXT, 503)
    except TimeoutError:
        await call.send(late.encode(), _TEXT, 503)
    else:
        await call.send(b"ok", _TEXT)


async def metrics(call: OllamaHandler) -> None:
    service = call.service
    engines: Sequence[tuple[str, Mapping[str, Any]]] = ()
    with contextlib.suppress(TimeoutError):  # a runner answers between two steps, and a step can be long
        async with asyncio.timeout(_STATS_SECONDS):
            engines = await service.runner_stats()
    text = await call.state.metrics.text(
        busy=call.state.busy,
        queue=service.requests.queue(),
        running=service.running(),
        engines=engines,
        store=service.store,
        batches=service.batches.store,
    )
    await call.send(text, CONTENT_TYPE)


async def openapi(call: OllamaHandler) -> None:
    prefix = call.request.path.removesuffix("/openapi.json")
    await call.send(await asyncio.to_thread(description.as_json, prefix))


async def docs(call: OllamaHandler) -> None:
    prefix = call.request.path.removesuffix("/docs")
    address = f"{call.request.protocol}://{call.request.host}{prefix}"
    with_key = bool(prefix or offered_key(call.request.headers))  # Jupyter always needs a key
    call.set_header("Content-Security-Policy", description.POLICY)
    page = await asyncio.to_thread(description.page, address, with_key=with_key)
    await call.send(page, "text/html; charset=utf-8")


async def recommendations(call: OllamaHandler) -> None:
    await call.send(b'{"recommendations":[]}')


async def not_signed_in(call: OllamaHandler) -> None:
    raise Unauthorized("you are not currently signed in")


async def me(call: OllamaHandler) -> None:
    raise Unauthorized("unauthorized")


async def web_search(call: OllamaHandler) -> None:
    raise Forbidden("ollama cloud is disabled: web search is unavailable")


async def web_fetch(call: OllamaHandler) -> None:
    raise Forbidden("ollama cloud is disabled: web fetch is unavailable")


def from_headers(call: OllamaHandler) -> dict[str, Any]:
    """The fields of a request that come from the HTTP headers."""
    return {"request_id": call.id, "strict": call.wants("Strict")}


def get(run: Callable[[OllamaHandler], Awaitable[None]]) -> Mapping[str, Route]:
    return {"GET": Route(run, READ)}


def get_and_head(run: Callable[[OllamaHandler], Awaitable[None]]) -> Mapping[str, Route]:
    return {"HEAD": Route(run, READ), "GET": Route(run, READ)}


ROUTES: dict[str, Mapping[str, Route]] = {
    "/": get_and_head(root),
    "/api/version": get_and_head(version),
    "/api/status": get(status),
    # Inference. ``relay``: if another server of this user has the model loaded, it answers instead.
    "/api/generate": {"POST": Route(generate, INFER, MAX_IMAGES, relay=to_neighbour("generate"))},
    "/api/chat": {"POST": Route(chat, INFER, MAX_IMAGES, relay=to_neighbour("chat"))},
    "/api/embed": {"POST": Route(embed, INFER, relay=to_neighbour("embed"))},
    "/api/embeddings": {"POST": Route(embeddings, INFER, relay=to_neighbour("embed"))},
    "/api/rerank": {"POST": Route(rerank, INFER, relay=to_neighbour("rerank"))},
    "/api/tokenize": {"POST": Route(tokenize, INFER)},
    "/api/detokenize": {"POST": Route(detokenize, INFER)},
    # Models.
    "/api/tags": get_and_head(tags),
    "/api/show": {"POST": Route(show, READ)},
    "/api/ps": get(ps),
    "/api/create": {"POST": Route(create, WRITE)},
    "/api/copy": {"POST": Route(copy, WRITE)},
    "/api/delete": {"DELETE": Route(delete, WRITE)},
    "/api/pull": {"POST": Route(pull, WRITE)},
    "/api/push": {"POST": Route(push, WRITE)},
    "/api/blobs/([^/]+)": {"HEAD": Route(has_blob, READ), "POST": Route(upload_blob, WRITE, open_body=open_upload)},
    # Ollama's cloud, which does not exist here.
    "/api/me": {"POST": Route(me, READ)},
    "/api/signout": {"POST": Route(not_signed_in)},
    "/api/user/keys/([^/]+)": {"DELETE": Route(not_signed_in)},
    "/api/experimental/web_search": {"POST": Route(web_search)},
    "/api/experimental/web_fetch": {"POST": Route(web_fetch)},
    "/api/experimental/model-recommendations": get(recommendations),
    # The server itself.
    "/api/requests/([^/]+)": {"DELETE": Route(cancel, WRITE)},
    "/api/queue": get(queue),
    "/livez": get(livez),
    "/readyz": get(readyz),
    "/metrics": get(metrics),
    "/openapi.json": get(openapi),
    "/docs": get(docs),
}
"""Path pattern below the prefix → HTTP method → route."""
