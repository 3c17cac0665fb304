"""Writes constrained texts with random logits, through the sampler that real replies use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ollama_nb.api.options import Options
from ollama_nb.engine.constraint import ConstraintCompiler
from ollama_nb.engine.llama import LlamaModel
from ollama_nb.engine.sampler import Sampler, SamplingParameters


class ConstraintWriter:
    """``write`` returns a text that a format allows; ``stubborn`` names bytes that the writer prefers to all others."""

    def __init__(self, path: Path) -> None:
        self.model = LlamaModel(str(path), vocab_only=True)
        self.model.eog = frozenset([self.model.eos])
        self.compiler = ConstraintCompiler(self.model)
        self.pieces = self.model.pieces()

    def write(
        self, format: str, seed: int, *, limit: int = 300, stubborn: bytes = b"", stop: float = 0.0, prefix: bytes = b""
    ) -> str:
        """Raise AssertionError for a text that does not end within ``limit`` tokens. ``stop``: bias towards ending.

        The text begins with ``prefix``, written byte by byte.
        """
        rng = np.random.default_rng(seed)
        sampler = Sampler(SamplingParameters.from_options(Options(seed=seed), limit))
        constraint = self.compiler.compile(format)
        bias = self._bias(stubborn, stop)
        tokens: list[int] = []
        while not constraint.complete and len(tokens) < limit:
            row = (rng.normal(0, 2, self.model.n_vocab) + bias).astype(np.float32)
            if len(tokens) < len(prefix):
                row[self.pieces.index(prefix[len(tokens) : len(tokens) + 1])] = 1000
            token = constraint.sample(sampler, row, tokens)
            if token in self.model.eog:
                break
            tokens.append(token)
        sampler.close()
        text = b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")
        assert len(tokens) < limit, f"does not end: …{text[-80:]}"
        return text

    def _bias(self, stubborn: bytes, stop: float) -> np.ndarray:
        bias = np.zeros(self.model.n_vocab)
        if stubborn:
            kind = re.compile(b"[" + re.escape(stubborn) + b"]+")
            bias[[at for at, piece in enumerate(self.pieces) if kind.fullmatch(piece)]] = 40
            bias[self.model.eos] = -40
        if stop:
            bias[[at for at, piece in enumerate(self.pieces) if piece[:1] in (b'"', b"}", b"]")]] = stop
            bias[self.model.eos] = stop
        return bias


@contextmanager
def constraint_writer(path: Path) -> Iterator[ConstraintWriter]:
    writer = ConstraintWriter(path)
    yield writer
    writer.model.close()
