"""Replies of OpenAI's API: events and results → JSON and server-sent events."""

from __future__ import annotations

from typing import Any

from ollama_nb.api.encode import go_json
from ollama_nb.errors import OllamaError
from ollama_nb.server.dialects.encoder import ErrorFormat

DONE = b"data: [DONE]\n\n"  # the end of every stream
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def encode(value: Any) -> bytes:
    """One JSON value and a line break, as a body."""
    return (go_json(value) + "\n").encode()


def frame(value: Any) -> bytes:
    """One JSON value as a server-sent event."""
    return f"data: {go_json(value)}\n\n".encode()


def error_object(failure: OllamaError) -> dict[str, Any]:
    """The error envelope of OpenAI's API."""
    kind = _KINDS.get(failure.status) or ("invalid_request_error" if 400 <= failure.status < 500 else "api_error")
    param = failure.field or None
    return {"error": {"message": failure.message, "type": kind, "param": param, "code": failure.code}}


def error(failure: OllamaError) -> bytes:
    """The body of an error reply."""
    return encode(error_object(failure))


def error_frames(failure: OllamaError) -> bytes:
    """The end of a stream that fails."""
    return frame(error_object(failure)) + DONE


ERRORS = ErrorFormat(lambda failure, _id: error(failure), lambda failure, _id: error_frames(failure), empty_body="EOF")
