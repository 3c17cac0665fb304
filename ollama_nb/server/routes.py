"""The route table of one host: every path of ``endpoints`` on that host's base class, and what is said to the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ollama_nb.server.endpoints import ROUTES
from ollama_nb.server.handlers import Answer, Endpoint, Sink

_KNOWN = re.compile("|".join(f"(?:{path})" for path in ROUTES if path != "/"))


class Missing(Endpoint):
    """Paths that nobody has: 404, or a redirect when only a trailing slash is too much."""

    def open_sink(self) -> Sink:
        tail = self.path_args[0]
        if tail.endswith("/") and _KNOWN.fullmatch(tail[:-1]):
            path, mark, query = (self.request.uri or "").partition("?")
            status = 301 if self.request.method == "GET" else 307
            raise Answer(status, headers={"Location": path[:-1] + mark + query})
        raise Answer(404, b"404 page not found")


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
