"""A server that says what a test tells it to, over real sockets, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """``chunks`` go out one by one in chunked encoding; ``cut`` leaves without the last chunk."""

    status: int = 200
    chunks: Iterable[bytes] = ()
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def ok(value: Any = None, status: int = 200) -> Answer:
    body = b"" if value is None else json.dumps(value, ensure_ascii=False).encode()
    return Answer(status, [body] if body else [], {"Content-Type": "application/json; charset=utf-8"})


def error(status: int, text: str) -> Answer:
    return ok({"error": text}, status)


def ndjson(*lines: dict[str, Any]) -> Answer:
    return Answer(200, [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines])


class ScriptedServer:
    """Routes are ``"POST /api/show"`` → an Answer or a function of the request; a list is used up one per request."""

    def __init__(self) -> None:
        self.routes: dict[str, Any] = {"HEAD /": Answer(), "GET /": Answer(200, [b"Ollama is running"])}
        self.seen: list[Seen] = []
        self.hung_up = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                server._handle(self)

            do_GET = do_POST = do_DELETE = do_HEAD = handle_request

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, route: str) -> list[Any]:
        """The JSON bodies of all requests to a route, in order."""
        return [s.json for s in self.seen if f"{s.method} {s.path}" == route]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        request = Seen(handler.command, handler.path, dict(handler.headers.items()), body)
        self.seen.append(request)
        try:
            self._send(handler, self._answer(request))
        except (BrokenPipeError, ConnectionResetError):
            self.hung_up.set()
            handler.close_connection = True

    def _answer(self, request: Seen) -> Answer:
        found: Any = self.routes.get(f"{request.method} {request.path}") or error(
            404, f"404 page not found: {request.path}"
        )
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found(request) if callable(found) else found

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        for chunk in answer.chunks:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            handler.wfile.flush()
        if answer.cut:
            handler.close_connection = True
        else:
            handler.wfile.write(b"0\r\n\r\n")


def until_hung_up(lines: Iterable[dict[str, Any]], more: Callable[[], dict[str, Any]]) -> Iterator[bytes]:
    """Some lines, then ``more`` for ever: the handler ends when the client hangs up."""
    for line in lines:
        yield json.dumps(line).encode() + b"\n"
    pause = threading.Event()
    while True:
        pause.wait(0.01)
        yield json.dumps(more()).encode() + b"\n"
