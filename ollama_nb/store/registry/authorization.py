"""The ``Authorization`` header of registry requests, and the challenges (``WWW-Authenticate``) that it answers.

Rules:

- The registry that the user named gets the user's credentials, over plain http only if it is on this machine.
- Signatures of the user's key go to that registry only.
- A token service on another host may get the user name and password of the registry, over https only. This is the
  protocol of Docker registries.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from ollama_nb.api.names import DEFAULT_HOST
from ollama_nb.errors import AccessDenied, CredentialsRequired, SourceError
from ollama_nb.store.registry.credentials import Credentials, RegistryKey
from ollama_nb.store.registry.errors import RegistryRefused
from ollama_nb.store.registry.session import RegistrySession
from ollama_nb.store.registry.urls import Origin

# No two adjacent quantifiers match the same characters: that would take quadratic time on long runs of spaces.
_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$)(?!=)")
_PARAMETER = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]*))')
DENIED = "unauthorized: access denied"
MAX_TOKEN = 64 << 10  # bytes of a token response
_EMPTY_BODY_HASH = "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a server: the scheme in lower case and the parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str]

    def get(self, name: str) -> str:
        """Return a parameter; empty if it is missing."""
        return self.parameters.get(name, "")


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Parse the challenges of a header, up to the first text that is not a challenge."""
    found: list[Challenge] = []
    at = 0
    while match := _SCHEME.match(header, at):
        at = match.end()
        parameters: dict[str, str] = {}
        while pair := _PARAMETER.match(header, at):
            quoted = pair[2] is not None
            parameters.setdefault(pair[1].lower(), re.sub(r"\\(.)", r"\1", pair[2]) if quoted else pair[3])
            at = pair.end()
        found.append(Challenge(match[1].lower(), parameters))
    return tuple(found)


def token_url(challenge: Challenge, extra: Iterable[tuple[str, str]] = ()) -> str:
    """Return the realm with ``service``, the scopes and ``extra`` as query, sorted by key."""
    realm = challenge.get("realm")
    pairs = [("scope", scope) for scope in challenge.get("scope").split()]
    if challenge.get("service"):
        pairs.append(("service", challenge.get("service")))
    pairs += extra
    query = urlencode(sorted(pairs, key=lambda pair: pair[0]))
    return f"{realm}{'&' if urlsplit(realm).query else '?'}{query}" if query else realm


class Authorization:
    """The authorization state of one registry, shared by all threads of a pull or push."""

    def __init__(self, registry: Origin, session: RegistrySession, key: Path, credentials: Credentials) -> None:
        self._registry = registry
        self._session = session
        self._key = key
        self._credential = credentials.of(registry)
        self._header = self._credential.header if self._credential and self._credential.token else ""
        self._lock = threading.Lock()

    def header(self, url: str) -> str:
        """Return the header value for a request to ``url``; empty if that host must not see credentials."""
        return self._header if self._may_send_to(Origin.of(url)) else ""

    def answer_challenge(self, header: str, tried: str) -> None:
        """Answer the challenge ``header``. ``tried`` is the authorization that the server rejected.

        Raises AccessDenied if there are no suitable credentials.
        """
        self._require_secure()
        with self._lock:
            if self._header != tried:
                return  # another thread has answered the challenge
            self._header = self._new_header(parse_challenges(header))

    def _may_send_to(self, origin: Origin) -> bool:
        return origin.canonical == self._registry.canonical and (origin.scheme == "https" or origin.is_loopback)

    def _require_secure(self) -> None:
        if self._registry.scheme != "https" and not self._registry.is_loopback:
            raise CredentialsRequired(
                f"{DENIED}: {self._registry.address} asks for credentials, which are not sent over plain http"
            )

    def _new_header(self, found: tuple[Challenge, ...]) -> str:
        for challenge in found:
            if challenge.scheme == "bearer" and challenge.get("realm"):
                return f"Bearer {self._request_token(challenge)}"
        if any(challenge.scheme == "basic" for challenge in found):
            if self._credential is None or self._credential.token:
                raise self._login_required()
            return self._credential.header
        raise AccessDenied(DENIED)

    def _login_required(self) -> CredentialsRequired:
        address = self._registry.address
        return CredentialsRequired(
            f"{DENIED}: {address} asks for a user name and a password; run `docker login {address}` to store them"
        )

    def _request_token(self, challenge: Challenge) -> str:
        realm = Origin.of(challenge.get("realm"))
        if realm.canonical != self._registry.canonical and realm.scheme != "https" and not realm.is_loopback:
            raise SourceError(f"{self._registry.address} asks for a token from {realm}, which is not https")
        headers: dict[str, str] = {}
        extra: list[tuple[str, str]] = []
        is_own_realm = self._may_send_to(realm)
        if self._credential is not None and not self._credential.token:
            headers["Authorization"] = self._credential.header
        elif is_own_realm:
            extra = [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        url = token_url(challenge, extra)
        if is_own_realm and "Authorization" not in headers:
            headers["Authorization"] = RegistryKey.ensure(self._key).authorization(f"GET,{url},{_EMPTY_BODY_HASH}")
        with self._session.send("GET", url, headers) as response:
            body = response.body(MAX_TOKEN)
            if response.status in (401, 403):
                needs_login = self._credential is None and self._registry.host != DEFAULT_HOST
                raise self._login_required() if needs_login else AccessDenied(DENIED)
            if response.status != 200:
                raise RegistryRefused(response.status, body.decode("utf-8", "replace").strip())
        return _parse_token(body, realm)


def _parse_token(body: bytes, realm: Origin) -> str:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise SourceError(f"{realm.address} sent an answer without a token")
    return token
