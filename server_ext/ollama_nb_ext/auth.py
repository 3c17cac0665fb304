"""Access to ``/ollama`` in a Jupyter server: for Jupyter's users, and for clients with the extension's key.

Every route needs one of them. The key gives access to these routes only. Jupyter itself checks its users: token, cookie
with XSRF token, Hub, and its authorizer.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.auth.identity import User
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import ensure_async
from tornado import web

from ollama_nb.errors import Forbidden, OllamaError, Unauthorized, from_code
from ollama_nb.server import access
from ollama_nb.server.access import KEY_REQUIRED, Keys, Origins
from ollama_nb.server.handler import OllamaHandler, PlainResponse

KEYS, ORIGINS = "ollama_nb_keys", "ollama_nb_origins"
RESOURCE = "ollama"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def own_origins(extra: tuple[str, ...]) -> Origins:
    """The origins of OLLAMA_ORIGINS only: a Jupyter server does not trust pages of other local servers."""
    Origins.parse(extra)
    return Origins(extra)


class JupyterOllamaHandler(OllamaHandler, JupyterHandler):  # type: ignore[misc]
    """The handler of all routes of the extension."""

    # ``admit`` refuses unauthenticated requests with 401. Without the mark, Jupyter would redirect to its login page.
    respond = allow_unauthenticated(OllamaHandler.respond)
    get = head = post = put = patch = delete = options = respond

    async def admit(self) -> None:
        await self._admit()
        if not self._headers.get("Access-Control-Allow-Origin"):
            # Jupyter sends an empty header for requests without an Origin.
            self.clear_header("Access-Control-Allow-Origin")

    def prove(self, challenge: str) -> str:
        return cast(Keys, self.settings[KEYS]).prove(challenge)

    async def _admit(self) -> None:
        headers = self.request.headers
        if self.request.method == "OPTIONS" and "Origin" in headers:
            self._preflight(headers["Origin"])
        if cast(Keys, self.settings[KEYS]).accept(headers):
            self._admit_key()
            return
        if "Authorization" not in headers and headers.get("x-api-key"):
            # Anthropic's clients send this header; Jupyter reads Authorization only.
            headers["Authorization"] = f"Bearer {headers['x-api-key']}"
        await self._admit_user()
        if not self.check_origin():
            raise Forbidden("cross-origin request blocked")
        action = "read" if self.request.method in _READING else "write"
        if not await ensure_async(self.authorizer.is_authorized(self, self.current_user, action, RESOURCE)):
            raise Forbidden(f"user is not authorized to {action} {RESOURCE}")

    def check_xsrf_cookie(self) -> None:
        """Without authentication there are no XSRF tokens: the Origin decides, as in Ollama."""
        if self.identity_provider.auth_enabled or not hasattr(self, "_jupyter_current_user"):
            super().check_xsrf_cookie()
        elif not self.check_origin():
            raise web.HTTPError(403, "cross-origin request blocked")

    def _admit_key(self) -> None:
        # Instead of Jupyter's own prepare, which supports one kind of token only.
        self.current_user = self._jupyter_current_user = User(username="ollama", name="Ollama API key")
        self._token_authenticated = True
        if not self.check_host():
            raise Forbidden("host not allowed")
        self.set_cors_headers()

    async def _admit_user(self) -> None:
        try:
            pending: Awaitable[Any] | None = JupyterHandler.prepare(self)
            while pending is not None:
                pending = await pending
        except web.HTTPError as error:
            raise self._plain(error) from error
        if self.current_user is None:
            raise Unauthorized(KEY_REQUIRED)

    def _plain(self, error: web.HTTPError) -> OllamaError:
        """A request that Jupyter refused for lack of a user is unauthorized, not forbidden."""
        if self.check_host() and getattr(self, "_jupyter_current_user", None) is None:
            return Unauthorized(KEY_REQUIRED)
        return from_code("", (error.log_message or error.reason or "forbidden").lower(), error.status_code)

    def _preflight(self, origin: str) -> None:
        """Reply to a preflight request, which has no key: the page's origin decides."""
        origins = cast(Origins, self.settings[ORIGINS])
        host = self.request.headers.get("Host", "")
        if not (
            self.check_host() and (access.same_origin(origin, host) or origins.allow(origin) or self._named(origin))
        ):
            raise PlainResponse(403)
        raise PlainResponse(204, headers=access.preflight_headers(origin, origins))

    def _named(self, origin: str) -> bool:
        """Whether Jupyter's own settings allow this origin."""
        return self.allow_origin in ("*", origin) or (bool(self.allow_origin_pat) and self.check_origin())
