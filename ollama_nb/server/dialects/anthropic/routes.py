"""The routes of Anthropic's API. Those below ``/v1/models`` answer requests with the header ``anthropic-version``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

from ollama_nb.api.encode import go_quote
from ollama_nb.api.events import Event
from ollama_nb.api.models import Listed
from ollama_nb.api.requests import ChatRequest
from ollama_nb.errors import BadRequest, ThinkingUnsupported
from ollama_nb.server.dialects.anthropic import replies, requests
from ollama_nb.server.dialects.anthropic.replies import ERRORS, MessageReply
from ollama_nb.server.dialects.encoder import JSON
from ollama_nb.server.dialects.native.routes import from_headers
from ollama_nb.server.handler import OllamaHandler, Route, closing
from ollama_nb.server.keys import INFER, READ
from ollama_nb.server.limits import MAX_IMAGES
from ollama_nb.server.relay import to_neighbour
from ollama_nb.service.service import Service

VERSION_HEADER = "anthropic-version"  # clients of Anthropic send it with every request
_MAX_PAGE = 1000  # models
_CANNOT_THINK = "ignored thinking: this model cannot think"


async def messages(call: OllamaHandler) -> None:
    request, body = await call.read("MessagesRequest", requests.read_message)
    request = replace(request, **from_headers(call), run_record=call.wants("Run-Record"))
    reply = MessageReply(request.model, call.id, request.options.get("stop", ()))
    await call.send_events(_chat(call.service, request), reply, stream=requests.wants_stream(body))


async def count_tokens(call: OllamaHandler) -> None:
    (request, warnings), _ = await call.read("CountTokensRequest", requests.read_count)
    if warnings and call.wants("Strict"):
        raise BadRequest("; ".join(warnings))
    try:
        tokens = await call.service.tokenize(request)
    except ThinkingUnsupported:
        if call.wants("Strict"):
            raise
        warnings = (*warnings, _CANNOT_THINK)
        tokens = await call.service.tokenize(replace(request, think=None))
    await call.send(replies.count(len(tokens), warnings), JSON)


async def models(call: OllamaHandler) -> None:
    page, has_more = _page(call, await call.service.list())
    await call.send(replies.models(page, has_more=has_more), JSON)


async def model(call: OllamaHandler) -> None:
    name = call.path_args[0]
    shown = await call.service.show(name)
    context_length = shown.gguf.arch("context_length", 0) if shown.gguf else 0
    await call.send(replies.model(shown.model, context_length, name), JSON)


async def _chat(service: Service, request: ChatRequest) -> AsyncGenerator[Event, None]:
    """The reply. As in Ollama, a model that cannot think answers without thinking, unless the request is strict."""
    try:
        async with closing(service.chat(request)) as events:
            async for event in events:
                yield event
    except ThinkingUnsupported:
        if request.strict:
            raise
    else:
        return
    ignored = (*request.ignored, _CANNOT_THINK)
    async with closing(service.chat(replace(request, think=None, think_budget=None, ignored=ignored))) as events:
        async for event in events:
            yield event


def _page(call: OllamaHandler, found: Sequence[Listed]) -> tuple[Sequence[Listed], bool]:
    """The models that the query asks for, and whether there are more in its direction. Raises BadRequest."""
    names = [listed.model.name.short for listed in found]
    limit = _limit(call.get_query_argument("limit", "20"))
    if before := call.get_query_argument("before_id", ""):
        end = _place(names, before, "before_id")
        return found[max(0, end - limit) : end], end > limit
    after = call.get_query_argument("after_id", "")
    start = _place(names, after, "after_id") + 1 if after else 0
    return found[start : start + limit], start + limit < len(found)


def _limit(text: str) -> int:
    limit = int(text) if text.isdecimal() and len(text) < 9 else 0
    if not 1 <= limit <= _MAX_PAGE:
        raise BadRequest(f"limit: {go_quote(text[:20])} is not a number from 1 to {_MAX_PAGE}", field="limit")
    return limit


def _place(names: Sequence[str], name: str, field: str) -> int:
    if name not in names:
        raise BadRequest(f"{field}: there is no model {go_quote(name[:64])}", field=field)
    return names.index(name)


ROUTES: dict[str, Mapping[str, Route]] = {
    "/v1/messages": {"POST": Route(messages, INFER, MAX_IMAGES, relay=to_neighbour("chat"), errors=ERRORS, zstd=True)},
    "/v1/messages/count_tokens": {"POST": Route(count_tokens, INFER, MAX_IMAGES, errors=ERRORS, zstd=True)},
}
"""Path pattern below the prefix → HTTP method → route."""

MODEL_ROUTES: dict[str, Route] = {
    "/v1/models": Route(models, READ, errors=ERRORS),
    "/v1/models/([^/].*)": Route(model, READ, errors=ERRORS),
}
"""Routes for GET that share their paths with OpenAI's and answer requests with ``VERSION_HEADER``."""
