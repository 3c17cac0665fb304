"""Every route below /ollama needs a user of Jupyter or the extension's key."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.servers import RunningServer, jupyter, runtime_info

from ollama_nb.server.access import KEY_REQUIRED
from ollama_nb.server.routes import ROUTES

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REBOUND = {"Host": "evil.example.com"}


class NoCookies(httpx.Cookies):
    """Drops cookies: Jupyter replies to a token with a cookie, which would authenticate the next requests."""

    def extract_cookies(self, response: httpx.Response) -> None:
        pass


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30, trust_env=False) as found:
        found._cookies = NoCookies()
        yield found


def own_key(server: RunningServer) -> dict[str, str]:
    return {"Authorization": f"Bearer {runtime_info(server)['key']}"}


def test_every_route_and_method_needs_authentication(token_server: RunningServer, client: httpx.Client) -> None:
    """S20: every route and method in Jupyter."""
    for pattern in (*ROUTES, "/nope", "/v1/models", "/api/tags/"):
        url = token_server.url + pattern.replace("([^/]+)", "x")
        for method in METHODS:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"Cookie": "username-x=1"}):
                reply = client.request(method, url, headers=headers)
                assert reply.status_code in (401, 403), (method, url, headers)
                if method != "HEAD":
                    error = reply.json()["error"]
                    assert (error["message"] if isinstance(error, dict) else error) == KEY_REQUIRED
        assert client.get(f"{url}?token=wrong").status_code == 401
        assert client.get(url, headers={**token_server.headers, **REBOUND}).status_code == 403


def test_accepted_credentials(token_server: RunningServer, client: httpx.Client) -> None:
    token = "test-token"
    for headers in (
        token_server.headers,
        {"Authorization": f"token {token}"},
        {"x-api-key": token},
        own_key(token_server),
        {"x-api-key": runtime_info(token_server)["key"]},
    ):
        assert client.get(f"{token_server.url}/api/version", headers=headers).status_code == 200
        shown = client.post(f"{token_server.url}/api/show", headers=headers, json={"model": "nope"})
        assert (shown.status_code, shown.json()) == (
            404,
            {"error": "model 'nope:latest' not found", "code": "model_not_found"},
        )
        missing = client.get(f"{token_server.url}/nope", headers=headers)
        assert (missing.status_code, missing.text) == (404, "404 page not found")
        assert client.get(f"{token_server.url}/api/chat", headers=headers).headers["allow"] == "POST"
        for path in ("", "/"):
            assert client.get(token_server.url + path, headers=headers).text == "Ollama is running"
    slash = client.get(f"{token_server.url}/api/tags/", headers=own_key(token_server))
    assert (slash.status_code, slash.headers["location"]) == (301, "/user/x/ollama/api/tags")


def test_the_key_is_valid_for_these_routes_only(token_server: RunningServer, client: httpx.Client) -> None:
    contents = client.get(token_server.url.removesuffix("/ollama") + "/api/contents", headers=own_key(token_server))
    assert contents.status_code == 403
    reply = client.get(f"{token_server.url}/api/tags", headers=own_key(token_server))
    assert "set-cookie" not in reply.headers and "server" not in reply.headers and reply.headers["x-request-id"]
    assert "access-control-allow-origin" not in reply.headers
    rebound = client.get(f"{token_server.url}/api/tags", headers={**own_key(token_server), **REBOUND})
    assert (rebound.status_code, rebound.json()) == (403, {"error": "host not allowed", "code": "forbidden"})
    assert client.get(f"{token_server.url}/?token={runtime_info(token_server)['key']}").status_code == 401


def test_cookies_need_the_xsrf_token(token_server: RunningServer) -> None:
    """S19: a browser's cookie alone gives no access."""
    root = token_server.url.removesuffix("/ollama")
    with httpx.Client(timeout=30, trust_env=False) as browser:
        browser.get(f"{root}/login?token=test-token", follow_redirects=False)
        browser.get(f"{root}/tree")
        assert browser.get(f"{token_server.url}/api/tags", headers={"Referer": root}).status_code == 200
        body = {"source": "a", "destination": "a"}
        without = browser.post(f"{token_server.url}/api/copy", json=body)
        assert without.status_code == 403 and "_xsrf" in without.json()["error"]
        header = {"X-XSRFToken": browser.cookies.get("_xsrf", path="/user/x/") or ""}
        assert browser.post(f"{token_server.url}/api/copy", json=body, headers=header).status_code == 200
        foreign = {"Origin": "http://evil.example.com", **header}
        assert browser.post(f"{token_server.url}/api/copy", json=body, headers=foreign).status_code in (403, 404)


def test_preflights(token_server: RunningServer, client: httpx.Client) -> None:
    url = f"{token_server.url}/api/chat"
    for origin in ("http://evil.example.com", "http://localhost:3000", "null"):
        assert client.options(url, headers={"Origin": origin}).status_code == 403
    own = token_server.url.removesuffix("/user/x/ollama")
    assert client.options(url, headers={"Origin": own}).status_code == 204


def test_only_the_user_can_read_the_runtime_file(token_server: RunningServer) -> None:
    (file,) = (token_server.home / "jupyter_runtime_dir").glob("ollama-nb-*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    info = runtime_info(token_server)
    assert info["url"] == token_server.url and info["pid"] == token_server.pid
    assert info["key"] not in token_server.output()


def test_without_authentication(tmp_path: Path, client: httpx.Client) -> None:
    """Plain clients work as with Ollama; pages of other sites and rebound host names do not."""
    with jupyter(tmp_path, token="") as server:
        body = {"source": "a", "destination": "a"}
        assert client.post(f"{server.url}/api/copy", json=body).status_code == 200
        foreign = {"Origin": "http://evil.example.com"}
        assert client.post(f"{server.url}/api/copy", json=body, headers=foreign).status_code == 403
        assert client.post(f"{server.url}/api/copy", json=body, headers=REBOUND).status_code == 403
        assert client.get(f"{server.url}/api/tags", headers=REBOUND).status_code == 403


def test_strict_host_checks_allowed_origins_and_a_clean_end(tmp_path: Path, client: httpx.Client) -> None:
    args = ("--ServerApp.allow_unauthenticated_access=False",)
    with jupyter(tmp_path, args=args, env={"OLLAMA_ORIGINS": "https://app.example"}) as server:
        assert client.get(f"{server.url}/api/tags").status_code == 401
        assert client.post(f"{server.url}/api/copy", json={}).status_code == 401
        assert client.get(f"{server.url}/api/tags", headers=server.headers).status_code == 200
        page = {"Origin": "https://app.example"}
        preflight = client.options(f"{server.url}/api/chat", headers=page)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        reply = client.get(f"{server.url}/api/tags", headers={**page, **own_key(server)})
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert not list((tmp_path / "jupyter_runtime_dir").glob("ollama-nb-*.json"))
