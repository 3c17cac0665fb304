"""Requests of all kinds for a long time, some of them abandoned: memory, descriptors and threads do not grow."""

from __future__ import annotations

import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.processes import until
from support.servers import RunningServer, descendants, standalone

pytestmark = pytest.mark.model
LEFT = 0.05
"""The share of streams whose client disconnects."""
WORDS = ("Once upon a time", "There was", "Lily", "a big red ball", "你好", "the park", "One day", "She saw")
SMALL = {"num_ctx": 512, "num_thread": 1}


def asked(dice: random.Random) -> tuple[str, str, dict[str, Any] | None]:
    prompt = " ".join(dice.choices(WORDS, k=dice.randrange(1, 30)))
    options = {**SMALL, "num_predict": dice.randrange(1, 12), "temperature": dice.choice((0, 0.8))}
    body = {"model": "sprout", "options": options}
    bound = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    return dice.choice([
        ("POST", "/api/generate", {**body, "prompt": prompt, "raw": True}),
        ("POST", "/api/generate", {**body, "prompt": prompt, "raw": True, "format": bound}),
        ("POST", "/api/chat", {**body, "messages": [{"role": "user", "content": prompt}], "think": False}),
        ("POST", "/api/tokenize", {"model": "sprout", "prompt": prompt}),
        ("POST", "/api/generate", {**body, "prompt": prompt, "options": {"temperature": "warm"}}),
        ("POST", "/api/show", {"model": "sprout"}),
        ("POST", "/api/show", {"model": "nobody"}),
        ("GET", "/api/tags", None),
        ("GET", "/api/ps", None),
    ])  # fmt: skip


def ask(server: RunningServer, method: str, path: str, body: dict[str, Any] | None, *, leave: bool = False) -> int:
    """Send one request, abandoned after its first line if ``leave`` is set; return its status."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=150)
    try:
        connection.request(method, path, None if body is None else json.dumps(body).encode())
        reply = connection.getresponse()
        if leave:
            reply.readline()
            return reply.status
        last = [json.loads(line) for line in reply][-1]
        assert ("error" in last) == (reply.status in (400, 404)), last
        return reply.status
    finally:
        connection.close()


def one(server: RunningServer, seed: int) -> int:
    """A request that depends only on its number."""
    dice = random.Random(seed)
    return ask(server, *asked(dice), leave=dice.random() < LEFT)


def many(server: RunningServer, first: int, count: int) -> None:
    with ThreadPoolExecutor(4) as crew:
        assert 200 in set(crew.map(lambda seed: one(server, seed), range(first, first + count)))


def sizes(server: RunningServer) -> dict[str, tuple[int, int, int]]:
    """Private memory in KiB, descriptors and threads of the server, and of all its descendants."""

    def of(pid: int) -> tuple[int, int, int]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
        memory = sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))
        return memory, len(list(Path(f"/proc/{pid}/fd").iterdir())), int(fields["Threads"])

    below = [of(pid) for pid in descendants(server.pid)]
    return {"server": of(server.pid), "children": tuple(map(sum, zip(*below, strict=True)))}  # type: ignore[dict-item]


def idle(server: RunningServer) -> bool:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("GET", "/api/queue")
    nothing: bool = json.loads(connection.getresponse().read())["requests"] == []
    connection.close()
    return nothing


@pytest.mark.parametrize("count", [150, pytest.param(6000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_long_day(tmp_path: Path, count: int) -> None:
    with standalone(tmp_path, env={"OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NUM_PARALLEL": "4"}) as server:
        ask(server, "POST", "/api/generate", {"model": "sprout", "options": SMALL})
        many(server, 0, count)  # pools and caches fill up
        until(lambda: idle(server))
        before = sizes(server)
        many(server, count, count)
        until(lambda: idle(server))
        after = sizes(server)
    for who in before:
        (memory, *rest), (later, *others) = before[who], after[who]
        print(f"{who}: {later - memory} KiB more, {rest} then {others} descriptors and threads, {count} requests")
        assert later - memory <= 8192 + count * 1024 / 1000, who
        assert all(abs(now - then) <= 4 for then, now in zip(rest, others, strict=True)), who
