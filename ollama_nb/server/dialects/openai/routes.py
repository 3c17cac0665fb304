"""The routes below ``/v1`` in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping

from ollama_nb.server.dialects.native.routes import rerank
from ollama_nb.server.dialects.openai.replies import ERRORS
from ollama_nb.server.handler import Route
from ollama_nb.server.keys import INFER
from ollama_nb.server.relay import to_neighbour

ROUTES: dict[str, Mapping[str, Route]] = {
    "/v1/rerank": {"POST": Route(rerank, INFER, relay=to_neighbour("rerank"), errors=ERRORS)},
}
"""Path pattern below the prefix → HTTP method → route."""
