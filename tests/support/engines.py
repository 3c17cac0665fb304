"""Engines driven by hand: requests run to their ends, and measured times replaced by made-up ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.output import FailOut, FinishOut, Output, TextOut
from ollama_nb.engine.rows import RowTimes
from ollama_nb.engine.sequence import Request

EXACT: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "kv_cache_type": "f32", "flash_attention": False}
"""Half precision in attention would make near ties depend on the shape of the batch: some thousandths in a logit."""
STORY = "Lily saw a big red ball in the park. She wanted to play with the ball. "
GREEDY = Options(temperature=0.0)
ids = itertools.count(1)
_OPTIONS = set(Options.__dataclass_fields__) - {"num_ctx"}


class Flat(RowTimes):
    """Every step takes the same time, so whatever is guessed is read."""

    def seconds(self, rows: int) -> float | None:
        return 1.0

    def fresh(self, rows: int) -> bool:
        return True

    def rounded(self, rows: int) -> int:
        return rows


class Blocks(Flat):
    """Only steps of whole blocks of four are cheap, and all of them equally: every step is rounded up."""

    def seconds(self, rows: int) -> float | None:
        return 1.0 if rows % 4 else 0.5

    def rounded(self, rows: int) -> int:
        return -(-rows // 4) * 4 if rows > 1 else 1


class Reply:
    """What one request gave."""

    def __init__(self, outs: list[Output]) -> None:
        self.texts = [out for out in outs if isinstance(out, TextOut)]
        self.text = "".join(out.text for out in self.texts)
        self.logprobs = [prob for out in self.texts for prob in out.logprobs]
        self.last = outs[-1]
        assert [out for out in outs if not isinstance(out, TextOut)] == [self.last], "one end, at the end"

    @property
    def done(self) -> FinishOut:
        assert isinstance(self.last, FinishOut), self.last
        return self.last

    @property
    def failure(self) -> FailOut:
        assert isinstance(self.last, FailOut), self.last
        return self.last

    @property
    def said(self) -> tuple[str, str, tuple[int, ...]]:
        """Text, reason and tokens."""
        return self.text, self.done.reason, self.done.tokens


def ask(prompt: str = "Once upon a time", *, options: Options = GREEDY, **fields: Any) -> Request:
    """``fields``: of the request, or of its options."""
    chosen = {name: fields.pop(name) for name in list(fields) if name in _OPTIONS}
    return Request(id=next(ids), prompt=prompt, options=replace(options, **chosen), **fields)


def collect(engine: Engine, *requests: Request) -> list[Output]:
    """All that comes until nothing runs any more."""
    for request in requests:
        engine.submit(request)
    outs: list[Output] = []
    while engine.busy:
        outs += engine.step()
    return outs


def run(engine: Engine, *requests: Request) -> list[Reply]:
    """The reply of each, all of them run together."""
    outs = collect(engine, *requests)
    return [reply_of(outs, request.id) for request in requests]


def reply_of(outs: list[Output], id: int) -> Reply:
    return Reply([out for out in outs if out.id == id])
