"""The route table of one host: every path of ``endpoints`` on that host's base class, and what is said to the rest."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from ollama_nb.server.bodies import Sink
from ollama_nb.server.endpoints import ROUTES
from ollama_nb.server.handlers import Answer, Endpoint

_KNOWN = [(re.compile(path), methods) for path, methods in ROUTES.items() if path != "/"]


class Missing(Endpoint):
    """Paths that nobody has: 404, or a redirect when only slashes and dots are too much."""

    def open_sink(self) -> Sink:
        tail = self.path_args[0]
        method = self.request.method or ""
        if (clean := _cleaned(tail)) != tail:
            raise self._redirect(307, clean)
        if tail.endswith("/") and any(method in methods for path, methods in _KNOWN if path.fullmatch(tail[:-1])):
            raise self._redirect(301 if method == "GET" else 307, tail[:-1])
        raise Answer(404, b"404 page not found")

    def _redirect(self, status: int, tail: str) -> Answer:
        """To the path that ends in ``tail`` instead; a browser gets a page that says so."""
        path = self.request.path.removesuffix(self.path_args[0]) + tail
        headers = {"Location": f"{path}?{self.request.query}" if self.request.query else path}
        if self.request.method not in ("GET", "HEAD"):
            return Answer(status, headers=headers)
        page = f'<a href="{html.escape(headers["Location"])}">{HTTPStatus(status).phrase}</a>.\n\n'
        return Answer(status, page.encode(), {**headers, "Content-Type": "text/html; charset=utf-8"})


def _cleaned(path: str) -> str:
    """Without empty and dotted segments; a slash at the end stays."""
    if path in ("", "/"):
        return path
    clean = "/" + posixpath.normpath(path).lstrip("/")
    return clean if clean == "/" or not path.endswith(("/", "/.", "/..")) else clean + "/"


def routes(prefix: str, base: type[Endpoint]) -> list[tuple[str, type[Any]]]:
    """``(pattern, handler)`` for every path below ``prefix`` (``""``: the root), the catch-all last."""
    table = [
        (_pattern(prefix, path), _handler(_name(path), (base,), methods=ROUTES[path], route=path)) for path in ROUTES
    ]
    return [*table, (f"{prefix}((?:/.*)?)", _handler("Missing", (Missing, base)))]


def _pattern(prefix: str, path: str) -> str:
    return f"{prefix}/?" if path == "/" and prefix else prefix + path


def _handler(name: str, bases: tuple[type, ...], **attributes: Any) -> type[Any]:
    return type(name, bases, attributes)


def _name(path: str) -> str:
    words: Iterable[str] = re.findall(r"[a-z]+", path) or ["root"]
    return "".join(word.title() for word in words)
