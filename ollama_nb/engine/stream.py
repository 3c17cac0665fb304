"""One request on its way from logits to text, and why it ended."""

from __future__ import annotations

import math
import time

import numpy as np

from ollama_nb.engine.drafts import DraftModelSource, DraftSource, GrammarSource, PromptLookup
from ollama_nb.engine.grammar import Constraint
from ollama_nb.engine.llama import Floats, Model
from ollama_nb.engine.output import FinishOut, TextOut, TokenProb, TopToken
from ollama_nb.engine.sampler import Sampler
from ollama_nb.engine.sequence import Request, Sequence
from ollama_nb.engine.text import RepeatGuard, TextStream

MAX_TOP = 100
_TOLD = (0, 0, 0)


class Stream:
    """A sequence with all that turns its logits into output. ``reason`` is set when it has ended."""

    def __init__(
        self,
        model: Model,
        request: Request,
        seq: Sequence,
        *,
        sampler: Sampler,
        text: TextStream,
        constraint: Constraint | None = None,
        max_draft: int = 0,
    ) -> None:
        """``max_draft``: tokens of a draft, 0: no drafts."""
        self.id = request.id
        self.seq = seq
        self.sampler = sampler
        self.max_draft = max_draft
        self.prompt_lookup = PromptLookup(seq.tokens, max_draft) if max_draft else None
        self.grammar_source = GrammarSource(max_draft) if constraint is not None and max_draft else None
        self.model_source: DraftModelSource | None = None
        """Set while a draft model is asked too."""
        self.reason = ""
        self.drafted = self.accepted = 0
        """Tokens read on trust, and those of them that were right."""
        self._silent = True
        self._model, self._eog = model, model.eog
        self._text, self._guard = text, RepeatGuard()
        self._constraint = constraint
        self._n_top = min(request.logprobs, MAX_TOP)
        self._shown = _preserved(model, request.preserve)
        self._kept: list[int] | None = list(seq.tokens) if request.return_tokens else None
        self.started = self._first = time.perf_counter()

    def advance(self, row: Floats) -> TextOut | None:
        """Choose a token from its logits (which may be changed); return new text, if there is any yet."""
        seq = self.seq
        if not seq.n_new:
            self._first = time.perf_counter()
        if not seq.max_new:
            self.reason = "length"
            return None
        raw = row.copy() if self._n_top >= 0 else None
        if self._constraint is None:
            token = self.sampler.pick(row, seq.tokens)
        else:
            token = self._constraint.pick(self.sampler, row, seq.tokens)
        seq.append(token)
        if self.prompt_lookup is not None:
            self.prompt_lookup.append(token)
        for source in (self.model_source, self.grammar_source):
            if source is not None:
                source.append()
        if token in self._eog:
            self.reason = "stop"
            return self._out(self._text.end(), ())
        text = self._said(token)
        if self._constraint is not None and raw is None and not self._text.stopped:
            for forced in self._constraint.ending(seq.room()):  # what can only be one text needs no computing
                seq.append(forced)
                text += self._said(forced)
        self._judge(text)
        if self.reason:
            text += self._text.end()
        return self._out(text, () if raw is None else (self._probability(raw, token),))

    def best_source(self) -> tuple[DraftSource | None, list[float]]:
        """Return the most promising draft source and the acceptance probability of each token that it could draft."""
        if self.prompt_lookup is None:
            return None, []
        room = self.seq.room()
        best: DraftSource = self.prompt_lookup
        probabilities = self.prompt_lookup.probabilities(room)
        if self.grammar_source is not None and self._constraint is not None:
            self.grammar_source.tokens = self._constraint.forced()
        for source in (self.model_source, self.grammar_source):
            if source is not None and sum(offered := source.probabilities(room)) > sum(probabilities):
                best, probabilities = source, offered
        return best, probabilities

    def cancel(self) -> TextOut | None:
        """End it as cancelled; what was held back comes out."""
        self.reason = "cancelled"
        return self._out(self._text.end(), ())

    def finish(self) -> FinishOut:
        """The last message; call it once, after ``reason`` is set."""
        now, seq = time.perf_counter(), self.seq
        answered = self._first > self.started
        tokens = self._kept or []
        if tokens and self._model.add_bos and tokens[0] == self._model.bos:
            tokens = tokens[1:]
        return FinishOut(
            id=self.id,
            reason=self.reason,
            prompt_tokens=seq.n_prompt,
            cached_tokens=seq.cached,
            prompt_seconds=(self._first if answered else now) - self.started,
            output_tokens=seq.n_new,
            output_seconds=now - self._first if answered else 0.0,
            prompt_tokens_dropped=seq.dropped,
            drafted=self.drafted,
            accepted=self.accepted,
            tokens=tuple(tokens),
        )

    def close(self) -> None:
        self.sampler.close()

    def _said(self, token: int) -> str:
        """The text of one token more, as far as it is certain."""
        if self._kept is not None:
            self._kept.append(token)
        return self._text.feed(self._shown.get(token) or self._model.piece(token))

    def _judge(self, text: str) -> None:
        """Has it ended, and why? A loop of one repeated chunk was not the model's own end: ``length``."""
        seq = self.seq
        if self._text.stopped or (self._constraint is not None and self._constraint.complete):
            self.reason = "stop"
        elif seq.n_new >= seq.max_new or (text and self._guard.stuck(text)) or (seq.full and not seq.shift):
            self.reason = "length"

    def _out(self, text: str, logprobs: tuple[TokenProb, ...]) -> TextOut | None:
        if not text and not logprobs:
            return None
        prompt, self._silent = self._prompt_figures() if self._silent else _TOLD, False
        return TextOut(self.id, text, logprobs, *prompt, self.drafted, self.accepted)

    def _prompt_figures(self) -> tuple[int, int, int]:
        return self.seq.n_prompt, self.seq.cached, self.seq.dropped

    def _probability(self, row: Floats, token: int) -> TokenProb:
        """Of the model's own distribution, before penalties, temperature and constraint."""
        best = float(row.max())
        total = best + math.log(float(np.exp(row - best).sum()))
        count = min(self._n_top, len(row))
        likeliest = np.argpartition(row, len(row) - count)[len(row) - count :] if count else np.empty(0, np.intp)
        ordered = likeliest[np.argsort(-row[likeliest], kind="stable")]
        piece = self._model.raw_piece
        top = tuple(TopToken(piece(int(other)), float(row[other]) - total) for other in ordered)
        return TokenProb(piece(token), float(row[token]) - total, top)


def _preserved(model: Model, texts: tuple[str, ...]) -> dict[int, bytes]:
    """Control tokens that this request wants to see as text."""
    shown = {}
    for text in texts:
        for token in model.tokenize(text, add_special=False):
            if model.is_control(token):
                shown[token] = model.raw_piece(token)
    return shown
