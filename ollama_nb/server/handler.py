"""The Tornado handler of every route, for both hosts: request ids, bodies, errors, streams, clients that disconnect.

The functions of the routes are in the packages of :mod:`ollama_nb.server.dialects`. The host's subclass decides in
``admit`` who may use them, before the body is read, so that clients without access cannot fill the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar, cast

from tornado import web
from tornado.iostream import StreamClosedError

from ollama_nb.api.events import Done, Event, Progress, Rendered
from ollama_nb.errors import BadRequest, OllamaError, ShuttingDown, Unauthorized, from_code
from ollama_nb.runtime import CHALLENGE, PROOF
from ollama_nb.server import access, limits
from ollama_nb.server.dialects import gojson
from ollama_nb.server.dialects.encoder import ErrorFormat, ReplyEncoder
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.native import replies
from ollama_nb.server.keys import ADMIN
from ollama_nb.server.state import ServerState
from ollama_nb.server.streams import PIECE, BodySink, DiscardedBody, MemoryBody, ReplyWriter, SlowClient
from ollama_nb.service.requests import CLIENT
from ollama_nb.service.service import Service

SETTING = "ollama_nb_state"  # key of the ServerState in the application's settings
KEEP_ALIVE = 15.0  # seconds without output after which a stream of server-sent events gets a keep-alive
_UNLIMITED = 1 << 42  # bytes; the body sinks limit bodies, not Tornado
_CLIENT_LEFT = 499  # status in the log and in metrics, as nginx has it
_BODY_TOO_SLOW = 408  # likewise
_TEXT = "text/plain"
_READING_METHODS = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("ollama_nb.server")

T = TypeVar("T")


@dataclass
class PlainResponse(Exception):
    """Raised to send a complete response that is not an error body: plain texts, redirects, preflight replies."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """What one method of one path does.

    ``run`` writes the reply. ``scope`` is the scope that an API key needs (empty: any valid key). ``max_body`` is in
    bytes; with ``zstd``, the body may be compressed. ``relay`` is tried first and returns True if another server has
    answered. ``open_body`` chooses where the body goes (default: into memory). ``errors`` is the format of errors.
    ``by_header`` has the routes that take the place of this one for requests with a header of that name, where two
    dialects share a path.
    """

    run: Callable[[OllamaHandler], Awaitable[None]]
    scope: str = ADMIN
    max_body: int = limits.MAX_BODY
    relay: Callable[[OllamaHandler], Awaitable[bool]] | None = None
    open_body: Callable[[OllamaHandler], BodySink] | None = None
    errors: ErrorFormat = replies.ERRORS
    zstd: bool = False
    by_header: Mapping[str, Route] = field(default_factory=dict)


@web.stream_request_body
class OllamaHandler(web.RequestHandler):
    """Handles one request to one path. Each host has a subclass with its own ``admit``."""

    path = ""
    methods: Mapping[str, Route]
    sink: BodySink
    _client_gone = _reported = False
    _body_timer: asyncio.TimerHandle | None = None
    _body_began = _last_chunk = 0.0
    _body_size = 0
    _refusal: Exception | None = None
    _stream: ReplyWriter | None = None
    _fail_stream: Callable[[OllamaError], bytes]
    _keeping_alive: asyncio.Task[None] | None = None
    _last_piece = 0.0
    _task: asyncio.Task[None] | None = None
    _request_id = ""
    _model = ""
    _json: Any = None

    def initialize(self, path: str, methods: Mapping[str, Route]) -> None:
        """Called by Tornado with the arguments of the URL spec: the pattern below the prefix, and its methods."""
        self.path, self.methods = path, methods

    # For the functions in ``routes``

    @property
    def state(self) -> ServerState:
        return cast(ServerState, self.settings[SETTING])

    @property
    def service(self) -> Service:
        return self.state.service

    @property
    def id(self) -> str:
        """The request's id: the client's ``X-Request-Id`` if it is valid, else a random one."""
        if not self._request_id:
            offered = self.request.headers.get("X-Request-Id", "")
            self._request_id = offered if _REQUEST_ID.fullmatch(offered) else secrets.token_hex(8)
        return self._request_id

    async def fields(self, struct: str) -> Fields:
        """The JSON body as the Go struct ``struct``. Raises BadRequest."""
        if self._json is None:
            self._json = await self._parse(self._decode)
        fields = Fields(self._json, struct)
        model = fields.raw("model")
        self._model = model if isinstance(model, str) else ""
        return fields

    async def read(self, struct: str, reader: Callable[[Fields], T]) -> tuple[T, Fields]:
        """Convert the JSON body with ``reader``; return the result and the body. Raises BadRequest.

        The bytes of the body are freed.
        """
        fields = await self.fields(struct)
        result = await self._parse(reader, fields)
        cast(MemoryBody, self.sink).clear()
        self._json = None
        return result, fields

    async def read_body(self) -> bytes:
        """A copy of the received body of a route that keeps it in memory."""
        return await self.state.in_worker(bytes, self.body())

    def body(self) -> bytes | bytearray:
        """The received body of a route that keeps it in memory."""
        return cast(MemoryBody, self.sink).content()

    def wants(self, what: str) -> bool:
        """Whether the header ``X-Ollama-<what>`` is set to true."""
        return self.is_set(f"X-Ollama-{what}")

    def is_set(self, header: str) -> bool:
        """Whether the header is set to true."""
        return self.request.headers.get(header, "").strip().lower() in ("1", "true", "yes", "on")

    async def send(self, body: bytes = b"", content_type: str = replies.JSON, status: int = 200) -> None:
        """Send a complete reply."""
        self.set_status(status, _reason(status))
        if status == 503:
            self.set_header("Retry-After", "1")
        if body:
            self.set_header("Content-Type", content_type)
        if len(body) > PIECE and self.request.method != "HEAD":
            self.set_header("Content-Length", str(len(body)))
            await ReplyWriter(self).write_all([body])
        elif body:
            self.write(body)
        await self._finish()

    async def send_pieces(self, pieces: Sequence[bytes], content_type: str = replies.JSON) -> None:
        """Send a complete reply that is too large to be joined."""
        self.set_header("Content-Type", content_type)
        self.set_header("Content-Length", str(sum(map(len, pieces))))
        await ReplyWriter(self).write_all(pieces)
        await self._finish()

    async def send_events(self, source: AsyncIterator[Event], encoder: ReplyEncoder, *, stream: bool) -> None:
        """Send a model's reply, as a stream or at once."""
        gathered: list[Event] = []
        if stream and encoder.keep_alive:
            self._keeping_alive = asyncio.ensure_future(self._keep_alive(encoder))
        async with closing(source) as events:
            async for event in events:
                if stream and (self._stream is not None or not encoder.is_whole(event)):
                    gathered = [event]
                    if self._stream is None:
                        self._begin(encoder)
                    await self.send_piece(encoder.chunk(event))
                else:
                    gathered.append(event)
        if not gathered or not isinstance(gathered[-1], Done | Rendered):
            raise OllamaError("the model's reply ended prematurely")
        if self._stream is None:
            if len(gathered) <= limits.MAX_EVENTS_ON_LOOP:
                whole = encoder.whole(gathered)
            else:
                whole = await self.state.in_worker(encoder.whole, gathered)
            gathered.clear()
            await self.send(whole, encoder.whole_type)
        else:
            await self.send_piece(encoder.end())
            await self.end()

    async def send_progress(self, source: AsyncIterator[Progress], *, stream: bool) -> None:
        """Send the progress of a pull, push or create as a stream of lines, or only the last line."""
        last = Progress("success")
        async with closing(source) as lines:
            async for last in lines:
                if stream:
                    self.start_stream(replies.NDJSON, replies.error_line)
                    await self.send_piece(replies.progress(last) + b"\n")
        if self._stream is not None:
            await self.end()
        else:
            await self.send(replies.progress(last), replies.WHOLE_PROGRESS)

    def start_stream(self, content_type: str, fail: Callable[[OllamaError], bytes]) -> None:
        """Begin a streamed response, if it has not begun yet. ``fail`` writes the piece that reports an error in it."""
        if self._stream is None:
            self.set_header("Content-Type", content_type)
            self.set_header("Cache-Control", "no-cache")
            self.set_header("X-Accel-Buffering", "no")
            self._stream, self._fail_stream = ReplyWriter(self), fail
            # Without this, each small piece waits until the client has acknowledged the one before it.
            self._connection.stream.set_nodelay(True)

    async def send_piece(self, piece: bytes) -> None:
        """Send a piece of a stream that has begun, and what its encoder has written before it."""
        if self._stream is not None:
            if piece:
                self._last_piece = asyncio.get_running_loop().time()
            await self._stream.write(piece)

    async def end(self) -> None:
        """End a stream."""
        self._stop_keep_alive()
        if self._stream is not None:
            await self._stream.close()
        await self._finish()

    @property
    def route(self) -> Route | None:
        """The route of this request; None for a method that the path does not have."""
        route = self.methods.get(self.request.method or "")
        variants = route.by_header.items() if route else ()
        return next((variant for header, variant in variants if header in self.request.headers), route)

    # For the hosts

    async def admit(self) -> None:
        """Return if the client may send this request; else raise OllamaError, PlainResponse or web.HTTPError."""
        raise NotImplementedError

    def prove(self, challenge: str) -> str:
        """The host's proof that it knows its key (:mod:`ollama_nb.runtime`)."""
        raise NotImplementedError

    @property
    def errors(self) -> ErrorFormat:
        """The format of error bodies of this route."""
        return self.route.errors if self.route else replies.ERRORS

    def error_body(self, error: OllamaError) -> bytes:
        """The body of an error reply."""
        return self.errors.encode(error, self.id)

    # Tornado's hooks

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.clear_header("Server")
        self.clear_header("Content-Type")
        self.set_header("X-Request-Id", self.id)

    def compute_etag(self) -> None:
        """Send no ETag: replies are never the same twice."""

    async def prepare(self) -> None:
        self._connection.set_max_body_size(_UNLIMITED)
        if self.errors.id_header:
            self.set_header(self.errors.id_header, self.id)
        try:
            if challenge := self.request.headers.get(CHALLENGE):
                # Before admission: the client sends its key only after the proof.
                raise PlainResponse(204, headers={PROOF: self.prove(challenge)})
            await self.admit()
            self.sink = self._open_sink()
            self._watch_body()
        except (OllamaError, PlainResponse, web.HTTPError) as error:
            self.sink = DiscardedBody()
            self._refusal = error
            length = self.request.headers.get("Content-Length", "0")
            is_short = length.isdecimal() and int(length) <= limits.MAX_DISCARDED
            if "Transfer-Encoding" in self.request.headers or not is_short:
                await self._send_refusal(error)

    async def data_received(self, chunk: bytes) -> None:
        if self._finished:
            return
        self._body_size += len(chunk)
        try:
            await self.sink.write(chunk)
        except OllamaError as error:
            await self.sink.close()
            self.sink = DiscardedBody()
            await self._send_refusal(error)
        self._last_chunk = asyncio.get_running_loop().time()

    async def respond(self, *args: str) -> None:
        """Handle every HTTP method, once the body has been read."""
        self._stop_watching_body()
        if self._finished:
            return
        if self._refusal is not None:
            await self._send_refusal(self._refusal)
            return
        self._task = asyncio.ensure_future(self._run())
        works = self.request.method not in _READING_METHODS
        self.state.enter(self._task, works=works, disconnect=self._connection.close)
        await asyncio.wait({self._task})

    get = head = post = put = patch = delete = options = respond

    def on_finish(self) -> None:
        super().on_finish()
        self._report()

    def on_connection_close(self) -> None:
        self._client_gone = True
        self._stop_watching_body()
        if not self._finished and self.get_status() != _BODY_TOO_SLOW:
            self._set_log_status(_CLIENT_LEFT)
        super().on_connection_close()
        if self._task is not None:
            self._task.cancel()
        elif hasattr(self, "sink"):
            # The client has disconnected within the body: discard it after the write that is in progress. Tornado
            # neither logs nor finishes such a request.
            self._log()
            self._report()
            self._task = asyncio.ensure_future(self.sink.close())
            self.state.enter(self._task)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write errors that Tornado and Jupyter raise outside of our own code in the format of ours."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not isinstance(error, web.HTTPError):
            error = web.HTTPError(status_code)
        self.set_header("Content-Type", self.errors.content_type)
        self.finish(self.error_body(_from_tornado(error)))

    # Internal

    def _begin(self, encoder: ReplyEncoder) -> None:
        self.start_stream(encoder.stream_type, encoder.fail)
        assert self._stream is not None
        self._stream.queue(encoder.start())

    async def _keep_alive(self, encoder: ReplyEncoder) -> None:
        """Send something at least every ``KEEP_ALIVE`` seconds, so that proxies and clients do not close a stream.

        Errors that follow are then reported in the stream, because its status has been sent.
        """
        loop = asyncio.get_running_loop()
        self._last_piece = loop.time()
        with contextlib.suppress(StreamClosedError, SlowClient):  # the task that writes the reply reports them
            while True:
                await asyncio.sleep(max(self._last_piece + KEEP_ALIVE - loop.time(), 0.01))
                if loop.time() >= self._last_piece + KEEP_ALIVE:
                    if self._stream is None:
                        self._begin(encoder)
                    await self.send_piece(encoder.keep_alive)

    async def _finish(self) -> None:
        """End the reply. Raises SlowClient if the client does not accept what is left of it."""
        try:
            async with asyncio.timeout(limits.WRITE_SECONDS):
                await self.finish()
        except TimeoutError:
            raise SlowClient from None

    def _drop(self) -> None:
        """Close the connection of a client that has left or does not read."""
        self._set_log_status(_CLIENT_LEFT)
        self._connection.close()

    def _set_log_status(self, status: int) -> None:
        """The status that the log and metrics report; the client cannot receive it."""
        self.set_status(status, _reason(status))

    def _report(self) -> None:
        """Count the request in metrics, once."""
        if not self._reported:
            self._reported = True
            self.state.metrics.request(self._label, self._model, self.get_status(), self.request.request_time())

    def _watch_body(self) -> None:
        """Close the connection if no body arrives for ``BODY_SECONDS``, or one byte after the other."""
        loop = asyncio.get_running_loop()
        self._body_began = self._last_chunk = loop.time()
        self._body_timer = loop.call_later(limits.BODY_SECONDS, self._check_body)

    def _check_body(self) -> None:
        loop = asyncio.get_running_loop()
        idle = loop.time() - self._last_chunk
        is_slow = self._body_size < limits.MIN_BODY_RATE * (loop.time() - self._body_began)
        if is_slow or idle >= limits.BODY_SECONDS:
            self._set_log_status(_BODY_TOO_SLOW)
            self._connection.close()
        else:
            self._body_timer = loop.call_later(limits.BODY_SECONDS - idle, self._check_body)

    def _stop_watching_body(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()

    def _stop_keep_alive(self) -> None:
        if self._keeping_alive is not None:
            self._keeping_alive.cancel()

    @property
    def _connection(self) -> Any:
        return self.request.connection

    @property
    def _label(self) -> str:
        """The path in metrics; all unknown paths share one label."""
        return self.path or "other"

    def _open_sink(self) -> BodySink:
        """Choose where the body goes. Raises PlainResponse for a method that the path does not have."""
        route = self.route
        if route is None:
            raise PlainResponse(405, b"405 method not allowed", {"Allow": ", ".join(self.methods)})
        if self.state.draining:
            raise ShuttingDown
        return route.open_body(self) if route.open_body else MemoryBody(route.max_body, self.state.budget)

    def _decode(self) -> Any:
        body = self.body()
        if not body or body.isspace():
            raise BadRequest(self.errors.empty_body)
        return gojson.decode(body)

    async def _parse(self, parse: Callable[..., T], *args: Any) -> T:
        """Call a function that reads the JSON body; in a worker thread if the body is large."""
        if len(self.body()) <= limits.MAX_ON_LOOP:
            return parse(*args)
        return await self.state.in_worker(parse, *args)

    async def _decompress_body(self) -> None:
        """Raises BadRequest for an encoding other than zstd, and for a body that is invalid or too large."""
        encoding = self.request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding == "zstd":
            await self.state.in_worker(cast(MemoryBody, self.sink).decompress, limits.MAX_DECOMPRESSED)
        elif encoding not in ("", "identity"):
            raise BadRequest(f"Content-Encoding {encoding[:20]} is not supported: use zstd, or do not compress")

    async def _run(self) -> None:
        """Run the route and turn every exception into a reply."""
        try:
            route = self.route
            assert route is not None
            CLIENT.set(access.client_of(self.request.headers, self.request.remote_ip or ""))
            if route.zstd:
                await self._decompress_body()
            if route.relay is None or not await route.relay(self):
                await route.run(self)
        except OllamaError as error:
            await self._fail(error)
        except web.HTTPError as error:  # a query argument that is missing or not valid UTF-8
            await self._fail(_from_tornado(error))
        except (StreamClosedError, SlowClient):
            self._drop()
        except asyncio.CancelledError:
            if not self._client_gone:
                await self._fail(ShuttingDown())
        except Exception:
            _log.exception("request %s failed: %s %s", self.id, self.request.method, self.request.path)
            await self._fail(OllamaError(f"internal error, see the server's log for request {self.id}"))
        finally:
            self._stop_keep_alive()
            await self.sink.close()

    async def _fail(self, error: OllamaError) -> None:
        """Send an error: with its status before the first object, as the stream's last line after it."""
        if self._client_gone or self._finished:
            return
        public = self.service.public(error)
        if public is not error:
            _log.warning("request %s failed: %s", self.id, error.message)
        await self._send_error(public)

    async def _send_error(self, error: OllamaError) -> None:
        try:
            if self._stream is None and self._headers_written:
                self._drop()  # within a reply whose length has been sent
            elif self._stream is None:
                self._stop_keep_alive()
                await self.send(self.error_body(error), self.errors.content_type, error.status)
            else:
                await self.send_piece(self._fail_stream(error))
                await self.end()
        except (StreamClosedError, SlowClient):
            self._drop()

    async def _send_refusal(self, error: Exception) -> None:
        if isinstance(error, Unauthorized):
            self.set_header("WWW-Authenticate", "Bearer")
        try:
            if isinstance(error, PlainResponse):
                for name, value in error.headers.items():
                    self.set_header(name, value)
                await self.send(error.body, error.headers.get("Content-Type", _TEXT), error.status)
            elif isinstance(error, OllamaError):
                await self._fail(error)
            elif isinstance(error, web.HTTPError):
                await self._fail(_from_tornado(error))
        except (StreamClosedError, SlowClient):
            self._drop()


def closing(source: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """Close one of the service's generators at the end of the block, which cancels its work."""
    return aclosing(cast(AsyncGenerator[T, None], source))


def _from_tornado(error: web.HTTPError) -> OllamaError:
    logged = error.log_message and error.log_message % error.args  # a percent sign is doubled in it
    message = logged or error.reason or _reason(error.status_code)
    return from_code("", message.lower(), error.status_code)


def _reason(status: int) -> str:
    if status == _CLIENT_LEFT:
        return "Client Closed Request"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
