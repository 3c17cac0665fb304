"""API keys: made, stored as hashes, limited by scopes, removed while the server runs."""

from __future__ import annotations

import contextlib
import json
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.aio import in_loop
from support.fake_service import FakeService
from tornado import netutil

from ollama_nb.errors import BadRequest, Forbidden, NotFound, StoreError, Unauthorized
from ollama_nb.server import keys as keys_module
from ollama_nb.server.access import Keys
from ollama_nb.server.keys import SCOPES, KeyFile, KeyRing
from ollama_nb.server.routes import ROUTES
from ollama_nb.server.standalone import listen
from ollama_nb.server.state import ServerState


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "nb")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_only_the_hash_of_a_key_is_stored(file: KeyFile) -> None:
    """S21: the text of a key is nowhere on disk."""
    key, text = file.add("Anna 你好", ("write", "infer"))
    assert (key.name, key.scopes, key.expires_at) == ("Anna 你好", ("infer", "write"), None)
    assert len(text) > 40
    assert text.removeprefix("onb_") not in file.path.read_text("utf-8")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert KeyFile(file.path.parent).read() == (key,)


def test_keys_differ_and_names_are_unique(file: KeyFile) -> None:
    texts = {file.add(f"key {number}")[1] for number in range(5)}
    assert len(texts) == 5
    with pytest.raises(BadRequest, match="a key named 'key 1' exists"):
        file.add("key 1")
    file.remove("key 1")
    assert [key.name for key in file.read()] == ["key 0", "key 2", "key 3", "key 4"]
    with pytest.raises(NotFound, match="there is no key named 'key 1'"):
        file.remove("key 1")


@pytest.mark.parametrize(
    ("name", "scopes", "days"),
    [("", ("infer",), None), ("a\nb", ("infer",), None), ("x" * 81, ("infer",), None), ("a", ("root",), None),
     ("a", (), None), ("a", ("infer", ""), None), ("a", ("infer",), 0), ("a", ("infer",), -1),
     ("a", ("infer",), float("nan"))],
)  # fmt: skip
def test_invalid_names_scopes_and_days(file: KeyFile, name: str, scopes: tuple[str, ...], days: float | None) -> None:
    with pytest.raises(BadRequest):
        file.add(name, scopes, days)
    assert file.read() == ()


def test_concurrent_changes(file: KeyFile) -> None:
    threads = [threading.Thread(target=KeyFile(file.path.parent).add, args=(str(n),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(key.name) for key in file.read()) == list(range(16))


def test_scopes_and_expiry(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(Keys("own"), file)
    ring.check({}, "admin")  # no key exists: everything is open
    assert not ring.closed
    _, infers = file.add("infers", ("infer",))
    _, rules = file.add("rules", ("admin",))
    _, short = file.add("short", ("infer", "read"), days=1)
    assert ring.closed
    ring.check(bearer(infers), "infer")
    ring.check({"x-api-key": infers}, "infer")
    with pytest.raises(Forbidden, match="the key 'infers' is not allowed to do this: it lacks the scope \"read\""):
        ring.check(bearer(infers), "read")
    for scope in SCOPES:
        ring.check(bearer(rules), scope)
        ring.check(bearer("own"), scope)
    for offered in ({}, bearer("wrong"), bearer(infers[:-1]), bearer(file.read()[0].hash.hex()), {"x-api-key": ""}):
        with pytest.raises(Unauthorized):
            ring.check(offered, "infer")
    ring.check(bearer(short), "read")
    later = keys_module.time.time() + 86_401
    monkeypatch.setattr(keys_module.time, "time", lambda: later)
    with pytest.raises(Unauthorized):
        ring.check(bearer(short), "read")


def test_removing_the_last_key_does_not_open_the_server(file: KeyFile) -> None:
    ring = KeyRing(Keys("own"), file)
    _, text = file.add("only")
    ring.check(bearer(text), "infer")
    file.remove("only")
    for headers in ({}, bearer(text)):
        with pytest.raises(Unauthorized):
            ring.check(headers, "infer")
    file.path.unlink()
    with pytest.raises(Unauthorized):
        ring.check({}, "infer")
    ring.check(bearer("own"), "admin")


NO_HASH = '{"keys": [{"name": "a", "sha256": "é", "scopes": ["infer"], "created_at": 0, "expires_at": null}]}'


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"keys": [{}]}', '{"keys": 7}', "[" * 100_000, NO_HASH])
def test_a_damaged_file_keeps_the_old_keys(file: KeyFile, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    _, text = file.add("a")
    ring = KeyRing(None, file)
    ring.check(bearer(text), "infer")
    file.path.write_text(broken)
    ring.check(bearer(text), "infer")
    with pytest.raises(Unauthorized):
        ring.check({}, "infer")
    assert caplog.text.count("keys.json is damaged") == 1
    fresh = KeyRing(None, KeyFile(file.path.parent))
    with pytest.raises(Unauthorized):
        fresh.check({}, "infer")


def test_a_file_that_other_users_can_change_is_refused(file: KeyFile) -> None:
    file.add("a")
    file.path.chmod(0o666)
    with pytest.raises(StoreError, match="can be changed by other users"):
        file.read()


def test_a_key_is_compared_with_all_keys(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """S21: The duration of a check reveals neither the position of the key nor a matching part."""
    _, first = file.add("first")
    file.add("second")
    compared: list[bytes] = []
    compare = keys_module.hmac.compare_digest

    def counted(left: bytes, right: bytes) -> bool:
        compared.append(left)
        return compare(left, right)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", counted)
    KeyRing(None, file).check(bearer(first), "infer")
    assert compared == [key.hash for key in file.read()]


def test_every_route_has_its_scope() -> None:
    """A route without a scope of its own needs an administrator's key."""
    needs: dict[str, set[str]] = {scope: set() for scope in SCOPES}
    for pattern, methods in ROUTES.items():
        for method, route in methods.items():
            needs[route.scope].add(f"{method} {pattern}")
    refusals = {"/api/signout", "/api/user/keys/([^/]+)", "/api/experimental/web_search", "/api/experimental/web_fetch"}
    assert {line.partition(" ")[2] for line in needs["admin"]} == refusals
    assert {"POST /api/pull", "DELETE /api/delete", "POST /api/blobs/([^/]+)", "POST /api/create"} <= needs["write"]
    assert {"GET /api/tags", "POST /api/show", "HEAD /api/blobs/([^/]+)", "GET /livez", "GET /metrics"} <= needs["read"]
    assert {"POST /api/chat", "POST /api/embed", "POST /v1/rerank"} <= needs["infer"]


@contextlib.asynccontextmanager
async def served(root: Path, ring: KeyRing) -> AsyncIterator[httpx.AsyncClient]:
    state = ServerState(FakeService(root / "models"))  # type: ignore[arg-type]
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server = listen(state, sockets, keys=ring)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as client:
            yield client
    finally:
        server.stop()
        await state.drain(0)
        await server.close_all_connections()


@in_loop
async def test_over_http(tmp_path: Path) -> None:
    """S21: a key that was removed is refused by the next request."""
    file = KeyFile(tmp_path / "nb")
    async with served(tmp_path, KeyRing(Keys("own"), file)) as client:
        assert (await client.get("/api/tags")).status_code == 200
        _, text = file.add("reads", ("read",))
        closed = await client.get("/api/tags")
        assert (closed.status_code, closed.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get("/api/tags", headers=bearer(text))).status_code == 200
        refused = await client.request("DELETE", "/api/delete", headers=bearer(text), json={"model": "x"})
        assert refused.status_code == 403 and 'lacks the scope "write"' in refused.json()["error"]
        assert (await client.get("/livez")).status_code == 401
        for path in ("/nope", "/api/delete"):  # any key is sufficient to learn that a path or a method does not exist
            assert (await client.put(path)).status_code == 401
            assert (await client.put(path, headers=bearer(text))).status_code == (404 if path == "/nope" else 405)
        file.remove("reads")
        assert (await client.get("/api/tags", headers=bearer(text))).status_code == 401
        assert (await client.get("/api/tags", headers=bearer("own"))).status_code == 200
        assert (await client.get(f"/api/tags?key={text}&token=own")).status_code == 401


def test_nothing_secret_in_errors(file: KeyFile) -> None:
    _, text = file.add("a")
    file.path.write_text(json.dumps({"keys": [{"name": text}]}))
    with pytest.raises(StoreError) as caught:
        KeyFile(file.path.parent).read()
    assert text not in caught.value.message
