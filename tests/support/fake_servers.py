"""HTTP servers, in a thread, that stand for Ollama or for a proxy, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from ollama_nb.runtime import CHALLENGE, PROOF, key_hash, prove


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
    """``chunks`` are sent one by one in chunked encoding; ``cut`` closes the connection without the last chunk."""

    status: int = 200
    chunks: Iterable[bytes] = ()
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def ok(value: Any = None, status: int = 200) -> Answer:
    body = b"" if value is None else json.dumps(value, ensure_ascii=False).encode()
    return Answer(status, [body] if body else [], {"Content-Type": "application/json; charset=utf-8"})


def error(status: int, text: str, code: str = "") -> Answer:
    """An error reply; without ``code`` as real Ollama sends it."""
    return ok({"error": text, **({"code": code} if code else {})}, status)


def ndjson(*lines: dict[str, Any]) -> Answer:
    return Answer(200, [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines])


class ScriptedServer:
    """``routes`` maps ``"POST /api/show"`` to an Answer or a function of the request, or to a list, one per request."""

    def __init__(self) -> None:
        self.routes: dict[str, Any] = {"HEAD /": Answer(), "GET /": Answer(200, [b"Ollama is running"])}
        self.seen: list[Seen] = []
        self.key = ""
        """The key of the runtime file that names this server: it is proved to clients that ask."""
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
        if (challenge := handler.headers.get(CHALLENGE)) and self.key:
            self._send(handler, Answer(204, headers={PROOF: prove(key_hash(self.key), challenge)}))
            return
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
    """Send some lines, then ``more`` forever; the handler ends when the client closes the connection."""
    for line in lines:
        yield json.dumps(line).encode() + b"\n"
    pause = threading.Event()
    while True:
        pause.wait(0.01)
        yield json.dumps(more()).encode() + b"\n"


MODEL = "echo"


class EchoServer(ScriptedServer):
    """A server with one model. ``say`` maps a prompt to a text or an Answer; ``before`` is called first."""

    def __init__(self, say: Callable[[str], str | Answer] = str.upper) -> None:
        super().__init__()
        self.say = say
        self.before: Callable[[str], object] = lambda text: None
        self.questions: Counter[str] = Counter()
        self.digest = "0123456789abcdef" * 4
        self.slots = 4
        self._lock = threading.Lock()
        self.routes |= {
            "GET /api/tags": lambda request: self._models(),
            "GET /api/ps": lambda request: self._models(slots=self.slots),
            "POST /api/show": error(404, "model not found"),
            "POST /api/generate": self._generate,
            "POST /api/chat": self._chat,
            "POST /api/embed": self._embed,
            "POST /api/rerank": self._rerank,
        }

    @property
    def asked_times(self) -> int:
        return self.questions.total()

    def _models(self, **more: Any) -> Answer:
        return ok({"models": [{"name": f"{MODEL}:latest", "digest": self.digest, **more}]})

    def _count(self, text: str) -> str | Answer:
        with self._lock:
            self.questions[text] += 1
        self.before(text)
        return self.say(text)

    def _generate(self, request: Seen) -> Answer:
        prompt = request.json["prompt"]
        return _reply("response", self._count(prompt)) if prompt else ok({"done": True, "done_reason": "load"})

    def _chat(self, request: Seen) -> Answer:
        said = self._count(request.json["messages"][-1]["content"])
        return _reply("message", said)

    def _embed(self, request: Seen) -> Answer:
        texts = request.json["input"]
        said = [self._count(text) for text in texts]
        wrong = [found for found in said if isinstance(found, Answer)]
        return wrong[0] if wrong else ok({"embeddings": [vector(text) for text in texts]})

    def _rerank(self, request: Seen) -> Answer:
        body = request.json
        results = [{"index": at, "relevance_score": score(text)} for at, text in enumerate(body["documents"])]
        results.sort(key=lambda found: -found["relevance_score"])
        return ok({"results": results, "method": "rank"})


def vector(text: str) -> list[float]:
    """A unit vector; texts of the same letters have the same vector."""
    counts = np.bincount([ord(letter) % 8 for letter in text] or [0], minlength=8).astype(np.float64)
    return [float(part) for part in counts / np.linalg.norm(counts)]


def score(text: str) -> float:
    return 1.0 / (1 + len(text))


def _reply(field: str, said: str | Answer) -> Answer:
    if isinstance(said, Answer):
        return said
    content: Any = {"role": "assistant", "content": said} if field == "message" else said
    return ok({field: content, "done": True, "done_reason": "stop", "eval_count": 1, "eval_duration": 1000})


Speak = Callable[[str], Iterator[str]]
"""Maps a user's message to the pieces of the reply."""


class ReplyServer:
    """A server that streams the pieces of ``speak``; ``visits`` has every path that was fetched below ``/canary``."""

    def __init__(self, speak: Speak) -> None:
        self.visits: list[str] = []
        visits = self.visits

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._start(200)

            def do_GET(self) -> None:
                visits.append(self.path)
                self._start(200)
                listed = {"models": [{"name": "m:latest", "size": 1000}], "requests": []}
                self.wfile.write(json.dumps(listed).encode() if "/api/" in self.path else b"Ollama is running")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                self._start(200)
                for piece in speak(prompt):
                    self._line({"message": {"role": "assistant", "content": piece}, "response": piece, "done": False})
                figures = {"eval_count": 42, "eval_duration": 1_000_000_000}
                self._line({"message": {"content": ""}, "done": True, "done_reason": "stop", **figures})

            def _start(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Connection", "close")
                self.end_headers()

            def _line(self, value: object) -> None:
                with contextlib.suppress(OSError):
                    self.wfile.write(json.dumps(value).encode() + b"\n")
                    self.wfile.flush()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ReplyServer:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Proxy:
    """An HTTP proxy that connects everything to one port; ``asked`` has the heads of its requests."""

    def __init__(self, target: int) -> None:
        self.asked: list[str] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = client.recv(1)
            if not byte:
                return
            head += byte
        self.asked.append(head.decode())
        server = socket.create_connection(("127.0.0.1", self._target))
        self._open += [client, server]
        if head.startswith(b"CONNECT"):
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            server.sendall(head)
        threading.Thread(target=_pass_on, args=(server, client), daemon=True).start()
        _pass_on(client, server)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
