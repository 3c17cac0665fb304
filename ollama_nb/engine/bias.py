"""Logit bias: a number added to the logits of chosen tokens before everything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ollama_nb.engine.llama import Floats, Model
from ollama_nb.errors import BadRequest


class Bias:
    """Tokens by number, or texts, whose every token is meant; biases of one token add up. Raises BadRequest."""

    def __init__(self, model: Model, pairs: Sequence[tuple[str, float]]) -> None:
        sums: dict[int, float] = {}
        for name, value in pairs:
            for token in _tokens(model, name):
                sums[token] = sums.get(token, 0.0) + value
        self._ids: npt.NDArray[np.intp] = np.fromiter(sums.keys(), np.intp, len(sums))
        self._values = np.fromiter(sums.values(), np.float32, len(sums))

    def add(self, row: Floats) -> None:
        """Change a row of logits in place."""
        row[self._ids] += self._values


def _tokens(model: Model, name: str) -> list[int]:
    if not (name.isascii() and name.isdigit()):
        return model.tokenize(name, add_special=False)
    token = int(name[:12])
    if token >= model.n_vocab:
        raise BadRequest(f'option "logit_bias": {name[:12]} is no token, this model has {model.n_vocab}')
    return [token]
