"""HTTP to one server with the standard library: JSON requests, NDJSON streams, streamed uploads.

Every request has its own connection, because closing it cancels the request. The key is only ever sent as a header, and
to a server that was found by a runtime file only after its proof (:mod:`ollama_nb.runtime`) on the same connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from types import TracebackType
from typing import Any, Literal, Protocol
from urllib.parse import SplitResult, urlsplit

from ollama_nb import __version__
from ollama_nb.errors import BadRequest, Cancelled, ConnectError, OllamaError, ReplyCutOff, from_code
from ollama_nb.net import listening_users, proxy_for, proxy_headers
from ollama_nb.runtime import CHALLENGE, PROOF, is_proof, new_challenge

CONNECT_SECONDS = 10.0
PROOF_SECONDS = 30.0  # for a server to prove that it knows its key, even while it is busy
READ_BYTES = 1 << 16
UPLOAD_BLOCK = 1 << 20  # bytes
MAX_LINE = 8_000_000  # bytes of one line of a stream
CUT_OFF = "the connection to the server was lost before the answer was complete"
NO_SERVER = "could not connect to ollama server, run 'ollama serve' to start it"
NO_REASON = "something went wrong, please see the ollama server logs for details"
USER_AGENT = f"ollama-nb/{__version__} ({sys.platform}) Python/{sys.version_info[0]}.{sys.version_info[1]}"

CLIENT_ID = secrets.token_hex(8)  # of this process, which the server serves as one client

Trust = Literal["address", "user", "key"]
"""What makes a listener the right server: that it has this address, that its processes are this user's (where the
system reports it), or that it proves that it knows the key. Each connection is checked before anything is sent."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is, the key that it accepts, and how a listener shows that it is this server."""

    url: str
    key: str = field(default="", repr=False)
    trust: Trust = "address"


Reconnect = Callable[[], ServerAddress]
"""Finds another server."""


class _AnotherListener(Exception):
    """The program that listens at a server's address is not that server, so nothing was sent to it."""


class Readable(Protocol):
    """A binary file, or an object that reads like one."""

    def read(self, size: int, /) -> bytes: ...


class _Sockets:
    """The sockets of the running requests of one client, which may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self.hung_up = False

    def add(self, sock: socket.socket) -> None:
        """Raises Cancelled after ``hang_up``."""
        with self._lock:
            if self.hung_up:
                raise Cancelled("the request was cancelled")
            self._live.add(sock)

    def discard(self, sock: socket.socket) -> None:
        with self._lock:
            self._live.discard(sock)

    def hang_up(self) -> None:
        with self._lock:
            self.hung_up = True
            for sock in self._live:
                _shut(sock)


class _Exchange:
    """A sent request with the head of its reply. Until it is closed, ``live`` contains its socket."""

    def __init__(self, connection: HTTPConnection, response: HTTPResponse, sock: socket.socket, live: _Sockets) -> None:
        self.connection, self.response, self._sock, self._live = connection, response, sock, live

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hang_up(self) -> None:
        """Shut the connection down, which also ends a read that another thread waits in."""
        _shut(self._sock)

    def close(self) -> None:
        """Close the connection. A second call has no effect."""
        self.hang_up()
        self._live.discard(self._sock)
        # A reply with "Connection: close" takes the socket over from its connection, so both must be closed.
        self.connection.close()
        self.response.close()

    def read(self) -> bytes:
        """The whole body. Raises the error that it describes for a status from 300 on."""
        try:
            data = self.response.read()
        except (HTTPException, OSError) as error:
            raise ReplyCutOff(CUT_OFF) from error
        if 300 <= self.response.status < 400:
            where = self.response.getheader("Location")
            raise OllamaError(f"the server redirects to {where}: use that address instead")
        if self.response.status >= 400:
            raise _error(self.response.status, _value(data))
        return data


class Stream(Iterator[dict[str, Any]]):
    """The JSON objects of a streamed reply. Exhaust it, close it, or use it in ``with``: closing cancels the request.

    Iteration raises OllamaError for a line with ``error``, ReplyCutOff when the stream ends prematurely.
    """

    def __init__(self, exchange: _Exchange, is_last: Callable[[dict[str, Any]], bool]) -> None:
        self._exchange = exchange
        self._reading = threading.Lock()
        self._objects = parse_stream(self._chunks(), is_last)
        self.request_id = exchange.response.getheader("X-Request-Id", "")

    def __next__(self) -> dict[str, Any]:
        with self._reading:
            try:
                return next(self._objects)
            except BaseException:  # including StopIteration and Ctrl-C: nothing more is read
                self._exchange.close()
                raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the request, from any thread."""
        self._exchange.hang_up()
        if self._reading.acquire(blocking=False):  # otherwise the reading thread wakes up and closes
            self._exchange.close()
            self._reading.release()

    def _chunks(self) -> Iterator[bytes]:
        try:
            while chunk := self._exchange.response.read1(READ_BYTES):
                yield chunk
        except (HTTPException, OSError, ValueError) as error:  # ValueError: closed before
            raise ReplyCutOff(CUT_OFF) from error


class _Target:
    """A server's address, and what requests to it need."""

    def __init__(self, address: ServerAddress, headers: Mapping[str, str]) -> None:
        self.address = address
        self.parts, self.port = _parse_url(address.url)
        self.url = _without_user(self.parts).rstrip("/")
        self.headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": USER_AGENT,
            "X-Ollama-Client": CLIENT_ID,
            **({"Authorization": f"Bearer {address.key}"} if address.key else {}),
            **headers,
        }

    def connection(self, timeout: float) -> tuple[HTTPConnection, str, dict[str, str]]:
        """An unopened connection, the prefix of the path on its request line, and the headers for a proxy."""
        parts, host = self.parts, self.parts.hostname or ""
        prefix = parts.path.rstrip("/")
        proxy = proxy_for(parts, os.environ)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        if proxy is None:
            return kind(host, self.port, timeout=timeout, blocksize=UPLOAD_BLOCK), prefix, {}
        connection = kind(proxy.hostname or "", proxy.port or 80, timeout=timeout, blocksize=UPLOAD_BLOCK)
        if parts.scheme == "http":
            return connection, f"{_without_user(parts._replace(path=''))}{prefix}", proxy_headers(proxy)
        connection.set_tunnel(host, self.port, proxy_headers(proxy))
        return connection, prefix, {}

    def check(self, connection: HTTPConnection, prefix: str) -> None:
        """Raises _AnotherListener unless the program at the other end is the server of the address."""
        if self.address.trust == "user" and listening_users(self.port) not in (None, {os.getuid()}):
            raise _AnotherListener
        if self.address.trust == "key":
            self._ask_for_proof(connection, prefix)

    def _ask_for_proof(self, connection: HTTPConnection, prefix: str) -> None:
        assert connection.sock is not None
        connection.sock.settimeout(PROOF_SECONDS)
        challenge = new_challenge()
        try:
            connection.request("HEAD", f"{prefix}/", headers={CHALLENGE: challenge, "User-Agent": USER_AGENT})
            with connection.getresponse() as response:
                response.read()
        except TimeoutError:
            raise
        except (OSError, HTTPException) as error:
            raise _AnotherListener from error
        if not is_proof(response.getheader(PROOF, ""), self.address.key, challenge):
            if response.status == 503:  # a server without a free file descriptor, which cannot read the challenge
                raise from_code("busy", "too many connections are open, please try again", 503)
            raise _AnotherListener


class Http:
    """Requests to the server at ``address`` (a path in its URL is kept), with its key as a bearer token.

    ``reconnect`` finds another server when this one does not listen any more. Threads may share it.
    """

    def __init__(
        self, address: ServerAddress, *, headers: Mapping[str, str] | None = None, reconnect: Reconnect | None = None
    ) -> None:
        self._extra_headers, self.reconnect = dict(headers or {}), reconnect
        self._target = _Target(address, self._extra_headers)
        self._reconnecting = threading.Lock()
        self._live = _Sockets()

    def __repr__(self) -> str:
        return f"Http({self.url!r})"

    @property
    def address(self) -> ServerAddress:
        return self._target.address

    @property
    def url(self) -> str:
        return self._target.url

    def hang_up(self) -> None:
        """Cancel the running requests, from any thread; later requests raise Cancelled."""
        self._live.hang_up()

    def status(self, method: str, path: str, *, timeout: float = CONNECT_SECONDS) -> int:
        """The HTTP status of a request without body. Raises ConnectError without a reply in ``timeout`` seconds."""
        with self._send(method, path, None, {}, timeout=timeout) as exchange:
            return exchange.response.status

    def request(self, method: str, path: str, body: Any = None, *, timeout: float | None = None) -> Any:
        """Send JSON and return the reply's JSON, its text when it is not JSON, None when it is empty.

        Raises OllamaError with the server's message, of the class that its code or status names.
        """
        with self._send(method, path, _encoded(body), {}, timeout=timeout) as exchange:
            return _value(exchange.read())

    def stream(self, path: str, body: Any, is_last: Callable[[dict[str, Any]], bool]) -> Stream:
        """POST JSON and return the reply as a stream. An HTTP error is raised here, not by the stream."""
        exchange = self._send("POST", path, _encoded(body), {"Accept": "application/x-ndjson"})
        if exchange.response.status >= 300:
            with exchange:
                exchange.read()
        return Stream(exchange, is_last)

    def upload(self, path: str, file: Readable, size: int) -> None:
        """POST ``size`` bytes read from ``file`` block by block."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self._send("POST", path, _exactly(file, size), headers) as exchange:
            exchange.read()

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None,
        headers: Mapping[str, str],
        *,
        timeout: float | None = None,
    ) -> _Exchange:
        """Send a request and wait for the reply's head. Without ``timeout``, only connecting is limited in time."""
        target = self._target
        try:
            try:
                return self._send_to(target, method, path, body, headers, timeout=timeout)
            except (ConnectionRefusedError, _AnotherListener):
                if self.reconnect is None:
                    raise
            target = self._find_next(target, self.reconnect)
            return self._send_to(target, method, path, body, headers, timeout=timeout)
        except (OSError, HTTPException, _AnotherListener) as error:
            raise _failure(target.url, error) from error

    def _find_next(self, ended: _Target, reconnect: Reconnect) -> _Target:
        """The server that follows one that has ended; one thread finds it for all."""
        with self._reconnecting:
            if self._target is ended:
                self._target = _Target(reconnect(), self._extra_headers)
            return self._target

    def _send_to(
        self,
        target: _Target,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None,
        headers: Mapping[str, str],
        *,
        timeout: float | None = None,
    ) -> _Exchange:
        connection, prefix, more = target.connection(timeout or CONNECT_SECONDS)
        # Otherwise http.client would open a second connection, to an unchecked listener, if the first one was closed.
        connection.auto_open = 0
        sock: socket.socket | None = None
        try:
            connection.connect()
            sock = connection.sock
            assert sock is not None
            self._live.add(sock)
            target.check(connection, prefix)
            sock.settimeout(timeout)  # None: a model may take any time
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A server that refuses an upload replies early, with the reason, and closes.
                connection.request(method, prefix + path, body, {**target.headers, **headers, **more})
            return _Exchange(connection, connection.getresponse(), sock, self._live)
        except BaseException as error:
            connection.close()
            if sock is not None:
                self._live.discard(sock)
            if self._live.hung_up and isinstance(error, (OSError, HTTPException, _AnotherListener)):
                raise Cancelled("the request was cancelled") from error
            raise


def _failure(url: str, error: Exception) -> ConnectError:
    if isinstance(error, ConnectionRefusedError):
        return ConnectError(NO_SERVER)
    if isinstance(error, _AnotherListener):
        return ConnectError(
            f"the program that listens at {url} is not the server that this client connected to, so nothing was sent "
            "to it: connect again"
        )
    if isinstance(error, TimeoutError):
        return ConnectError(f"the server at {url} does not answer")
    if isinstance(error, (HTTPException, ConnectionError)):
        return ConnectError(f"the server at {url} closed the connection without an answer")
    return ConnectError(f"could not connect to {url}: {getattr(error, 'strerror', None) or error}")


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _parse_url(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        pass
    raise BadRequest("no server address: use host:port or http(s)://host:port/path")


def _exactly(file: Readable, size: int) -> Iterator[bytes]:
    """Yield ``size`` bytes of the file in blocks. A file that became shorter must not leave the server waiting."""
    left = size
    while left:
        block = file.read(min(UPLOAD_BLOCK, left))
        if not block:
            raise OllamaError(f"the file became {left} bytes shorter while it was read")
        left -= len(block)
        yield block


def _encoded(body: Any) -> bytes | None:
    return None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _error(status: int | None, value: Any) -> OllamaError:
    """The error in a body or a stream line; ``status`` None: that of the error's class."""
    text, code = (value.get("error"), str(value.get("code") or "")) if isinstance(value, dict) else (value, "")
    if isinstance(text, dict):  # the format of OpenAI and Anthropic
        text = text.get("message")
    return from_code(code, str(text or "").strip() or NO_REASON, status)


def _value(data: bytes) -> Any:
    if not data.strip():
        return None
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def _without_user(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# NDJSON


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines without their line feeds, including an unterminated last one."""
    buffer = bytearray()
    for chunk in chunks:
        searched = len(buffer)
        buffer += chunk
        end = buffer.find(b"\n", searched)
        while end >= 0:
            yield bytes(buffer[:end])
            del buffer[: end + 1]
            end = buffer.find(b"\n")
        if len(buffer) > MAX_LINE:
            raise OllamaError(f"the server sent a line of more than {MAX_LINE} bytes")
    if buffer:
        yield bytes(buffer)


def parse_stream(chunks: Iterable[bytes], is_last: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    """Yield each line's object. Raises ReplyCutOff when the stream ends before an object that ``is_last``."""
    complete = False
    for line in split_lines(chunks):
        if not line.strip():
            continue
        found = _object(line)
        if found.get("error"):
            raise _error(None, found)
        complete = complete or is_last(found)
        yield found
    if not complete:
        raise ReplyCutOff(CUT_OFF)


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        # A proper prefix of an object is never valid JSON, so this catches every incomplete line.
        raise ReplyCutOff(f"{CUT_OFF} (it ends with {_shortened(line)})") from None
    if not isinstance(found, dict):
        raise OllamaError(f"the server sent {_shortened(line)} where a JSON object was expected")
    return found


def _shortened(line: bytes) -> str:
    text = line[-60:].decode("utf-8", "replace")
    return repr(text if len(line) <= 60 else "…" + text)
