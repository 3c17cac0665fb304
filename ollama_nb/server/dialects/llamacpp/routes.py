"""The routes of llama-server's API. Without ``model`` in a request, they use the model that was loaded last."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace

from ollama_nb.api.events import Delta, Event
from ollama_nb.api.requests import TokenizeRequest
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.llamacpp import replies, requests
from ollama_nb.server.dialects.llamacpp.replies import ERRORS, JSON, InfillReply
from ollama_nb.server.dialects.llamacpp.requests import InfillBody
from ollama_nb.server.dialects.native.routes import from_headers
from ollama_nb.server.dialects.openai.requests import read_chat
from ollama_nb.server.handler import OllamaHandler, Route, closing
from ollama_nb.server.keys import INFER, READ
from ollama_nb.server.relay import to_neighbour

_SHOWN_NAMES = 10  # models that an error names


async def infill(call: OllamaHandler) -> None:
    body, _ = await call.read("InfillRequest", requests.read_infill)
    model = await _model(call, body.request.model)
    body = replace(body, request=replace(body.request, **from_headers(call), model=model))
    await call.send_events(_limited(call, body), InfillReply(body), stream=body.stream)


async def apply_template(call: OllamaHandler) -> None:
    body, _ = await call.read("ApplyTemplateRequest", read_chat)
    chat = body.request
    model = await _model(call, chat.model)
    request = TokenizeRequest(model=model, messages=chat.messages, tools=chat.tools, think=chat.think)
    await call.send(await call.state.in_worker(replies.prompt, await call.service.render(request)), JSON)


async def health(call: OllamaHandler) -> None:
    await call.send(replies.encode({"status": "ok"}), JSON)


async def props(call: OllamaHandler) -> None:
    running = call.service.running()
    name = call.get_query_argument("model", "") or (running[0].model.name.short if running else "")
    shown = await call.service.show(name) if name else None
    loaded = next((found for found in running if shown and found.model.digest == shown.model.digest), None)
    await call.send(replies.properties(shown, loaded), JSON)


async def _limited(call: OllamaHandler, body: InfillBody) -> AsyncGenerator[Event, None]:
    """The reply, which is cancelled at its limits: the last event has its figures then, too."""
    end = InfillEnd(body.seconds, body.indent)
    async with closing(call.service.generate(body.request)) as events:
        async for event in events:
            if isinstance(event, Delta):
                event = replace(event, content=end.kept(event.content, time.perf_counter()))
                if end.reached:
                    call.service.requests.cancel(call.id)
            yield event


class InfillEnd:
    """Finds the end of a reply by time and by indentation. Text after the end is left out."""

    def __init__(self, seconds: float, indent: int) -> None:
        self.reached = False
        self._seconds, self._indent = seconds, indent
        self._began: float | None = None
        self._blanks: int | None = None  # before the text of the current line; None after it, and in the first line
        self._has_line_break = False

    def kept(self, text: str, now: float) -> str:
        """The part of a piece of text that comes before the end."""
        if self.reached:
            return ""
        self._began = now if self._began is None else self._began
        at = self._dedent(text) if self._indent else len(text)
        self._has_line_break |= "\n" in text
        is_late = self._has_line_break and 0 < self._seconds < now - self._began
        self.reached = at < len(text) or is_late
        return text[:at]

    def _dedent(self, text: str) -> int:
        """Where the text of the first line with too few blanks begins; otherwise its length."""
        for at, letter in enumerate(text):
            if letter == "\n":
                self._blanks = 0
            elif self._blanks is not None and letter in " \t":
                self._blanks += 1
            elif self._blanks is not None:
                if self._blanks < self._indent:
                    return at
                self._blanks = None
        return len(text)


async def _model(call: OllamaHandler, name: str) -> str:
    """The model that a request names, the one that was used last, or the only one of the store. Raises BadRequest."""
    if name:
        return name
    if running := call.service.running():
        return running[0].model.name.short
    names = [listed.model.name.short for listed in await call.service.list()]
    if len(names) == 1:
        return names[0]
    which = f"name one of {', '.join(names[:_SHOWN_NAMES])}" if names else "pull a model first"
    raise BadRequest(f'no model is loaded and the request has no "model": {which}', field="model")


ROUTES: dict[str, Mapping[str, Route]] = {
    "/infill": {"POST": Route(infill, INFER, relay=to_neighbour("generate"), errors=ERRORS)},
    "/apply-template": {"POST": Route(apply_template, INFER, errors=ERRORS)},
    "/health": {"GET": Route(health, READ, errors=ERRORS)},
    "/props": {"GET": Route(props, READ, errors=ERRORS)},
}
"""Path pattern below the prefix → HTTP method → route."""
