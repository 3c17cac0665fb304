"""Security rules of registry connections: addresses, redirects, challenges, tokens."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from hypothesis import example, given
from hypothesis import strategies as st
from support.chaos_registry import ChaosRegistry, Handler, chaos_registry, redirect
from support.transfers import noise, pull

from ollama_nb.api.names import ModelName
from ollama_nb.errors import Cancelled, CredentialsRequired, SourceError
from ollama_nb.store.registry import authorization, session
from ollama_nb.store.registry.authorization import Authorization
from ollama_nb.store.registry.credentials import Credential, Credentials
from ollama_nb.store.registry.session import Reach, RegistrySession
from ollama_nb.store.registry.urls import Origin, redirected
from ollama_nb.store.store import Store

WEIGHTS = noise(5000)


@pytest.fixture
def registry(registry: ChaosRegistry) -> ChaosRegistry:
    """A registry with one model."""
    registry.publish("a/m:latest", model=WEIGHTS)
    return registry


@pytest.fixture
def other() -> Iterator[ChaosRegistry]:
    """A second server, which may be contacted only if that is allowed."""
    with chaos_registry() as found:
        yield found


def to_this_machine(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *("255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:0001::", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *("fec0::1", "::7f00:1", "::ffff:0:7f00:1"),
    ],
)
def test_private_addresses(address: str) -> None:
    assert not session.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert session.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "10.1.2.3", "[::1]", "[fec0::1]"])
def test_private_addresses_in_other_notations(host: str) -> None:
    """A proxy would accept them."""
    with pytest.raises(SourceError, match="may not redirect into a private network"):
        session.check_proxied(Origin.of(f"https://{host}"), Reach.PUBLIC)


def test_names_are_resolved_by_the_proxy() -> None:
    for host in ("cdn.example", "8.8.8.8", "127.evil.example"):
        session.check_proxied(Origin.of(f"https://{host}"), Reach.PUBLIC)


def test_only_public_addresses_are_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved once, and only its public addresses are tried."""
    tried: list[str] = []
    asked: list[str] = []

    def connected(address: str, *rest: Any) -> socket.socket:
        tried.append(address)
        raise OSError("not here")

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1", "8.8.8.8", "::1", "10.0.0.1", "8.8.4.4"]

    monkeypatch.setattr(session, "_connect", connected)
    with pytest.raises(SourceError, match=r"^cannot reach evil\.example: not here$"):
        session.dial(
            Origin.of("https://evil.example"),
            reach=Reach.PUBLIC,
            seconds=5,
            stopped=threading.Event(),
            resolver=resolver,
        )
    assert (tried, asked) == (["8.8.8.8", "8.8.4.4"], ["evil.example"])


def test_unknown_host_names(tmp_path: Path, store: Store) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(
        SourceError, match=r"^pull model manifest: cannot reach no\.example: Name or service not known$"
    ):
        pull(store, "no.example/a/m", tmp_path, resolver=unknown, insecure=False)


def test_a_stopped_session_does_not_wait() -> None:
    stopped = threading.Event()
    stopped.set()
    silent = threading.Event()
    with pytest.raises(Cancelled):
        session.dial(
            Origin.of("https://x.example"),
            reach=Reach.ANY,
            seconds=60,
            stopped=stopped,
            resolver=lambda host, port: ["127.0.0.1"] * silent.wait(60),
        )
    silent.set()


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://x/",
            "file:///etc/passwd",
            "gopher://x",
            "https://",
            "https:///x",
            "x",
            "",
            "https://a b/",
            "https://a\tb",
        ),
        *(
            "https://user:pw@x/",
            "https://user@x/",
            "https://x:99999/",
            "https://x:port/",
            "https://[::1/",
            "https://é.fr/",
        ),
        *("https://x\r\nHost: y/", "https://x/\r\nA: b", "javascript:alert(1)"),
    ],
)
def test_invalid_addresses(url: str) -> None:
    with pytest.raises(SourceError):
        Origin.of(url)


@given(st.text(max_size=60))
@example("//[::1")
@example("https://[x]/")
def test_any_location_is_valid_or_rejected(text: str) -> None:
    try:
        found = redirected("https://registry.example/v2/", text)
    except SourceError:
        return
    assert Origin.of(found).scheme == "https"


def test_origins() -> None:
    assert Origin.of("https://HF.co/x").canonical == Origin.of("https://huggingface.co:443/y").canonical
    assert Origin.of("https://hf.co").canonical != Origin.of("http://huggingface.co").canonical
    assert str(Origin.of("http://[::1]:5000/x")) == "http://[::1]:5000"
    assert [Origin.of(f"http://{host}").is_loopback for host in ("localhost", "a.localhost", "127.9.9.9", "[::1]")] == [
        True
    ] * 4
    for name in ("localhost.evil.example", "127.evil.example", "127.0.0.1.evil.example"):
        assert not Origin.of(f"http://{name}").is_loopback


# -- redirects ---------------------------------------------------------------------------------------------------------


def location(other: ChaosRegistry, host: str) -> Any:
    return redirect(lambda handler: f"http://{host}:{other.port}/v2/a/m/blobs/{handler.path.rpartition('/')[2]}", 302)


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "cdn.example", "[::ffff:127.0.0.1]", "0x7f.1"])
def test_redirects_into_private_networks_are_refused(
    registry: ChaosRegistry, other: ChaosRegistry, store: Store, tmp_path: Path, host: str
) -> None:
    """S14: the registry has a public name, as far as the user can see; the canary server gets no request."""
    other.blobs.update(registry.blobs)
    registry.always = location(other, host)
    with pytest.raises(SourceError, match="may not redirect into a private network"):
        pull(store, f"registry.example:{registry.port}/a/m", tmp_path, resolver=to_this_machine)
    assert other.asked == []


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "minio.example", "[::ffff:127.0.0.1]", "0x7f.1"])
def test_a_registry_on_this_machine_may_redirect_to_this_machine(
    registry: ChaosRegistry, other: ChaosRegistry, store: Store, tmp_path: Path, host: str
) -> None:
    """S14: as with a registry and its storage on premises."""
    other.blobs.update(registry.blobs)
    registry.always = location(other, host)
    registry.gate = basic
    known = Credentials({registry.host: Credential("mia", "geheim")})
    pull(store, f"{registry.host}/a/m", tmp_path, resolver=to_this_machine, credentials=known)
    assert len(other.of("GET", "blobs")) == 2
    assert not any("Authorization" in one.headers for one in other.asked)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are connected to; all of them are this machine."""
    found: list[str] = []
    real = session._connect

    def connect(address: str, *rest: Any) -> socket.socket:
        found.append(address)
        return real("127.0.0.1", *rest)

    monkeypatch.setattr(session, "_connect", connect)
    return found


LOCAL = {
    "127.0.0.1": ["127.0.0.9", "::1", "::ffff:127.0.0.1"],
    "10.0.0.1": ["10.9.9.9", "192.168.1.1", "172.16.0.1", "fd12::1", "::ffff:10.0.0.2"],
}
"""Registries as the user names them, and where they may redirect to."""
NEVER = ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "fd20:ce::254", "0.0.0.0", "::",
         "100.100.100.200", "224.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "2002:a00:1::",
         "::7f00:1"]  # fmt: skip


@pytest.mark.parametrize("named", LOCAL)
@pytest.mark.parametrize("address", [*LOCAL["127.0.0.1"], *LOCAL["10.0.0.1"], *NEVER])
@pytest.mark.parametrize("by_name", [True, False], ids=["name", "literal"])
def test_redirects_of_private_registries(
    registry: ChaosRegistry,
    other: ChaosRegistry,
    store: Store,
    tmp_path: Path,
    connected: list[str],
    named: str,
    address: str,
    by_name: bool,
) -> None:
    """S14: to addresses of the same kind, never to link-local and metadata addresses; the canary server counts."""
    other.blobs.update(registry.blobs)
    target = "minio.example" if by_name else f"[{address}]" if ":" in address else address
    registry.always = location(other, target)

    def resolver(host: str, port: int) -> list[str]:
        return [address if host == "minio.example" else host]

    name = f"{named}:{registry.port}/a/m"
    if address in LOCAL[named]:
        pull(store, name, tmp_path, resolver=resolver)
        assert len(other.of("GET", "blobs")) == 2
        assert set(connected) == {named, address}
    else:
        with pytest.raises(SourceError, match="may not redirect into a private network"):
            pull(store, name, tmp_path, resolver=resolver)
        assert other.asked == []
        assert set(connected) == {named}


def test_public_hosts_do_not_lead_back_into_private_networks() -> None:
    """S14: once a private registry has redirected to a public host, private addresses are out of reach."""
    with RegistrySession(threading.Event(), reach=Reach.PRIVATE) as found:
        inside = Origin.of("https://10.0.0.2")
        assert found._connection(inside, fresh=True)[0].reach is Reach.PRIVATE
        found.leave_private_network()
        assert found._connection(inside, fresh=True)[0].reach is Reach.PUBLIC


def test_a_public_host_in_the_chain(
    registry: ChaosRegistry, other: ChaosRegistry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S14: private registry, then a public host, then a private address: the last one is refused."""
    real = session._admitted

    def admitted(origin: Origin, *rest: Any) -> Any:
        return real(replace(origin, scheme="https"), *rest)  # the public host is without TLS here

    monkeypatch.setattr(session, "_admitted", admitted)
    monkeypatch.setattr(session, "is_public", lambda address: address == "127.0.0.1")
    other.blobs.update(registry.blobs)
    registry.always = location(other, "public.example")
    with chaos_registry() as canary:
        canary.blobs.update(registry.blobs)
        other.always = location(canary, "127.0.0.3")

        def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.1" if host == "public.example" else host]

        with pytest.raises(SourceError, match="private network"):
            pull(store, f"{registry.host}/a/m", tmp_path, resolver=resolver)
        assert canary.asked == []


@pytest.mark.parametrize(
    ("named", "reach"),
    [
        *(("127.1", Reach.LOOPBACK), ("localhost", Reach.LOOPBACK), ("[::1]:5000", Reach.LOOPBACK)),
        *(("10.0.0.1:5000", Reach.PRIVATE), ("[fd00::1]", Reach.PRIVATE), ("[::ffff:192.168.1.1]", Reach.PRIVATE)),
        *(("harbor.example", Reach.PUBLIC), ("8.8.8.8", Reach.PUBLIC), ("169.254.169.254", Reach.PUBLIC)),
    ],
)
def test_reach_is_by_the_address_that_the_user_named(named: str, reach: Reach) -> None:
    """S14."""
    assert session.redirect_reach(Origin.of(f"https://{named}")) is reach


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "127.0.0.1"])
def test_token_services_on_this_machine(
    registry: ChaosRegistry, other: ChaosRegistry, store: Store, tmp_path: Path, host: str
) -> None:
    """S14: a registry on this machine may have its token service there; the user's key signs nothing for it."""
    registry.gate = bearer(f"http://{host}:{other.port}/token")
    other.gate = bearer("unused")
    pull(store, f"{registry.host}/a/m", tmp_path, resolver=to_this_machine)
    (asked,) = other.of("GET", "/token")
    assert "Authorization" not in asked.headers
    assert not (tmp_path / "id_ed25519").exists()


def test_redirects_to_other_hosts_over_plain_http_are_refused(
    registry: ChaosRegistry, other: ChaosRegistry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``insecure`` applies to the named host only."""
    connected: list[str] = []
    real = session._connect

    def watched(address: str, *rest: Any) -> socket.socket:
        connected.append(address)
        return real(address, *rest)

    monkeypatch.setattr(session, "_connect", watched)
    registry.always = location(other, "cdn.example")
    with pytest.raises(SourceError, match="may not redirect to another host over plain http"):
        pull(
            store, f"{registry.host}/a/m", tmp_path, resolver=lambda host, port: ["8.8.8.8" if "cdn" in host else host]
        )
    assert set(connected) == {"127.0.0.1"}


def test_redirects_that_the_user_allows(
    registry: ChaosRegistry, other: ChaosRegistry, store: Store, tmp_path: Path
) -> None:
    """Credentials are not sent to the other host."""
    other.blobs.update(registry.blobs)
    registry.always = location(other, "cdn.example")
    registry.gate = basic
    known = Credentials({registry.host: Credential("mia", "geheim")}, {registry.host: (f"cdn.example:{other.port}",)})
    pull(store, f"{registry.host}/a/m", tmp_path, resolver=to_this_machine, credentials=known)
    assert store.resolve(ModelName.parse(f"{registry.host}/a/m")).weights is not None
    assert len(other.of("GET", "blobs")) == 2
    assert not any("Authorization" in one.headers for one in other.asked)
    assert {one.headers["Host"] for one in other.asked} == {f"cdn.example:{other.port}"}


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_to_the_same_host(registry: ChaosRegistry, store: Store, tmp_path: Path, code: int) -> None:
    registry.always = lambda h: "?" not in h.path and redirect(lambda handler: f"{handler.path}?signed", code)(h)
    pull(store, f"{registry.host}/a/m", tmp_path)
    assert all("Range" in one.headers for one in registry.of("GET", "?signed"))


def test_endless_redirects(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    registry.always = redirect(lambda handler: handler.path)
    with pytest.raises(SourceError, match="redirects more than 5 times"):
        pull(store, f"{registry.host}/a/m", tmp_path)
    assert len(registry.of("GET", "blobs")) == 6


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "gopher://127.0.0.1/", "ftp://x.example/", "http://u:p@x.example/"]
)
def test_invalid_redirects(registry: ChaosRegistry, store: Store, tmp_path: Path, to: str) -> None:
    registry.always = redirect(lambda handler: to)
    with pytest.raises(SourceError, match=r"address"):
        pull(store, f"{registry.host}/a/m", tmp_path)


def test_redirects_from_https_to_http_are_refused() -> None:
    with pytest.raises(SourceError, match="redirects from https to plain http"):
        redirected("https://registry.example/v2/x", "http://registry.example/v2/x")


# -- challenges --------------------------------------------------------------------------------------------------------


def basic(handler: Handler) -> bool:
    wanted = "Basic " + base64.b64encode(b"mia:geheim").decode()
    if handler.headers.get("Authorization") == wanted:
        return False
    handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="models"'})
    return True


def bearer(realm: str) -> Any:
    """Require the token ``good``, which ``/token`` issues to every client."""

    def gate(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(200, b'{"token":"good"}')
            return True
        if handler.headers.get("Authorization") == "Bearer good":
            return False
        host = handler.headers["Host"]
        text = f'Bearer realm="{realm.format(host=host)}",service="svc",scope="repository:a/m:pull other:x:y"'
        handler.answer(401, b"", {"WWW-Authenticate": text})
        return True

    return gate


def test_token_requests_are_signed(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    registry.gate = bearer("http://{host}/token")
    pull(store, f"{registry.host}/a/m", tmp_path)
    (asked,) = registry.of("GET", "/token")
    query = parse_qsl(urlsplit(asked.path).query)
    assert [key for key, _ in query] == ["nonce", "scope", "scope", "service", "ts"]
    assert dict(query)["service"] == "svc"
    assert len(base64.urlsafe_b64decode(dict(query)["nonce"] + "==")) == 16
    blob, _, signature = asked.headers["Authorization"].partition(":")
    public = load_ssh_public_key(f"ssh-ed25519 {blob}".encode())
    assert isinstance(public, Ed25519PublicKey)
    nothing = "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
    public.verify(base64.b64decode(signature), f"GET,http://{registry.host}{asked.path},{nothing}".encode())
    assert (tmp_path / "id_ed25519.pub").read_text() == f"ssh-ed25519 {blob}\n"


def test_a_token_service_gets_name_and_password(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    registry.gate = bearer("http://{host}/token")
    known = Credentials({registry.host: Credential("mia", "geheim")})
    pull(store, f"{registry.host}/a/m", tmp_path, credentials=known)
    (asked,) = registry.of("GET", "/token")
    assert asked.headers["Authorization"] == known.of(Origin.of(f"http://{registry.host}")).header  # type: ignore[union-attr]
    assert not (tmp_path / "id_ed25519").exists()


@pytest.mark.parametrize(
    "realm",
    [
        "http://evil.example:{port}/token",
        "https://127.0.0.1:{port}/token",
        "http://mia@127.0.0.1:{own}/token",
        "http://127.0.0.1.evil.example:{port}/token",
        "ftp://127.0.0.1:{own}/token",
        "//x",
        "",
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_other_realms_get_no_credentials(
    registry: ChaosRegistry, other: ChaosRegistry, store: Store, tmp_path: Path, realm: str, known: bool
) -> None:
    registry.gate = bearer(realm.format(port=other.port, own=registry.port))
    other.gate = bearer("unused")
    credentials = Credentials({registry.host: Credential("mia", "geheim")} if known else {})
    with pytest.raises(SourceError):
        pull(store, f"{registry.host}/a/m", tmp_path, resolver=to_this_machine, credentials=credentials)
    assert other.asked == []
    assert not registry.of("GET", "/token")
    assert not (tmp_path / "id_ed25519").exists()


def test_basic(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    registry.gate = basic
    with pytest.raises(SourceError) as caught:
        pull(store, f"{registry.host}/a/m", tmp_path)
    assert caught.value.code == CredentialsRequired.code
    assert caught.value.message.startswith("pull model manifest: unauthorized: access denied: ")
    assert f"`docker login {registry.host}`" in caught.value.message
    wrong = Credentials({registry.host: Credential("mia", "falsch")})
    with pytest.raises(SourceError, match=r"^pull model manifest: unauthorized: access denied$"):
        pull(store, f"{registry.host}/a/m", tmp_path, credentials=wrong)
    pull(store, f"{registry.host}/a/m", tmp_path, credentials=Credentials({registry.host: Credential("mia", "geheim")}))


def test_no_credentials_over_plain_http(tmp_path: Path, registry: ChaosRegistry, store: Store) -> None:
    """Except on this machine, which the registry is here but its name does not show."""
    registry.gate = basic
    name = f"registry.example:{registry.port}/a/m"
    known = Credentials({f"registry.example:{registry.port}": Credential("mia", "geheim")})
    with pytest.raises(SourceError, match="not sent over plain http"):
        pull(store, name, tmp_path, credentials=known, resolver=to_this_machine)
    assert not any("Authorization" in one.headers for one in registry.asked)
    token = Credentials({f"registry.example:{registry.port}": Credential(token="t")})
    with pytest.raises(SourceError, match="not sent over plain http"):
        pull(store, name, tmp_path, credentials=token, resolver=to_this_machine)
    assert not any("Authorization" in one.headers for one in registry.asked)


def test_plain_http_is_reported(tmp_path: Path, registry: ChaosRegistry, store: Store) -> None:
    lines = pull(store, f"registry.example:{registry.port}/a/m", tmp_path, resolver=to_this_machine)
    assert lines[0].status.startswith(f"using plain http to registry.example:{registry.port}")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token":1}', b'{"token":"a\\r\\nX: y"}', b"x" * 70_000])
def test_invalid_tokens(registry: ChaosRegistry, store: Store, tmp_path: Path, body: bytes) -> None:
    def gate(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(200, body)
            return True
        return bool(bearer("http://{host}/token")(handler))

    registry.gate = gate
    with pytest.raises(SourceError, match=r"sent (more than|an answer without)"):
        pull(store, f"{registry.host}/a/m", tmp_path)


def test_hf_token_is_used_for_hugging_face_only(tmp_path: Path) -> None:
    hub = Origin.of("https://hf.co")
    known = Credentials.load((), {"HF_TOKEN": "hf_1"})
    with RegistrySession(threading.Event()) as session:
        ours = Authorization(hub, session, tmp_path / "k", known)
        assert ours.header("https://hf.co/v2/a/b/manifests/Q8_0") == "Bearer hf_1"
        assert ours.header("https://huggingface.co/v2/a/b/blobs/x") == "Bearer hf_1"
        for url in (
            "https://cdn.hf.co/x",
            "http://hf.co/x",
            "https://hf.co:444/x",
            "https://huggingface.co.evil.example/",
        ):
            assert ours.header(url) == ""
        other = Authorization(Origin.of("https://registry.example"), session, tmp_path / "k", known)
        assert other.header("https://registry.example/v2/") == ""


def test_long_headers_take_linear_time() -> None:
    """Quadratic time would take minutes."""
    found = authorization.parse_challenges(("Basic a=b" + " " * 65_000 + "!") * 8)
    assert [(one.scheme, one.parameters) for one in found] == [("basic", {"a": "b"})]


def test_several_challenges() -> None:
    found = authorization.parse_challenges(
        'Basic realm="a, b", Bearer realm="https://x/t?y=1",scope="s:\\"q\\"" ,service=z, Negotiate'
    )
    assert [one.scheme for one in found] == ["basic", "bearer", "negotiate"]
    assert found[0].get("realm") == "a, b"
    assert dict(found[1].parameters) == {"realm": "https://x/t?y=1", "scope": 's:"q"', "service": "z"}
    assert authorization.token_url(found[1]) == "https://x/t?y=1&scope=s%3A%22q%22&service=z"


@given(st.text(max_size=80))
def test_any_text_can_be_parsed(text: str) -> None:
    for found in authorization.parse_challenges(text):
        assert found.scheme and isinstance(json.dumps(dict(found.parameters)), str)
        with contextlib.suppress(SourceError):
            Origin.of(authorization.token_url(found))
