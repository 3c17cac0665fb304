"""The ``Authorization`` of requests to one registry: from what is configured, or from a token that a challenge led to.

Rules: only the registry that the user named gets its credentials, in plain http only on this machine. A signature of
our key goes to nobody but that registry itself. A token service elsewhere may get the name and password that the user
keeps for the registry, over https; that is how such services work.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from pathlib import Path

from ollama_nb.errors import AccessDenied, SourceError
from ollama_nb.store.auth import Credentials, Key
from ollama_nb.store.registry import challenge as challenges
from ollama_nb.store.registry.challenge import Challenge
from ollama_nb.store.registry.errors import Refused
from ollama_nb.store.registry.session import Session
from ollama_nb.store.registry.urls import Origin

DENIED = "unauthorized: access denied"
MAX_TOKEN = 64 << 10
_HASH_OF_NOTHING = "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="


class Authorization:
    """Used by all threads of a pull or push."""

    def __init__(self, registry: Origin, session: Session, key: Path, credentials: Credentials) -> None:
        self._registry = registry
        self._session = session
        self._key = key
        self._credential = credentials.of(registry)
        self._header = self._credential.header if self._credential and self._credential.token else ""
        self._lock = threading.Lock()

    def header(self, url: str) -> str:
        """The value for a request to ``url``; empty when it is not to get any."""
        return self._header if self._may_see(Origin.of(url)) else ""

    def answer(self, header: str, tried: str) -> None:
        """Take a challenge. ``tried``: the header that was not good enough. Raises SourceError when there is no way."""
        self._require_safe()
        with self._lock:
            if self._header != tried:
                return  # another thread has been here meanwhile
            self._header = self._new_header(challenges.parse(header))

    def _may_see(self, origin: Origin) -> bool:
        return origin.party == self._registry.party and (origin.scheme == "https" or origin.is_loopback)

    def _require_safe(self) -> None:
        if self._registry.scheme != "https" and not self._registry.is_loopback:
            raise AccessDenied(
                f"{DENIED}: {self._registry.address} asks for credentials, which are never sent over plain http"
            )

    def _new_header(self, found: tuple[Challenge, ...]) -> str:
        for challenge in found:
            if challenge.scheme == "bearer" and challenge.get("realm"):
                return f"Bearer {self._token(challenge)}"
        if any(challenge.scheme == "basic" for challenge in found):
            if self._credential is None or self._credential.token:
                raise AccessDenied(
                    f"{DENIED}: {self._registry.address} asks for a name and a password, and none are known here "
                    f"(`docker login {self._registry.address}` keeps them)"
                )
            return self._credential.header
        raise AccessDenied(DENIED)

    def _token(self, challenge: Challenge) -> str:
        realm = Origin.of(challenge.get("realm"))
        if realm.party != self._registry.party and realm.scheme != "https" and not realm.is_loopback:
            raise SourceError(f"{self._registry.address} asks for a token from {realm}, which is not secure")
        headers: dict[str, str] = {}
        extra: list[tuple[str, str]] = []
        ours = self._may_see(realm)
        if self._credential is not None and not self._credential.token:
            headers["Authorization"] = self._credential.header
        elif ours:
            extra = [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        url = challenges.token_url(challenge, extra)
        if ours and "Authorization" not in headers:
            headers["Authorization"] = Key.ensure(self._key).authorization(f"GET,{url},{_HASH_OF_NOTHING}")
        with self._session.send("GET", url, headers) as response:
            body = response.body(MAX_TOKEN)
            if response.status in (401, 403):
                raise AccessDenied(DENIED)
            if response.status != 200:
                raise Refused(response.status, body.decode("utf-8", "replace").strip())
        return _token_in(body, realm)


def _token_in(body: bytes, realm: Origin) -> str:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise SourceError(f"{realm.address} answers with no token")
    return token
