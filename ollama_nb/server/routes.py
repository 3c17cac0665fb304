"""The table of all paths, dialect by dialect, and the replies to unknown ones."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from tornado import web

from ollama_nb.server.dialects.anthropic import routes as anthropic
from ollama_nb.server.dialects.llamacpp import routes as llamacpp
from ollama_nb.server.dialects.native import routes as native
from ollama_nb.server.dialects.openai import routes as openai
from ollama_nb.server.dialects.responses import routes as responses
from ollama_nb.server.handler import OllamaHandler, PlainResponse, Route
from ollama_nb.server.keys import ANY_KEY
from ollama_nb.server.streams import BodySink

_SHARED = {
    path: {"GET": replace(openai.ROUTES[path]["GET"], by_header={anthropic.VERSION_HEADER: route})}
    for path, route in anthropic.MODEL_ROUTES.items()
}
ROUTES: dict[str, Mapping[str, Route]] = {
    **native.ROUTES,
    **openai.ROUTES,
    **responses.ROUTES,
    **anthropic.ROUTES,
    **llamacpp.ROUTES,
    **_SHARED,
}
"""Path pattern below the prefix → HTTP method → route."""


async def unknown_path(call: OllamaHandler) -> None:
    raise PlainResponse(404, b"404 page not found")


def refuse_unknown_path(call: OllamaHandler) -> BodySink:
    """Raise a 404 before the body is read; a redirect for a known path with superfluous slashes or dots."""
    tail = call.path_args[0]
    method = call.request.method or ""
    if (clean := _clean_path(tail)) != tail:
        raise _redirect(call, 307, clean)
    if tail.endswith("/") and _is_known(method, tail[:-1]):
        raise _redirect(call, 301 if method == "GET" else 307, tail[:-1])
    raise PlainResponse(404, b"404 page not found")


def _redirect(call: OllamaHandler, status: int, tail: str) -> PlainResponse:
    """A redirect to the path that ends in ``tail`` instead; GET and HEAD get a page with a link."""
    path = call.request.path.removesuffix(call.path_args[0]) + tail
    headers = {"Location": f"{path}?{call.request.query}" if call.request.query else path}
    if call.request.method not in ("GET", "HEAD"):
        return PlainResponse(status, headers=headers)
    page = f'<a href="{html.escape(headers["Location"])}">{HTTPStatus(status).phrase}</a>.\n\n'
    return PlainResponse(status, page.encode(), {**headers, "Content-Type": "text/html; charset=utf-8"})


def _clean_path(path: str) -> str:
    """The path without empty and dotted segments; a slash at the end stays."""
    if path in ("", "/"):
        return path
    clean = "/" + posixpath.normpath(path).lstrip("/")
    return clean if clean == "/" or not path.endswith(("/", "/.", "/..")) else clean + "/"


def _is_known(method: str, tail: str) -> bool:
    return any(method in methods and re.fullmatch(path, tail) for path, methods in ROUTES.items() if path != "/")


_UNKNOWN = dict.fromkeys(
    web.RequestHandler.SUPPORTED_METHODS, Route(unknown_path, ANY_KEY, open_body=refuse_unknown_path)
)


def url_specs(prefix: str, handler: type[OllamaHandler]) -> list[tuple[str, type[Any], dict[str, Any]]]:
    """Tornado's URL specs for all routes below ``prefix`` (empty: at the root), the one for unknown paths last."""
    specs = [
        (f"{prefix}/?" if path == "/" and prefix else prefix + path, handler, {"path": path, "methods": methods})
        for path, methods in ROUTES.items()
    ]
    return [*specs, (f"{prefix}((?:/.*)?)", handler, {"path": "", "methods": _UNKNOWN})]
