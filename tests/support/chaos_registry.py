"""A registry in a thread that misbehaves on demand and records its requests.

A *fault* is a function of the request handler. It returns True if it has sent a reply, or False if it only changed what
the normal reply will be. Requests for blobs use up ``faults`` one by one; ``always`` applies to every request for a
blob, ``gate`` to every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ollama_nb.api.models import CONFIG_TYPE, LAYER_PREFIX, MANIFEST_TYPE

Fault = Callable[["Handler"], bool]
_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
_CHUNK = 64 << 10


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class ChaosRegistry:
    """``sent`` counts the blob bytes sent. ``host`` is in the form used in model names."""

    server: ThreadingHTTPServer
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    gate: Fault | None = None
    sent: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def publish(self, path: str, **layers: bytes) -> str:
        """Add a model ``ns/model:tag`` with these layers and return its name. The config is an empty object."""
        name, _, tag = path.partition(":")
        config = b'{"model_format":"gguf","model_family":"llama","model_families":["llama"]}\n'
        body: dict[str, Any] = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": self.add(config, CONFIG_TYPE)}
        body["layers"] = [self.add(data, LAYER_PREFIX + kind) for kind, data in layers.items()]
        self.manifests[f"/v2/{name}/manifests/{tag}"] = json.dumps(body, indent=1).encode()
        return f"{self.host}/{path}"

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def of(self, method: str, part: str) -> list[Asked]:
        """The requests of a method whose path contains ``part``."""
        return [asked for asked in self.asked if asked.method == method and part in asked.path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: ChaosRegistry
    data: bytes
    first: int
    last: int
    status: int
    extra: dict[str, str]
    limit: int | None

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._remember()
        if self._gated():
            return
        if (found := _BLOB.fullmatch(self.path.partition("?")[0])) is None:
            if self.path in self.registry.manifests:
                self.answer(200, self.registry.manifests[self.path], {"Content-Type": MANIFEST_TYPE})
            elif (upload := self._upload()) is not None:
                size = len(self.registry.uploads[upload])
                self.answer(204, b"", {"Location": self.path, "Range": f"0-{max(0, size - 1)}"})
            else:
                self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            return
        if found[2] not in self.registry.blobs:
            self.answer(404, b"")
            return
        self._blob(self.registry.blobs[found[2]])

    def do_HEAD(self) -> None:
        self._remember()
        if not self._gated():
            found = _BLOB.fullmatch(self.path)
            there = found is not None and found[2] in self.registry.blobs
            self.answer(200 if there else 404, b"")

    def do_POST(self) -> None:
        self._remember()
        if self._gated():
            return
        path, _, query = self.path.partition("?")
        mounted = re.search(r"mount=(sha256:[0-9a-f]+)", query)
        if mounted and mounted[1] in self.registry.blobs:
            self.answer(201, b"")
            return
        name = f"u{len(self.registry.uploads)}"
        self.registry.uploads[name] = bytearray()
        self.answer(202, b"", {"Location": f"{path}{name}?state=0", "Range": "0-0"})

    def do_PATCH(self) -> None:
        self._remember()
        if self._gated():
            return
        upload = self._upload()
        if upload is None:
            self.answer(404, b"")
            return
        held = self.registry.uploads[upload]
        if not self.headers["Content-Range"].startswith(f"{len(held)}-"):
            self.answer(416, b"")
            return
        left = int(self.headers["Content-Length"])
        fault = self.registry.faults.popleft() if self.registry.faults else self.registry.always
        self.limit = None
        if fault is not None and fault(self):
            return
        while left and (self.limit is None or self.limit > 0):
            data = self.rfile.read(min(_CHUNK, left, self.limit or left))
            held += data
            left -= len(data)
            if self.limit is not None:
                self.limit -= len(data)
        if left:
            self.cut()
            return
        self.answer(
            202, b"", {"Location": f"{self.path.partition('?')[0]}?state={len(held)}", "Range": f"0-{len(held) - 1}"}
        )

    def do_PUT(self) -> None:
        self._remember()
        if self._gated():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/manifests/" in self.path:
            self.registry.manifests[self.path] = body
            self.answer(201, b"")
            return
        upload = self._upload()
        wanted = re.search(r"digest=sha256(?::|%3A)([0-9a-f]{64})", self.path)
        assert upload is not None and wanted is not None
        data = bytes(self.registry.uploads.pop(upload))
        if hashlib.sha256(data).hexdigest() != wanted[1]:
            self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
            return
        self.registry.blobs[f"sha256:{wanted[1]}"] = data
        self.answer(201, b"")

    # -- for faults ------------------------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self) -> None:
        """Close the connection before the reply is complete."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        self.registry.asked.append(Asked(self.command, self.path, dict(self.headers)))

    def _gated(self) -> bool:
        return self.registry.gate is not None and self.registry.gate(self)

    def _upload(self) -> str | None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        return name if name in self.registry.uploads else None

    def _blob(self, data: bytes) -> None:
        self.data, self.status, self.extra, self.limit = data, 200, {"ETag": '"one"'}, None
        self.first, self.last = 0, len(data) - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked:
            self.status, self.first, self.last = 206, int(asked[1]), int(asked[2])
            self.extra["Content-Range"] = f"bytes {self.first}-{self.last}/{len(data)}"
        with self.registry.lock:
            fault = self.registry.faults.popleft() if self.registry.faults else self.registry.always
        if fault is not None and fault(self):
            return
        body = memoryview(self.data)[self.first : self.last + 1]
        self.send_response(self.status)
        for name, value in {"Content-Length": str(len(body)), **self.extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.stream(body if self.limit is None else body[: self.limit])
        if self.limit is not None:
            self.cut()

    def stream(self, body: memoryview, *, pause: float = 0.0) -> None:
        for at in range(0, len(body), _CHUNK):
            piece = body[at : at + _CHUNK]
            try:
                self.wfile.write(piece)
            except OSError:
                self.close_connection = True
                return
            with self.registry.lock:
                self.registry.sent += len(piece)
            if pause:
                time.sleep(pause)


# -- faults ------------------------------------------------------------------------------------------------------------


def sound(handler: Handler) -> bool:
    return False


def ignore_range(handler: Handler) -> bool:
    handler.status, handler.first, handler.last = 200, 0, len(handler.data) - 1
    handler.extra.pop("Content-Range", None)
    return False


def wrong_range(handler: Handler) -> bool:
    """Send 206 with the first bytes of the blob, whatever the Range."""
    size = handler.last - handler.first + 1
    handler.first, handler.last = 0, size - 1
    if handler.status == 206:
        handler.extra["Content-Range"] = f"bytes 0-{size - 1}/{len(handler.data)}"
    return False


def corrupt(handler: Handler) -> bool:
    handler.data = bytes([handler.data[0] ^ 1]) + handler.data[1:]
    return False


def page(handler: Handler) -> bool:
    handler.answer(200, b"<html>log in first</html>", {"Content-Type": "text/html"})
    return True


def cut_after(size: int) -> Fault:
    """Send correct headers and ``size`` bytes, then close the connection."""

    def fault(handler: Handler) -> bool:
        handler.limit = size
        return False

    return fault


def status(code: int, **headers: str) -> Fault:
    def fault(handler: Handler) -> bool:
        body = handler.headers.get("Content-Length")
        if body:
            handler.rfile.read(int(body))
        handler.answer(
            code, f"status {code}".encode(), {name.replace("_", "-"): value for name, value in headers.items()}
        )
        return True

    return fault


def etag(tag: str) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.extra["ETag"] = tag
        return False

    return fault


def _begun(handler: Handler) -> memoryview:
    """Send the head of a correct reply and return its body."""
    handler.send_response(handler.status)
    for name, value in {"Content-Length": str(handler.last - handler.first + 1), **handler.extra}.items():
        handler.send_header(name, value)
    handler.end_headers()
    return memoryview(handler.data)[handler.first : handler.last + 1]


def stall(handler: Handler) -> bool:
    """Send headers and a few bytes, then nothing until the test ends."""
    handler.stream(_begun(handler)[:1000])
    handler.registry.released.wait(60)
    handler.cut()
    return True


def slow(pause: float) -> Fault:
    """Send pieces of 64 KiB with a pause after each."""

    def fault(handler: Handler) -> bool:
        handler.stream(_begun(handler), pause=pause)
        return True

    return fault


def unfinished(pause: float) -> Fault:
    """Like ``slow``, but withhold the last byte of the blob until the test ends."""

    def fault(handler: Handler) -> bool:
        body = _begun(handler)
        last = handler.last == len(handler.data) - 1
        handler.stream(body[: len(body) - last], pause=pause)
        if last:
            handler.registry.released.wait()
            handler.cut()
        return True

    return fault


def rationed(pieces: threading.Semaphore) -> Fault:
    """Send a piece of 64 KiB, of any blob, each time the semaphore is released."""

    def fault(handler: Handler) -> bool:
        body = _begun(handler)
        for at in range(0, len(body), _CHUNK):
            if not pieces.acquire(timeout=60):
                break
            handler.stream(body[at : at + _CHUNK])
        return True

    return fault


def held(event: threading.Event) -> Fault:
    """Send the first bytes at once and the rest when the event is set."""

    def fault(handler: Handler) -> bool:
        body = _begun(handler)
        handler.stream(body[:_CHUNK])
        event.wait(60)
        handler.stream(body[_CHUNK:])
        return True

    return fault


def redirect(to: Callable[[Handler], str], code: int = 307) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.answer(code, b"", {"Location": to(handler)})
        return True

    return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may close connections at any time."""


@contextlib.contextmanager
def chaos_registry() -> Iterator[ChaosRegistry]:
    registry: ChaosRegistry

    class Bound(Handler):
        pass

    server = _Server(("127.0.0.1", 0), Bound)
    Bound.registry = registry = ChaosRegistry(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        registry.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
