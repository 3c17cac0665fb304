"""From a row of logits to a token: Ollama's options as a recipe, in llama.cpp's order.

Penalties, top_k, typical_p, top_p, min_p, temperature, draw. Penalties and the greedy choice are numpy on the logits
view; draws go through llama.cpp's own chain, which sees only the candidates that can matter (see ``_candidates``), so
that a vocabulary of 150,000 costs what a few hundred cost, and a seed gives what the plain chain gives.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ollama_nb.api.options import Options
from ollama_nb.engine.bias import Bias
from ollama_nb.engine.llama import Chain, Floats
from ollama_nb.errors import BadRequest, OllamaError

COLDEST = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow."""
_RANDOM = 0xFFFFFFFF  # llama.cpp's own value for "take a random seed"
_TAIL_BITS = 25
_FIRST_WIDTH, _WIDEST = 8.0, 64.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Options made safe for native code. ``top_k`` 0: all; ``last_n`` 0: no penalties; temperature 0: greedy."""

    temperature: float
    top_k: int
    typical_p: float
    top_p: float
    min_p: float
    last_n: int
    repeat: float
    presence: float
    frequency: float
    seed: int

    @classmethod
    def of(cls, options: Options, num_ctx: int) -> Recipe:
        """Raises BadRequest for numbers that mean nothing."""
        for name in _NUMBERS:
            if not math.isfinite(getattr(options, name)):
                raise BadRequest(f'option "{name}" must be a finite number')
        if options.repeat_penalty <= 0:
            raise BadRequest('option "repeat_penalty" must be greater than 0; 1.0 turns it off')
        neutral = options.repeat_penalty == 1.0 and not options.presence_penalty and not options.frequency_penalty
        last_n = num_ctx if options.repeat_last_n < 0 else min(options.repeat_last_n, num_ctx)
        return cls(
            temperature=0.0 if options.temperature < COLDEST else min(options.temperature, 1e6),
            top_k=max(0, min(options.top_k, 1 << 30)),
            typical_p=options.typical_p if 0.0 < options.typical_p < 1.0 else 1.0,
            top_p=max(0.0, min(options.top_p, 1.0)),
            min_p=max(0.0, min(options.min_p, 1.0)),
            last_n=0 if neutral else last_n,
            repeat=max(1e-3, min(options.repeat_penalty, 1e3)),
            presence=max(-1e3, min(options.presence_penalty, 1e3)),
            frequency=max(-1e3, min(options.frequency_penalty, 1e3)),
            seed=_seed(options.seed),
        )

    @property
    def steps(self) -> list[tuple[str, float]]:
        """The chain after the penalties; steps that change nothing are left out."""
        steps: list[tuple[str, float]] = []
        if self.top_k > 0:
            steps.append(("top_k", self.top_k))
        if self.typical_p < 1.0:
            steps.append(("typical", self.typical_p))
        if self.top_p < 1.0:
            steps.append(("top_p", self.top_p))
        if self.min_p > 0.0:
            steps.append(("min_p", self.min_p))
        return [*steps, ("temperature", self.temperature), ("dist", self.seed)]


_NUMBERS = (
    "temperature", "top_k", "typical_p", "top_p", "min_p", "repeat_last_n", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip


def _seed(seed: int) -> int:
    """-1: random for this request; every other number a fixed seed of 32 bits."""
    fixed = secrets.randbits(32) if seed == -1 else seed & _RANDOM
    return fixed if fixed != _RANDOM else _RANDOM - 1


class Sampler:
    """Chooses the tokens of one request; its draws depend on its own seed only, whoever shares the batch."""

    def __init__(self, recipe: Recipe, bias: Bias | None = None) -> None:
        self.recipe = recipe
        self._bias = bias
        self._last_n = recipe.last_n
        self._chain = Chain(recipe.steps) if recipe.temperature > 0.0 else None
        self._width = _FIRST_WIDTH

    def pick(self, row: Floats, history: list[int]) -> int:
        """The next token. Bias and penalties change ``row`` in place. Raises OllamaError for NaN in it."""
        if self._bias is not None:
            self._bias.add(row)
        if self._last_n:
            self.penalise(row, history)
        return self.choose(row)

    def choose(self, row: Floats) -> int:
        """The next token of a row that is penalised already, or need not be."""
        if self._chain is None:
            token = int(row.argmax())
            if row[token] > -math.inf:
                return token
            raise OllamaError(_NONSENSE)
        ids = self._candidates(row)
        return self._chain.draw(ids, row[ids])

    def choose_among(self, row: Floats, ids: npt.NDArray[np.intp]) -> int:
        """The next token out of ``ids`` (ascending, at least one) of a row that is penalised already."""
        if self._chain is None:
            return int(ids[row[ids].argmax()])
        return self._chain.draw(ids, row[ids])

    def penalise(self, row: Floats, history: list[int]) -> None:
        """Make tokens less likely that are among the last ones of ``history``."""
        if not self._last_n:
            return
        recipe = self.recipe
        ids, counts = np.unique(np.array(history[-self._last_n :], np.intp), return_counts=True)
        values = row[ids]
        values = np.where(values <= 0, values * np.float32(recipe.repeat), values / np.float32(recipe.repeat))
        row[ids] = values - (counts.astype(np.float32) * np.float32(recipe.frequency) + np.float32(recipe.presence))

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()

    def _candidates(self, row: Floats) -> npt.NDArray[np.intp]:
        """Indices of the logits that can matter, ascending.

        With top_k those within some distance of the maximum, if they are at least k: the k best are among them.
        Without it those whose absence no float32 sum notices: all others together weigh under 2**-25 of the best.
        """
        best = row.max()
        if not best > -math.inf or best == math.inf:
            raise OllamaError(_NONSENSE)
        size, top_k = len(row), self.recipe.top_k
        if not top_k:
            return np.flatnonzero(row > best - (math.log(size) + _TAIL_BITS * math.log(2)))
        if top_k >= size:
            return np.flatnonzero(row > -math.inf)
        width = self._width
        while width < _WIDEST:
            ids = np.flatnonzero(row > best - width)
            if len(ids) >= top_k:
                self._width = width * 0.7 if len(ids) > 16 * top_k + 256 else width
                return ids
            width *= 1.5
        return np.flatnonzero(row > -math.inf)


_NONSENSE = "the model computed no usable number for the next token (NaN): its file may be damaged"
