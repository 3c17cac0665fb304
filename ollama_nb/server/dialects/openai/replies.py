"""Replies of OpenAI's API: events and results → JSON and server-sent events."""

from __future__ import annotations

import json
from typing import Any

from ollama_nb.errors import OllamaError
from ollama_nb.server.dialects.encoder import ErrorFormat


def encode(value: Any) -> bytes:
    """One JSON value and a line break, as a body or the data of an event."""
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "replace")


def error(failure: OllamaError) -> bytes:
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(failure.status, "api_error")
    return encode({"error": {"message": failure.message, "type": kind, "param": None, "code": failure.code}})


ERRORS = ErrorFormat(lambda failure, _id: error(failure))
