"""Replies of Anthropic's API: events and models → JSON and server-sent events."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb.api.encode import filled, go_json
from ollama_nb.api.events import Delta, Done, Event, PromptRead, Stats, ToolCallDelta, ToolCalls
from ollama_nb.api.messages import ToolCall
from ollama_nb.api.models import Listed, Model
from ollama_nb.errors import Cancelled, OllamaError
from ollama_nb.server.dialects.encoder import JSON, SSE, SSE_COMMENT, ErrorFormat, GatheredReply, warnings_of
from ollama_nb.server.dialects.gojson import utc

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
SIGNATURE = "b2xsYW1hLW5i"
"""Of all thinking blocks. Clients send it back unchanged, and any signature is accepted."""


def encode(value: Any) -> bytes:
    """One JSON value and a line break, as a body."""
    return (go_json(value) + "\n").encode()


def _event(kind: str, **fields: Any) -> bytes:
    """A server-sent event."""
    return f"event: {kind}\ndata: {go_json({'type': kind, **fields})}\n\n".encode()


def _error_fields(failure: OllamaError, request_id: str) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(failure.status, "api_error")
    return {
        "error": {"type": kind, "message": failure.message, "code": failure.code},
        "request_id": request_id,
    }


def error(failure: OllamaError, request_id: str) -> bytes:
    """The body of an error reply."""
    return encode({"type": "error", **_error_fields(failure, request_id)})


def error_event(failure: OllamaError, request_id: str) -> bytes:
    """The last event of a stream that fails."""
    return _event("error", **_error_fields(failure, request_id))


ERRORS = ErrorFormat(error, error_event, empty_body="EOF", id_header="request-id")


class MessageReply:
    """Writes one message. ``stops`` are the stop sequences of the request: the model has others, which are not shown.

    The stream begins with ``message_start`` as soon as the number of input tokens is known, and comments keep the
    connection open until then. Each block ends when the next one begins.
    """

    whole_type = JSON
    stream_type = SSE

    def __init__(self, model: str, request_id: str, stops: Sequence[str] = ()) -> None:
        self.keep_alive = SSE_COMMENT
        self._id = request_id
        self._stops = stops
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._started = self._called = False
        self._index = -1  # of the newest block
        self._open: object = None  # the kind of the block that is open; for a tool call, its index
        self._streamed_calls: set[int] = set()

    def is_whole(self, event: Event) -> bool:
        return False

    def start(self) -> bytes:
        return b""

    def chunk(self, event: Event) -> bytes:
        match event:
            case PromptRead():
                return self._start(Stats(prompt_tokens=event.prompt_tokens, cached_tokens=event.cached_tokens))
            case Delta():
                return self._start() + self._text(event)
            case ToolCallDelta():
                return self._start() + self._call_piece(event)
            case ToolCalls():
                return self._start() + b"".join(map(self._call, event.calls))
            case Done():
                return self._start(event.stats) + self._close() + self._delta(event)
        return b""

    def end(self) -> bytes:
        return _event("message_stop")

    def fail(self, failure: OllamaError) -> bytes:
        return error_event(failure, self._id)

    def whole(self, events: Sequence[Event]) -> bytes:
        reply = GatheredReply.of(events)
        done = reply.done or Done("stop")
        thinking = {"type": "thinking", "thinking": reply.text.thinking, "signature": SIGNATURE}
        text = {"type": "text", "text": reply.text.content}
        content = [
            *([thinking] if reply.text.thinking else ()),
            *([text] if reply.text.content else ()),
            *({**_call_block(call), "input": call.arguments} for call in reply.calls),
        ]
        return encode(
            {
                **self._message,
                "content": content,
                **self._stopped(done, called=bool(reply.calls)),
                "usage": _usage(done.stats),
                **_additions(done),
            }
        )

    def _start(self, stats: Stats | None = None) -> bytes:
        """The first event, before any other one."""
        if self._started:
            return b""
        self._started, self.keep_alive = True, _event("ping")
        usage = {**_usage(stats), "output_tokens": 0}
        return _event("message_start", message={**self._message, "usage": usage})

    def _text(self, delta: Delta) -> bytes:
        pieces = b""
        if delta.thinking:
            pieces += self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            pieces += self._piece({"type": "thinking_delta", "thinking": delta.thinking})
        if delta.content:
            pieces += self._begin("text", {"type": "text", "text": ""})
            pieces += self._piece({"type": "text_delta", "text": delta.content})
        return pieces

    def _call_piece(self, delta: ToolCallDelta) -> bytes:
        """The next piece of a call's arguments, in a block that begins with the first one."""
        block = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
        pieces = self._begin(delta.index, block)
        self._streamed_calls.add(delta.index)
        if delta.arguments:
            pieces += self._piece({"type": "input_json_delta", "partial_json": delta.arguments})
        return pieces

    def _call(self, call: ToolCall) -> bytes:
        """A complete call, whose block there is already if its arguments were streamed."""
        self._called = True
        if call.index in self._streamed_calls:
            return b""
        arguments = {"type": "input_json_delta", "partial_json": go_json(call.arguments)}
        return self._begin(call.index, _call_block(call)) + self._piece(arguments) + self._close()

    def _begin(self, kind: object, block: Mapping[str, Any]) -> bytes:
        """End the open block and begin one; nothing if the open block is of that kind."""
        if self._open == kind:
            return b""
        ended = self._close()
        self._open = kind
        self._index += 1
        return ended + _event("content_block_start", index=self._index, content_block=block)

    def _piece(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        thinking, self._open = self._open == "thinking", None
        signed = self._piece({"type": "signature_delta", "signature": SIGNATURE}) if thinking else b""
        return signed + _event("content_block_stop", index=self._index)

    def _delta(self, done: Done) -> bytes:
        """The end of the message, with its figures and warnings."""
        delta = self._stopped(done, called=self._called)
        return _event("message_delta", delta=delta, usage=_usage(done.stats), **_additions(done))

    def _stopped(self, done: Done, *, called: bool) -> dict[str, Any]:
        """Why the message ended; a tool call comes before other reasons.

        Raises Cancelled for a message that was cancelled: Anthropic has no reason for one that is not complete.
        """
        if done.reason == "cancelled":
            raise Cancelled
        sequence = done.stop_sequence if done.stop_sequence in self._stops else None
        if called:
            reason = "tool_use"
        elif done.reason == "length":
            reason = "max_tokens"
        else:
            reason = "stop_sequence" if sequence else "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence if reason == "stop_sequence" else None}


def _additions(done: Done) -> dict[str, Any]:
    """Our own keys at the end of a message."""
    return filled({"warnings": warnings_of(done), "run": done.run})


def _call_block(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def _usage(stats: Stats | None) -> dict[str, Any]:
    """The figures of a message. Tokens from the prefix cache count separately, as in Anthropic's API."""
    stats = stats or Stats()
    details = {"thinking_tokens": stats.reasoning_tokens} if stats.reasoning_tokens else None
    return {
        "input_tokens": stats.prompt_tokens - stats.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.cached_tokens,
        "output_tokens": stats.output_tokens,
        **filled({"output_tokens_details": details}),
    }


def count(tokens: int, warnings: Sequence[str]) -> bytes:
    """The reply of ``/v1/messages/count_tokens``."""
    return encode({"input_tokens": tokens, **filled({"warnings": warnings})})


def model(found: Model, context_length: int, id: str) -> bytes:
    """A model, under the name ``id`` that the client uses."""
    return encode(_model_object(found, context_length, id))


def models(page: Sequence[Listed], *, has_more: bool) -> bytes:
    """A page of models."""
    data = [_model_object(listed.model, listed.context_length, listed.model.name.short) for listed in page]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return encode({"data": data, "has_more": has_more, "first_id": first, "last_id": last})


def _model_object(found: Model, context_length: int, id: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": id,
        "display_name": found.name.short,
        "created_at": utc(int(found.modified_at) * 1_000_000_000),
        "lifecycle": "active",
        "max_input_tokens": context_length or None,
    }
