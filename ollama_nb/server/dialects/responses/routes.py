"""The routes of the Responses API.

Normally the request waits for its response. A client that disconnects ends it; if a stream had begun, the response is
stored as ``cancelled`` with the output so far, so that the conversation can be continued. With ``background`` a task of
the server generates the response, and requests only look at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from ollama_nb.api.events import Done, Event
from ollama_nb.api.requests import ChatRequest
from ollama_nb.errors import BadRequest, OllamaError, ResponseNotFound, ShuttingDown, StoreError
from ollama_nb.server.dialects.encoder import SSE, SSE_COMMENT
from ollama_nb.server.dialects.native.routes import from_headers
from ollama_nb.server.dialects.openai.replies import encode
from ollama_nb.server.dialects.responses.background import POLL_SECONDS, BackgroundResponse
from ollama_nb.server.dialects.responses.replies import ERRORS, RUNNING, ResponseEncoder, ResponseReply, last_frame
from ollama_nb.server.dialects.responses.requests import ResponsesRequest, read_responses
from ollama_nb.server.dialects.responses.store import Item, ResponseStore, StoredResponse
from ollama_nb.server.handler import KEEP_ALIVE, OllamaHandler, Route, closing
from ollama_nb.server.keys import INFER
from ollama_nb.server.limits import MAX_IMAGES
from ollama_nb.server.relay import to_neighbour

_MAX_LISTED = 100  # items in one list
_LISTED = 20  # items in a list whose length the request does not give
_MAX_DIGITS = 18  # of a query argument that is a number


async def create(call: OllamaHandler) -> None:
    request, _ = await call.read("ResponsesRequest", read_responses)
    items, chat = await asyncio.to_thread(_conversation, call.state.responses.store, request)
    chat = replace(chat, **from_headers(call), run_record=call.wants("Run-Record"))
    reply = ResponseReply(request)
    if request.background:
        if not chat.model:
            raise BadRequest("model is required", field="model")
        await call.service.digest(chat.model)  # an unknown model is an error of this request, not of a later one
        response = BackgroundResponse(reply, items, call.state.responses)
        await response.start(call.service.chat(replace(chat, request_id=request.id)))
        call.state.enter(response.task)
        if request.stream:
            await _send_frames(call, response.frames(-1))
        else:
            await call.send(await call.state.in_worker(encode, reply.object))
    else:
        encoder = ResponseEncoder(reply)
        source = _recorded(call, call.service.chat(chat), encoder, items)
        await call.send_events(source, encoder, stream=request.stream)


async def retrieve(call: OllamaHandler) -> None:
    response_id = call.path_args[0]
    if call.get_query_argument("stream", "false").lower() in ("true", "1"):
        await _send_frames(call, _stored_frames(call, response_id, _whole_argument(call, "starting_after", -1)))
    else:
        await call.send(await call.state.in_worker(encode, await _find(call, response_id)))


async def delete(call: OllamaHandler) -> None:
    response_id = call.path_args[0]
    responses = call.state.responses
    if running := responses.running.get(response_id):
        await running.cancel()
        responses.running.pop(response_id, None)
    await asyncio.to_thread(responses.store.delete, response_id)
    await call.send(encode({"id": response_id, "object": "response", "deleted": True}))


async def cancel(call: OllamaHandler) -> None:
    """Only responses in the background can be cancelled; the client of another one disconnects."""
    response_id = call.path_args[0]
    response = await _find(call, response_id)
    if not response["background"]:
        raise BadRequest("only a response that was created with background: true can be cancelled")
    responses = call.state.responses
    if running := responses.running.get(response_id):
        await running.cancel()
    if response_id not in responses.running:
        response = (await asyncio.to_thread(responses.store.cancel, response_id)).response
    await call.send(await call.state.in_worker(encode, response))


async def input_items(call: OllamaHandler) -> None:
    """The items that the model read, latest first; those of the responses that this one continues are among them."""
    record = await asyncio.to_thread(call.state.responses.store.get, call.path_args[0])
    limit = _whole_argument(call, "limit", _LISTED)
    order = call.get_query_argument("order", "desc")
    if not 1 <= limit <= _MAX_LISTED or order not in ("asc", "desc"):
        raise BadRequest(f'limit must be from 1 to {_MAX_LISTED}, and order "asc" or "desc"')
    items = record.input if order == "asc" else record.input[::-1]
    listed, has_more = _page(items, call.get_query_argument("after", ""), limit)
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {"first_id": None, "last_id": None}
    page = {"object": "list", "data": listed, **ends, "has_more": has_more}
    await call.send(await call.state.in_worker(encode, page))


def _page(items: Sequence[Item], after: str, limit: int) -> tuple[Sequence[Item], bool]:
    """The next ``limit`` items behind the one with the id ``after``, and whether there are more."""
    start = 0
    if after:
        start = next((at + 1 for at, item in enumerate(items) if item["id"] == after), -1)
        if start < 0:
            raise BadRequest(f'after: there is no item "{after[:80]}" in this list')
    return items[start : start + limit], start + limit < len(items)


def _conversation(store: ResponseStore, request: ResponsesRequest) -> tuple[tuple[Item, ...], ChatRequest]:
    """The items of the whole conversation, and the request for its next message.

    Raises BadRequest, ResponseNotFound and NotFound.
    """
    history: tuple[Item, ...] = ()
    if request.previous:
        try:
            previous = store.get(request.previous)
        except ResponseNotFound as error:
            raise ResponseNotFound(error.message, status=400, field="previous_response_id") from None
        if previous.owner:
            text = f'response "{previous.id}" is still being generated: wait for its end, or cancel it'
            raise BadRequest(text, field="previous_response_id")
        history = previous.items
    items = (*history, *_resolved(store, request.input))
    return items, request.chat_about(items)


def _resolved(store: ResponseStore, items: Iterable[Item]) -> Iterable[Item]:
    """The items, with each reference replaced by the item that it names."""
    return (store.item(item["id"]) if item["type"] == "item_reference" else item for item in items)


async def _recorded(
    call: OllamaHandler, source: AsyncIterator[Event], encoder: ResponseEncoder, items: Sequence[Item]
) -> AsyncGenerator[Event, None]:
    """Add the events to the reply, and store it before the client sees its end."""
    reply = encoder.reply
    try:
        async with closing(source) as events:
            async for event in events:
                reply.add(event)
                if isinstance(event, Done):
                    await _store(call, reply, items)
                    reply.conclude()
                yield event
        if reply.status in RUNNING:
            raise OllamaError("the model's reply ended prematurely")
    except Exception as error:  # the handler reports it, and logs what is not an OllamaError
        failure = error if isinstance(error, OllamaError) else OllamaError("internal error, see the server's log")
        await _store_broken(call, encoder, items, failure)
        raise
    except (GeneratorExit, asyncio.CancelledError):
        if reply.status in RUNNING:
            await _store_broken(call, encoder, items, ShuttingDown() if call.state.draining else None)
        raise


async def _store_broken(
    call: OllamaHandler, encoder: ResponseEncoder, items: Sequence[Item], error: OllamaError | None
) -> None:
    """End a reply before its time. It is stored only if the client has seen its id."""
    if error is None:
        encoder.reply.cancel()
    else:
        encoder.reply.fail(call.service.public(error))
    if encoder.begun:
        await _store(call, encoder.reply, items)
    encoder.reply.conclude()


async def _store(call: OllamaHandler, reply: ResponseReply, items: Sequence[Item]) -> None:
    if not reply.stored:
        return
    try:
        await call.state.responses.put(StoredResponse(reply.object, tuple(items)))
    except StoreError as error:
        reply.not_stored(call.service.public(error))


async def _find(call: OllamaHandler, response_id: str) -> Mapping[str, object]:
    """The response as it is now. Raises ResponseNotFound."""
    running = call.state.responses.running
    if response_id in running and running[response_id].reply.status not in RUNNING:
        await asyncio.wait({running[response_id].task})  # its end is visible when it is stored
    if response_id in running:
        return running[response_id].reply.object
    return (await asyncio.to_thread(call.state.responses.store.get, response_id)).response


async def _stored_frames(call: OllamaHandler, response_id: str, after: int) -> AsyncGenerator[str, None]:
    """The frames of a background stream whose sequence numbers are above ``after``, until the response has ended."""
    running = call.state.responses.running.get(response_id)
    store = call.state.responses.store
    record = running.record if running else await asyncio.to_thread(store.get, response_id)
    if record.frames is None:
        raise BadRequest("only a response that was created with background and stream can be streamed later")
    if running:
        async for frame in running.frames(after):
            yield frame
        return
    while record.owner:  # another server generates it, and stores the frames at the end
        await asyncio.sleep(POLL_SECONDS)
        record = await asyncio.to_thread(store.get, response_id)
    # A response that ended without its owner has no frames.
    for frame in (record.frames or ())[after + 1 :] or [last_frame(record.response, after + 1)]:
        yield frame


async def _send_frames(call: OllamaHandler, frames: AsyncGenerator[str, None]) -> None:
    """Send frames, and comments while none comes, so that clients see the headers and keep the connection."""
    async with aclosing(frames):
        coming, patience = asyncio.ensure_future(anext(frames, None)), POLL_SECONDS
        try:
            while True:
                await asyncio.wait({coming}, timeout=patience)
                patience = KEEP_ALIVE
                frame = coming.result() if coming.done() else SSE_COMMENT.decode()
                if frame is None:
                    break
                call.start_stream(SSE, lambda error: ERRORS.in_stream(error, call.id))
                await call.send_piece(frame.encode())
                if coming.done():
                    coming = asyncio.ensure_future(anext(frames, None))
        finally:
            coming.cancel()
            await asyncio.wait({coming})
    await call.end()


def _whole_argument(call: OllamaHandler, name: str, default: int) -> int:
    text = call.get_query_argument(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise BadRequest(f"{name} must be a whole number", field=name)
    return int(text)


ROUTES: dict[str, Mapping[str, Route]] = {
    # Stored responses hold prompts, so that a key needs the same scope for all of these routes.
    "/v1/responses": {"POST": Route(create, INFER, MAX_IMAGES, relay=to_neighbour("chat"), errors=ERRORS, zstd=True)},
    "/v1/responses/([^/]+)": {
        "GET": Route(retrieve, INFER, errors=ERRORS),
        "DELETE": Route(delete, INFER, errors=ERRORS),
    },
    "/v1/responses/([^/]+)/cancel": {"POST": Route(cancel, INFER, errors=ERRORS)},
    "/v1/responses/([^/]+)/input_items": {"GET": Route(input_items, INFER, errors=ERRORS)},
}
"""Path pattern below the prefix → HTTP method → route."""
