"""Engines driven step by step, and raw llama.cpp results to compare a GGUF file with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ollama_nb.api.options import Options
from ollama_nb.engine.drafts import StepTimes
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import Context, DecodeStatus, Floats, LlamaModel
from ollama_nb.engine.messages import (
    Adapter,
    CompletionRequest,
    Embed,
    EmbedInput,
    Failed,
    Finished,
    Output,
    Rank,
    TextOutput,
)

EXACT: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "kv_cache_type": "f32", "flash_attention": False}
"""Full precision: in half precision, logits differ by thousandths with the batch's shape, and near ties flip."""
STORY = "Lily saw a big red ball in the park. She wanted to play with the ball. "
GREEDY = Options(temperature=0.0)
ids = itertools.count(1)
_OPTIONS = set(Options.__dataclass_fields__) - {"num_ctx"}


class Flat(StepTimes):
    """Step times of a machine on which every step takes the same time, so every draft is worth verifying."""

    def seconds(self, rows: int) -> float | None:
        return 1.0

    def is_current(self, rows: int) -> bool:
        return True

    def padded(self, rows: int) -> int:
        return rows


class Blocks(Flat):
    """Step times of a machine on which full blocks of four rows are faster: every step is padded."""

    def seconds(self, rows: int) -> float | None:
        return 1.0 if rows % 4 else 0.5

    def padded(self, rows: int) -> int:
        return -(-rows // 4) * 4 if rows > 1 else 1


class Reply:
    """The outputs of one request."""

    def __init__(self, outs: list[Output]) -> None:
        self.texts = [out for out in outs if isinstance(out, TextOutput)]
        self.text = "".join(out.text for out in self.texts)
        self.logprobs = [prob for out in self.texts for prob in out.logprobs]
        self.last = outs[-1]
        assert [out for out in outs if not isinstance(out, TextOutput)] == [self.last], "one end, at the end"

    @property
    def done(self) -> Finished:
        assert isinstance(self.last, Finished), self.last
        return self.last

    @property
    def failure(self) -> Failed:
        assert isinstance(self.last, Failed), self.last
        return self.last

    @property
    def result(self) -> tuple[str, str, tuple[int, ...]]:
        """Text, finish reason and tokens."""
        return self.text, self.done.reason, self.done.tokens


def ask(prompt: str = "Once upon a time", *, options: Options = GREEDY, **fields: Any) -> CompletionRequest:
    """A request; ``fields`` are fields of the request or of its options."""
    chosen = {name: fields.pop(name) for name in list(fields) if name in _OPTIONS}
    return CompletionRequest(id=next(ids), prompt=prompt, options=replace(options, **chosen), **fields)


def collect(engine: Engine, *requests: CompletionRequest) -> list[Output]:
    """Submit the requests, step until the engine is idle, and return all outputs."""
    for request in requests:
        engine.submit(request)
    outs: list[Output] = []
    while engine.busy:
        outs += engine.step()
    return outs


def run(engine: Engine, *requests: CompletionRequest) -> list[Reply]:
    """Run the requests together and return the reply of each."""
    outs = collect(engine, *requests)
    return [reply_of(outs, request.id) for request in requests]


def reply_of(outs: list[Output], id: int) -> Reply:
    return Reply([out for out in outs if out.id == id])


Vector = npt.NDArray[np.float32]


def tokens_of(path: Path, texts: list[str]) -> list[list[int]]:
    model = LlamaModel(str(path), vocab_only=True)
    try:
        return [model.tokenize(text, add_special=False, parse_special=True) for text in texts]
    finally:
        model.close()


def pooled_of(path: Path, tokens: list[int]) -> Vector:
    """The mean of an encoder's last layer, not normalised."""
    model = LlamaModel(str(path))
    context = Context(
        model, cells=64, n_seq=1, n_batch=64, n_ubatch=64, n_threads=1, flash_attention=False, kv_type="f32",
        pooling="mean",
    )  # fmt: skip
    try:
        _decode(context, tokens, [1] * len(tokens))
        return context.pooled(0).copy()
    finally:
        context.close()
        model.close()


def logits_of(path: Path, tokens: list[int], *, adapters: tuple[str, ...] = ()) -> Vector:
    """The logits after the last token, in full precision."""
    model = LlamaModel(str(path))
    context = Context(
        model, cells=64, n_seq=1, n_batch=64, n_ubatch=64, n_threads=1, flash_attention=False, kv_type="f32",
    )  # fmt: skip
    try:
        if adapters:
            context.set_adapters(tuple(map(Adapter, adapters)))
        _decode(context, tokens, [0] * (len(tokens) - 1) + [1])
        return context.logits()[0].copy()
    finally:
        context.close()
        model.close()


def _decode(context: Context, tokens: list[int], outputs: list[int]) -> None:
    count = len(tokens)
    context.tokens[:count], context.positions[:count] = tokens, np.arange(count)
    context.sequences[:count], context.outputs[:count] = 0, outputs
    assert context.decode(count) is DecodeStatus.DONE


def embed(engine: Engine, inputs: Iterable[EmbedInput], **fields: Any) -> tuple[Floats, int]:
    """Vectors of inputs, and the number of tokens."""
    vectors, job = engine.pool(Embed(inputs=tuple(inputs), **fields))
    return vectors, job.tokens


def rank(engine: Engine, query: str, documents: Iterable[str], **fields: Any) -> tuple[Floats, int]:
    """Scores of documents, and the number of tokens."""
    scores, job = engine.pool(Rank(query=query, documents=tuple(documents), **fields))
    return scores, job.tokens
