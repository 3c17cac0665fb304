"""A server that speaks just enough of Ollama's API to say what a test wants said, and counts visits to a canary."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Speak = Callable[[str], Iterator[str]]
"""From a user's message to the pieces of the answer."""


class WordServer:
    """``url`` to reach it, ``visits``: every path below ``/canary`` that was asked for."""

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
                said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                self._start(200)
                for piece in speak(said):
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

    def __enter__(self) -> WordServer:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
