"""The Tornado side of every route, for both hosts: request ids, bodies, errors, streams, and clients that go away.

What a route does stands in ``endpoints``; who may ask is said by the subclass of each host, in ``admit``.
The body is read after ``admit``, so that nobody unknown can fill the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar, cast

from tornado import web
from tornado.iostream import StreamClosedError

from ollama_nb.api.events import Done, Event, Progress, Rendered
from ollama_nb.errors import OllamaError, ShuttingDown, from_code
from ollama_nb.server.bodies import MIB, Collected, Discarded, Sink
from ollama_nb.server.dialects import native, native_reply
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.outlet import Outlet, SlowReader
from ollama_nb.server.state import ServerState
from ollama_nb.service.service import Service

SETTING = "ollama_nb_state"
_UNBOUNDED = 1 << 42
_DISCARDED = MIB
_TEXT = "text/plain"
_LOOKING = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("ollama_nb.server")

T = TypeVar("T")


@dataclass
class Answer(Exception):
    """A finished answer that is no error of a dialect: the router's plain texts, redirects, preflights."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """One method of a path. ``most``: bytes of a body; ``sink``: where it goes instead of into memory.

    ``error``: writes the body of an error reply, if not in the format of the native API.
    """

    run: Callable[[Endpoint], Awaitable[None]]
    most: int = 32 * MIB
    sink: Callable[[Endpoint], Sink] | None = None
    error: Callable[[OllamaError], bytes] | None = None


@web.stream_request_body
class Endpoint(web.RequestHandler):
    """One path. A host's subclass says who is admitted, ``methods`` what is done."""

    methods: ClassVar[Mapping[str, Route]] = {}
    route: ClassVar[str] = "other"

    sink: Sink
    _gone = False
    _failure: Exception | None = None
    _outlet: Outlet | None = None
    _task: asyncio.Task[None] | None = None
    _request_id = ""
    _model = ""

    # For the bodies in ``endpoints``

    @property
    def state(self) -> ServerState:
        return cast(ServerState, self.settings[SETTING])

    @property
    def service(self) -> Service:
        return self.state.service

    @property
    def id(self) -> str:
        """The request's id: the client's own if it is a good one."""
        if not self._request_id:
            offered = self.request.headers.get("X-Request-Id", "")
            self._request_id = offered if _REQUEST_ID.fullmatch(offered) else secrets.token_hex(8)
        return self._request_id

    def fields(self, struct: str) -> Fields:
        """The JSON body, read as that Go struct. Raises BadRequest."""
        found = native.fields(cast(Collected, self.sink).body(), struct)
        with contextlib.suppress(OllamaError):  # whether it must be a text is for the route to say
            self._model = found.text("model")
        return found

    def wants(self, what: str) -> bool:
        """Whether the header ``X-Ollama-<what>`` says yes."""
        return self.request.headers.get(f"X-Ollama-{what}", "").strip().lower() in ("1", "true", "yes", "on")

    async def send(self, body: bytes = b"", content_type: str = native_reply.JSON, status: int = 200) -> None:
        """Answer with one body."""
        self.set_status(status, _reason(status))
        if status == 503:
            self.set_header("Retry-After", "1")
        if body:
            self.set_header("Content-Type", content_type)
            self.write(body)
        await self.finish()

    async def send_events(self, source: AsyncIterator[Event], reply: native_reply.Reply, *, stream: bool) -> None:
        """Answer with what a model says. Replies that only load, unload or render are one object in any case."""
        async with closing(source) as events:
            gathered: list[Event] = []
            async for event in events:
                if stream and (gathered or not _is_single(event)):
                    gathered = [event]
                    await self.send_line(reply.chunk(event))
                else:
                    gathered.append(event)
        if not gathered or not isinstance(gathered[-1], Done | Rendered):
            raise OllamaError("the model's reply ended prematurely")
        if self._outlet is None:
            await self.send(reply.whole(gathered))
        else:
            await self.end()

    async def send_progress(self, source: AsyncIterator[Progress], *, stream: bool) -> None:
        """Answer with the lines of a pull or create; unstreamed, with the last one."""
        last = Progress("success")
        async with closing(source) as lines:
            async for last in lines:
                if stream:
                    await self.send_line(native_reply.progress(last))
        if stream and self._outlet is not None:
            await self.end()
        else:
            await self.send(native_reply.progress(last), native_reply.WHOLE_PROGRESS)

    async def send_line(self, line: bytes) -> None:
        """Write one object of a stream; the first one starts the response."""
        if self._outlet is None:
            self.set_header("Content-Type", native_reply.NDJSON)
            self.set_header("Cache-Control", "no-cache")
            self.set_header("X-Accel-Buffering", "no")
            self._outlet = Outlet(self)
            # Small pieces must leave at once: without this each waits for the acknowledgement of the one before.
            self._connection.stream.set_nodelay(True)
        await self._outlet.put(line + b"\n")

    async def end(self) -> None:
        """End a stream."""
        if self._outlet is not None:
            await self._outlet.close()
        await self.finish()

    # For the hosts

    async def admit(self) -> None:
        """Let the request in, or raise OllamaError, Answer or web.HTTPError."""
        raise NotImplementedError

    def error_body(self, error: OllamaError) -> bytes:
        route = self.methods.get(self.request.method or "")
        return route.error(error) if route and route.error else native_reply.error(error)

    # Tornado's hooks

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.clear_header("Server")
        self.clear_header("Content-Type")
        self.set_header("X-Request-Id", self.id)

    def compute_etag(self) -> None:
        """No reply is worth a 304."""

    async def prepare(self) -> None:
        self._connection.set_max_body_size(_UNBOUNDED)
        try:
            await self.admit()
            self.sink = self.open_sink()
        except (OllamaError, Answer, web.HTTPError) as error:
            self.sink = Discarded()
            self._failure = error
            length = self.request.headers.get("Content-Length", "0")
            if "Transfer-Encoding" in self.request.headers or not length.isdecimal() or int(length) > _DISCARDED:
                await self._answer_failure(error)

    async def data_received(self, chunk: bytes) -> None:
        if self._finished:
            return
        try:
            await self.sink.write(chunk)
        except OllamaError as error:
            await self.sink.close()
            self.sink = Discarded()
            await self._answer_failure(error)

    async def respond(self, *args: str) -> None:
        """Every method ends here, once the body is read."""
        if self._finished:
            return
        if self._failure is not None:
            await self._answer_failure(self._failure)
            return
        self._task = asyncio.ensure_future(self._run())
        self.state.enter(self._task, works=self.request.method not in _LOOKING)
        await asyncio.wait({self._task})

    get = head = post = put = patch = delete = options = respond

    def on_finish(self) -> None:
        super().on_finish()
        self.state.metrics.request(self.route, self._model, self.get_status(), self.request.request_time())

    def on_connection_close(self) -> None:
        if not self._finished:
            self.state.metrics.request(self.route, "", 499, self.request.request_time())
        self._gone = True
        super().on_connection_close()
        if self._task is not None:
            self._task.cancel()
        elif hasattr(self, "sink"):
            # The body ends here: what was received of it goes, once a write that is under way has ended.
            self._task = asyncio.ensure_future(self.sink.close())
            self.state.enter(self._task)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write errors that Tornado and Jupyter raise outside of our own code in the format of ours."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not isinstance(error, web.HTTPError):
            error = web.HTTPError(status_code)
        self.set_header("Content-Type", native_reply.JSON)
        self.finish(self.error_body(_from_tornado(error)))

    # Inside

    @property
    def _connection(self) -> Any:
        return self.request.connection

    def open_sink(self) -> Sink:
        """Where the body of this request goes. Raises Answer for a method that the path does not have."""
        method = self.request.method or ""
        route = self.methods.get(method)
        if route is None:
            raise Answer(405, b"405 method not allowed", {"Allow": ", ".join(self.methods)})
        if self.state.draining:
            raise ShuttingDown
        return route.sink(self) if route.sink else Collected(route.most)

    async def _run(self) -> None:
        """One of the program's borders: whatever goes wrong behind it becomes an answer here."""
        try:
            await self.methods[self.request.method or ""].run(self)
        except OllamaError as error:
            await self._fail(error)
        except (StreamClosedError, SlowReader):
            self._connection.close()
        except asyncio.CancelledError:
            if not self._gone:
                await self._fail(ShuttingDown())
        except Exception:
            _log.exception("request %s failed: %s %s", self.id, self.request.method, self.request.path)
            await self._fail(OllamaError(f"internal error, see the server's log for request {self.id}"))
        finally:
            await self.sink.close()

    async def _fail(self, error: OllamaError) -> None:
        """Send an error: with its status before the first object, as the stream's last line after it."""
        if self._gone or self._finished:
            return
        body = self.error_body(error)
        try:
            if self._outlet is None:
                await self.send(body, native_reply.JSON, error.status)
            else:
                await self.send_line(body)
                await self.end()
        except (StreamClosedError, SlowReader):
            self._connection.close()

    async def _answer_failure(self, error: Exception) -> None:
        try:
            if isinstance(error, Answer):
                for name, value in error.headers.items():
                    self.set_header(name, value)
                await self.send(error.body, error.headers.get("Content-Type", _TEXT), error.status)
            elif isinstance(error, OllamaError):
                await self._fail(error)
            elif isinstance(error, web.HTTPError):
                await self._fail(_from_tornado(error))
        except StreamClosedError:
            pass


def closing(source: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """Close a generator of the service at the end of the block, which cancels its work."""
    return aclosing(cast(AsyncGenerator[T, None], source))


def _is_single(event: Event) -> bool:
    return isinstance(event, Rendered) or (isinstance(event, Done) and event.reason in ("load", "unload"))


def _from_tornado(error: web.HTTPError) -> OllamaError:
    message = error.log_message or error.reason or _reason(error.status_code)
    return from_code("", message.lower(), error.status_code)


def _reason(status: int) -> str:
    if status == 499:
        return "Client Closed Request"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
