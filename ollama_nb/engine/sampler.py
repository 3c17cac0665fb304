"""Sampling: from a row of logits to a token, with Ollama's options in llama.cpp's order.

The order is: logit bias, penalties, top_k, typical_p, top_p, min_p, temperature, draw. Bias, penalties and greedy
decoding are numpy operations on the logits; draws use llama.cpp's sampler chain on the tokens that can matter
(``_candidates``). So a vocabulary of 150,000 costs as much as one of a few hundred, and a seed gives the same tokens
as llama.cpp's chain on the whole row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ollama_nb.api.options import MAX_SEED, SEED_MASK, Options, draw_seed
from ollama_nb.engine.llama import Floats, LlamaModel, SamplerChain
from ollama_nb.errors import BadRequest, OllamaError

MIN_TEMPERATURE = 1e-5  # lower ones mean greedy decoding: dividing by them would overflow
_TAIL_BITS = 25  # the omitted tokens together weigh less than 2**-25 of the best one
_FIRST_WIDTH, _MAX_WIDTH = 8.0, 64.0  # logits below the maximum that are searched for the top_k best

_NUMBERS = (
    "temperature", "top_k", "typical_p", "top_p", "min_p", "repeat_last_n", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Options within the ranges that native code accepts.

    ``top_k`` 0: all tokens; ``last_n`` 0: no penalties; ``temperature`` 0: greedy.
    """

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
    def from_options(cls, options: Options, num_ctx: int) -> SamplingParameters:
        """Raises BadRequest for values without meaning."""
        for name in _NUMBERS:
            if not math.isfinite(getattr(options, name)):
                raise BadRequest(f'option "{name}" must be a finite number')
        neutral = options.repeat_penalty == 1.0 and not options.presence_penalty and not options.frequency_penalty
        last_n = num_ctx if options.repeat_last_n < 0 else min(options.repeat_last_n, num_ctx)
        return cls(
            temperature=0.0 if options.temperature < MIN_TEMPERATURE else min(options.temperature, 1e6),
            top_k=max(0, min(options.top_k, 1 << 30)),
            typical_p=options.typical_p if 0.0 < options.typical_p < 1.0 else 1.0,
            top_p=max(0.0, min(options.top_p, 1.0)),
            min_p=max(0.0, min(options.min_p, 1.0)),
            last_n=0 if neutral else last_n,
            repeat=max(1e-3, min(options.repeat_penalty, 1e3)),
            presence=max(-1e3, min(options.presence_penalty, 1e3)),
            frequency=max(-1e3, min(options.frequency_penalty, 1e3)),
            seed=_fixed_seed(options.seed),
        )

    @property
    def steps(self) -> list[tuple[str, float]]:
        """The sampler chain after the penalties, without steps that change nothing."""
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


def _fixed_seed(seed: int) -> int:
    """Return a random seed for -1, else the lower 32 bits, at most MAX_SEED."""
    return draw_seed() if seed == -1 else min(seed & SEED_MASK, MAX_SEED)


class LogitBias:
    """Numbers that are added to the logits of chosen tokens before everything else.

    ``pairs``: a token id or a text (all tokens of the text are meant), and the number; numbers for the same token add
    up. Raises BadRequest for a token id that the model does not have.
    """

    def __init__(self, model: LlamaModel, pairs: Sequence[tuple[str, float]]) -> None:
        sums: dict[int, float] = {}
        for name, value in pairs:
            for token in _biased_tokens(model, name):
                sums[token] = sums.get(token, 0.0) + value
        self._ids: npt.NDArray[np.intp] = np.fromiter(sums.keys(), np.intp, len(sums))
        self._values = np.fromiter(sums.values(), np.float32, len(sums))

    def apply(self, row: Floats) -> None:
        """Change a row of logits in place."""
        row[self._ids] += self._values


def _biased_tokens(model: LlamaModel, name: str) -> list[int]:
    if not (name.isascii() and name.isdigit()):
        return model.tokenize(name, add_special=False)
    token = int(name[:12])
    if token >= model.n_vocab:
        raise BadRequest(
            f'option "logit_bias": token {name[:12]} does not exist, this model has {model.n_vocab} tokens'
        )
    return [token]


class Sampler:
    """Samples the tokens of one request. The result depends on its own seed only, not on the rest of the batch."""

    def __init__(self, parameters: SamplingParameters, bias: LogitBias | None = None) -> None:
        self.parameters = parameters
        self._bias = bias
        self._last_n = parameters.last_n
        self._chain = SamplerChain(parameters.steps) if parameters.temperature > 0.0 else None
        self._width = _FIRST_WIDTH

    def sample(self, row: Floats, history: list[int]) -> int:
        """Return the next token. Changes ``row`` in place. Raises OllamaError for NaN in it."""
        if self._bias is not None:
            self._bias.apply(row)
        if self._last_n:
            self.penalise(row, history)
        return self.draw(row)

    def draw(self, row: Floats) -> int:
        """Return the next token of a row to which bias and penalties are already applied."""
        if self._chain is None:
            token = int(row.argmax())
            if row[token] > -math.inf:
                return token
            raise OllamaError(_NOT_A_NUMBER)
        ids = self._candidates(row)
        return self._chain.draw(ids, row[ids])

    def sample_from(self, row: Floats, ids: npt.NDArray[np.intp]) -> int:
        """Return the next token out of ``ids`` (ascending, at least one) of a row as for ``draw``."""
        if self._chain is None:
            return int(ids[row[ids].argmax()])
        return self._chain.draw(ids, row[ids])

    def penalise(self, row: Floats, history: list[int]) -> None:
        """Apply the penalties for the last tokens of ``history``."""
        if not self._last_n:
            return
        parameters = self.parameters
        ids, counts = np.unique(np.array(history[-self._last_n :], np.intp), return_counts=True)
        values, repeat = row[ids], np.float32(parameters.repeat)
        values = np.where(values <= 0, values * repeat, values / repeat)
        frequency, presence = np.float32(parameters.frequency), np.float32(parameters.presence)
        row[ids] = values - (counts.astype(np.float32) * frequency + presence)

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()

    def _candidates(self, row: Floats) -> npt.NDArray[np.intp]:
        """Return the tokens that can be drawn, in ascending order.

        With top_k these are the tokens within some distance of the maximum, provided that there are at least k: they
        include the k best. Without it, tokens are omitted whose total probability a float32 sum does not register.
        """
        best = row.max()
        if not best > -math.inf or best == math.inf:
            raise OllamaError(_NOT_A_NUMBER)
        size, top_k = len(row), self.parameters.top_k
        if not top_k:
            return np.flatnonzero(row > best - (math.log(size) + _TAIL_BITS * math.log(2)))
        if top_k >= size:
            return np.flatnonzero(row > -math.inf)
        width = self._width
        while width < _MAX_WIDTH:
            ids = np.flatnonzero(row > best - width)
            if len(ids) >= top_k:
                self._width = width * 0.7 if len(ids) > 16 * top_k + 256 else width
                return ids
            width *= 1.5
        return np.flatnonzero(row > -math.inf)


_NOT_A_NUMBER = "the model computed no usable number for the next token (NaN): its file may be damaged"
