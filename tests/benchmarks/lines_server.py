"""A line on the server itself: many streams of server-sent events, each of them complete and in order.

Every chunk has the log probabilities of its tokens: their number and their bytes are compared with the usage and the
text, so that a missing, repeated or misplaced piece is detected.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from line import Line, Pairs, Round, Row
from models import words
from peers import NAME, Server
from streams import Ask, Flight, Load, lines

STREAMS, TOKENS = 64, 200
LIMIT = 100.0  # milliseconds
PROBE = Path(__file__).with_name("probe.py")


def _streams(server: Server, turn: Round) -> Pairs:
    rng = turn.rng()
    with Load() as load, _probe(server.running.url) as times:
        flights = [load.send(_ask(server, words(rng, 16, turn.vocabulary))) for _ in range(STREAMS)]
        load.wait(lambda: all(flight.ended for flight in flights))
    for flight in flights:
        check(flight)
    return {"delay": (statistics.quantiles(times, n=100)[98] * 1e3, LIMIT)}


def _ask(server: Server, prompt: str) -> Ask:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "logprobs": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "options": {"draft_num_predict": 0, "num_ctx": server.stage.context, "num_thread": server.stage.threads},
    }
    return Ask(server.running.url, "/v1/chat/completions", body, lambda line: ("", 0))


@contextlib.contextmanager
def _probe(url: str) -> Iterator[list[float]]:
    """Fill the list with the times of requests that are sent meanwhile, in seconds."""
    times: list[float] = []
    command = [sys.executable, str(PROBE), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        yield times
        output, _ = process.communicate()
    times += json.loads(output)


def check(flight: Flight) -> None:
    """Raise RuntimeError unless the stream has the text of its tokens, one end, the usage, and ``[DONE]`` last."""
    data = [line.removeprefix(b"data: ") for _, line in lines(flight) if line.startswith(b"data: ")]
    if not data or data[-1].strip() != b"[DONE]":
        raise RuntimeError("a stream is incomplete: the last event is not [DONE]")
    chunks: list[dict[str, Any]] = [json.loads(line) for line in data[:-1]]
    if failed := [chunk["error"] for chunk in chunks if "error" in chunk]:
        raise RuntimeError(f"a stream failed: {failed[0]}")
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    tokens = [token for choice in choices for token in (choice.get("logprobs") or {}).get("content") or ()]
    read = b"".join(bytes(token.get("bytes") or ()) for token in tokens).decode("utf-8", "replace")
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if read.strip() != text.strip() or ends != ["length"] or len({chunk["id"] for chunk in chunks}) != 1:
        raise RuntimeError(f"a stream is not complete and in order: {text!r}, tokens {read!r}, ends {ends}")
    if not len(tokens) == chunks[-1]["usage"]["completion_tokens"] == TOKENS:
        raise RuntimeError(f"a stream of {len(tokens)} tokens has {chunks[-1]['usage']}")


LINES = (
    Line(
        "sse_64",
        "tiny",
        (Row("delay", "event-loop delay p99, 64 event streams", "ms", "less", 1.0),),
        3,
        slots=STREAMS,
        context=512,
        pairs=_streams,
        beside="limit of 100 ms",
    ),
)
