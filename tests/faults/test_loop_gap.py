"""The event loop of a real server under hostile bodies: /livez answers meanwhile."""

from __future__ import annotations

import base64
import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from support.loop_gap import watched_loop
from support.servers import RunningServer, standalone

MAX_GAP = 2.0  # seconds, on a busy machine with slow cores; without the limits these bodies stop the loop for up to 9 s
MIB = 1 << 20


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with standalone(tmp_path_factory.mktemp("gap")) as found:
        yield found


def post(server: RunningServer, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=150)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


def repeated(begin: bytes, item: bytes, count: int, end: bytes) -> bytes:
    return begin + b",".join([item] * count) + end


NUMBERED = b",".join(b'"x%d":1' % at for at in range(200_000))
IMAGE = base64.b64encode(bytes(range(256)) * (12 << 10))  # 4 MiB
BODIES = {
    "messages": ("/api/chat", repeated(b'{"model":"m","messages":[', b"{}", 400_000, b"]}")),
    "few messages": ("/api/chat", repeated(b'{"model":"m","messages":[', b"{}", 16_000, b"]}")),
    "options": ("/api/generate", b'{"model":"m","options":{' + NUMBERED + b"}}"),
    "fields": ("/api/generate", b'{"model":"m",' + NUMBERED + b"}"),
    "context": ("/api/generate", repeated(b'{"model":"m","context":[', b"17", 1_900_000, b"]}")),
    "image": ("/api/chat", b'{"model":"m","messages":[{"images":["' + IMAGE * 30 + b'"]}]}'),
    "text": ("/api/generate", b'{"model":"m","prompt":"' + b"x " * (40 * MIB) + b'"}'),
    "parts": ("/v1/chat/completions",
              repeated(b'{"model":"m","messages":[{"content":[', b'{"type":"text","text":"a"}', 400_000, b"]}]}")),
    "tools": ("/v1/responses", repeated(b'{"model":"m","input":"a","tools":[', b'{"type":"x"}', 90_000, b"]}")),
    "blocks": ("/v1/messages", repeated(b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[',
                                        b'{"type":"x"}', 90_000, b"]}]}")),
    "extra": ("/infill", repeated(b'{"model":"m","input_prefix":"","input_suffix":"","input_extra":[',
                                  b'{"text":"a"}', 90_000, b"]}")),
    "texts": ("/api/embed", repeated(b'{"model":"m","input":[', b'"a"', 1_900_000, b"]}")),
    "pairs": ("/v1/score", b'{"model":"m","text_1":' + repeated(b"[", b'"a"', 16_000, b"]") + b',"text_2":'
              + repeated(b"[", b'"a"', 16_000, b"]}")),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_hostile_bodies_do_not_stop_the_event_loop(real_server: RunningServer, name: str) -> None:
    """S11: bodies with extreme counts or sizes are refused or read while others are answered."""
    path, body = BODIES[name]
    with watched_loop(real_server) as gaps:
        statuses = {post(real_server, path, body) for _ in range(5)}
    assert statuses <= {400, 404, 413}
    assert gaps.replies >= 5 and gaps.longest < MAX_GAP, (gaps.replies, gaps.longest)
