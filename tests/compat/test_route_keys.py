"""Every route without a key, with a wrong one, with one that may only read and with one that may only run models.

The table of routes is that of the server. Refusals are in the format of the route's dialect, with a code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from support.openapi import OPERATIONS, Operation, anonymous, check_reply, code_of
from support.servers import RunningServer, jupyter, standalone

from ollama_nb.server.handler import Route
from ollama_nb.server.keys import INFER, READ, KeyFile
from ollama_nb.server.routes import ROUTES

READING = {"GET", "HEAD"}
AUTHORIZER = """
from jupyter_server.auth import Authorizer


class Reader(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return action == "read"


c.ServerApp.authorizer_class = Reader
"""


@dataclass(frozen=True)
class LiveRoute:
    """A method of a path, for requests with a header if another dialect shares the path."""

    method: str
    pattern: str
    route: Route
    header: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.pattern} {self.header}".strip()

    @property
    def operation(self) -> Operation:
        """The route in the description."""
        return next(op for op in OPERATIONS if (op.method, op.pattern) == (self.method, anonymous(self.pattern)))

    def send(self, client: httpx.Client, headers: dict[str, str]) -> httpx.Response:
        extra = {self.header: "2023-06-01"} if self.header else {}
        path = anonymous(self.pattern).replace("{}", "x")
        body = b"{}" if self.method not in READING else None
        return client.request(self.method, path, content=body, headers={**headers, **extra})


LIVE = [
    LiveRoute(method, pattern, variant, header)
    for pattern, methods in ROUTES.items()
    for method, route in methods.items()
    for header, variant in (("", route), *route.by_header.items())
]


@pytest.fixture(scope="module")
def closed_standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, dict[str, str]]]:
    """A standalone server with two keys, and the keys by their scope."""
    home = tmp_path_factory.mktemp("standalone")
    file = KeyFile(home / ".ollama" / "nb")
    keys = {scope: file.add(scope, (scope,))[1] for scope in (READ, INFER)}
    with standalone(home) as server:
        yield server, keys


@pytest.fixture(scope="module")
def reading_jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A Jupyter server whose user may only read."""
    home = tmp_path_factory.mktemp("jupyter")
    config = home / "reader_config.py"
    config.write_text(AUTHORIZER)
    with jupyter(home, args=(f"--config={config}",)) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def check_refusal(live: LiveRoute, reply: httpx.Response, status: int, code: str) -> None:
    """A refusal has the dialect's error object and its code; without a valid key it names the kind of key."""
    assert reply.status_code == status, f"{live.name}: {reply.status_code} {reply.text[:300]}"
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer", live.name
    if live.method == "HEAD":
        return
    (error,) = check_reply(live.operation, status, reply.headers["content-type"], reply.content)
    assert code_of(error) == code, live.name


def check_admission(live: LiveRoute, reply: httpx.Response) -> None:
    """The key is sufficient: whatever the route answers, it is not that the key lacks something."""
    assert reply.status_code != 401 or live.route.scope == "admin" or live.pattern == "/api/me", live.name
    assert reply.status_code != 403, f"{live.name}: {reply.text[:300]}"


def every_route(server: RunningServer, headers: dict[str, str]) -> Iterator[tuple[LiveRoute, httpx.Response]]:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        for live in LIVE:
            client.cookies.clear()  # Jupyter answers a token with a cookie that would be a key
            yield live, live.send(client, headers)


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"x-api-key": "wrong"}], ids=["none", "wrong", "x-api-key"])
@pytest.mark.parametrize("host", ["closed_standalone", "reading_jupyter"])
def test_without_a_valid_key(request: pytest.FixtureRequest, host: str, headers: dict[str, str]) -> None:
    """S20: every route of both hosts without a key and with wrong ones."""
    found = request.getfixturevalue(host)
    server = found[0] if isinstance(found, tuple) else found
    for live, reply in every_route(server, headers):
        check_refusal(live, reply, 401, "unauthorized")


@pytest.mark.parametrize("scope", [READ, INFER])
@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_key_of_one_scope(closed_standalone: tuple[RunningServer, dict[str, str]], scope: str, header: str) -> None:
    server, keys = closed_standalone
    headers = bearer(keys[scope]) if header == "Authorization" else {header: keys[scope]}
    for live, reply in every_route(server, headers):
        if live.route.scope == scope:
            check_admission(live, reply)
        else:
            check_refusal(live, reply, 403, "forbidden")


def test_a_user_of_jupyter_who_may_only_read(reading_jupyter: RunningServer) -> None:
    for live, reply in every_route(reading_jupyter, reading_jupyter.headers):
        if live.method in READING:
            check_admission(live, reply)
        else:
            check_refusal(live, reply, 403, "forbidden")
