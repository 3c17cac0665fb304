"""One running request: from a row of logits to output text, until it has a finish reason.

``InputProcessor`` turns a request into a ``ReplyStream``: prompt tokens that fit the context, sampler, constraint and
draft sources.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator

import numpy as np

from ollama_nb.engine.constraint import Constraint, ConstraintCompiler
from ollama_nb.engine.drafts import DraftModelSource, DraftSource, GrammarSource, PromptLookup
from ollama_nb.engine.llama import Floats, LlamaModel
from ollama_nb.engine.messages import (
    MIN_CONTEXT,
    CompletionRequest,
    Finished,
    TextOutput,
    Tokenize,
    TokenProb,
    Tokens,
    TopToken,
)
from ollama_nb.engine.sampler import LogitBias, Sampler, SamplingParameters
from ollama_nb.engine.sequence import Sequence, fit_prompt, max_reply_tokens, protected_tokens
from ollama_nb.engine.text import RepetitionDetector, TextStream
from ollama_nb.errors import BadRequest

MAX_TOP = 100  # most likely tokens reported beside each token
MAX_DRAFT = 15  # tokens of a draft


class ReplyStream:
    """A sequence with everything that turns its logits into output. ``reason`` is set when the reply has ended."""

    def __init__(
        self,
        model: LlamaModel,
        request: CompletionRequest,
        seq: Sequence,
        *,
        sampler: Sampler,
        text: TextStream,
        constraint: Constraint | None = None,
        max_draft: int = 0,
    ) -> None:
        """``max_draft``: most tokens of a draft; 0: no drafts."""
        self.id = request.id
        self.seq = seq
        self.sampler = sampler
        self.max_draft = max_draft
        self.prompt_lookup = PromptLookup(seq.tokens, max_draft) if max_draft else None
        self.grammar_source = GrammarSource(max_draft) if constraint is not None and max_draft else None
        self.model_source: DraftModelSource | None = None
        """Set if a draft model serves this reply."""
        self.reason = ""
        self.drafted = self.accepted = 0
        """Draft tokens of this reply, and how many of them were accepted."""
        self._model, self._eog = model, model.eog
        self._text, self._repetition = text, RepetitionDetector()
        self._constraint = constraint
        self._n_top = min(request.logprobs, MAX_TOP)
        self._preserved = _preserved_tokens(model, request.preserve)
        self._all_tokens: list[int] | None = list(seq.tokens) if request.return_tokens else None
        self._is_first_output = True
        self.started = self._first_token = time.perf_counter()

    def advance(self, row: Floats) -> TextOutput | None:
        """Sample a token from its logits, which may be changed; return the new text, if there is any."""
        seq = self.seq
        if not seq.n_new:
            self._first_token = time.perf_counter()
        if not seq.max_new:
            self.reason = "length"
            return None
        raw = row.copy() if self._n_top >= 0 else None
        if self._constraint is None:
            token = self.sampler.sample(row, seq.tokens)
        else:
            token = self._constraint.sample(self.sampler, row, seq.tokens)
        seq.append(token)
        if self.prompt_lookup is not None:
            self.prompt_lookup.append(token)
        for source in (self.model_source, self.grammar_source):
            if source is not None:
                source.append()
        if token in self._eog:
            self.reason = "stop"
            return self._output(self._text.end(), ())
        text = self._decode(token)
        if self._constraint is not None and raw is None and not self._text.stopped:
            for forced in self._constraint.forced_ending(seq.room()):
                seq.append(forced)
                text += self._decode(forced)
        self._check_end(text)
        if self.reason:
            text += self._text.end()
        return self._output(text, () if raw is None else (self._probability(raw, token),))

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

    def cancel(self) -> TextOutput | None:
        """End the reply as cancelled; return text that was held back, if there is any."""
        self.reason = "cancelled"
        return self._output(self._text.end(), ())

    def finish(self) -> Finished:
        """Return the last output; called once, after ``reason`` is set."""
        now, seq = time.perf_counter(), self.seq
        answered = self._first_token > self.started
        tokens = self._all_tokens or []
        if tokens and self._model.add_bos and tokens[0] == self._model.bos:
            tokens = tokens[1:]
        return Finished(
            id=self.id,
            reason=self.reason,
            prompt_tokens=seq.n_prompt,
            cached_tokens=seq.cached,
            prompt_seconds=(self._first_token if answered else now) - self.started,
            output_tokens=seq.n_new,
            output_seconds=now - self._first_token if answered else 0.0,
            prompt_tokens_dropped=seq.dropped,
            drafted=self.drafted,
            accepted=self.accepted,
            tokens=tuple(tokens),
            stop_sequence=self._text.stop_sequence,
        )

    def close(self) -> None:
        self.sampler.close()

    def _decode(self, token: int) -> str:
        """Return the text that another token completes."""
        if self._all_tokens is not None:
            self._all_tokens.append(token)
        return self._text.feed(self._preserved.get(token) or self._model.piece(token))

    def _check_end(self, text: str) -> None:
        """Set the finish reason if the reply has ended. A reply that repeats itself ends with ``length``."""
        seq = self.seq
        if self._text.stopped or (self._constraint is not None and self._constraint.complete):
            self.reason = "stop"
        elif seq.n_new >= seq.max_new or (text and self._repetition.detect(text)) or (seq.full and not seq.shift):
            self.reason = "length"

    def _output(self, text: str, logprobs: tuple[TokenProb, ...]) -> TextOutput | None:
        seq = self.seq
        first = self._is_first_output and seq.n_new > 0
        if not text and not logprobs and not first:
            return None
        self._is_first_output = False
        return TextOutput(
            self.id,
            text,
            logprobs,
            prompt_tokens=seq.n_prompt if first else 0,
            cached_tokens=seq.cached if first else 0,
            prompt_tokens_dropped=seq.dropped if first else 0,
            drafted=self.drafted,
            accepted=self.accepted,
            output_tokens=seq.n_new,
        )

    def _probability(self, row: Floats, token: int) -> TokenProb:
        """Return log probabilities of the model's own distribution, before penalties, temperature and constraint."""
        best = float(row.max())
        total = best + math.log(float(np.exp(row - best).sum()))
        count = min(self._n_top, len(row))
        likeliest = np.argpartition(row, len(row) - count)[len(row) - count :] if count else np.empty(0, np.intp)
        ordered = likeliest[np.argsort(-row[likeliest], kind="stable")]
        piece = self._model.raw_piece
        top = tuple(TopToken(piece(int(other)), float(row[other]) - total) for other in ordered)
        return TokenProb(piece(token), float(row[token]) - total, top)


def _preserved_tokens(model: LlamaModel, texts: tuple[str, ...]) -> dict[int, bytes]:
    """Return the control tokens that the request wants as text, and their text."""
    preserved = {}
    for text in texts:
        for token in model.tokenize(text, add_special=False):
            if model.is_control(token):
                preserved[token] = model.raw_piece(token)
    return preserved


class InputProcessor:
    """Makes the streams of one model. ``n_ctx``: most tokens of a sequence."""

    def __init__(self, model: LlamaModel, n_ctx: int) -> None:
        self._model, self._n_ctx = model, n_ctx
        self._compiler = ConstraintCompiler(model)

    def process(self, request: CompletionRequest) -> Generator[None, None, ReplyStream]:
        """Return the stream of a request; yield after each piece of a long prompt that is tokenized.

        Raises BadRequest or ContextOverflow for a request that cannot run.
        """
        model, options = self._model, request.options
        limit = max(MIN_CONTEXT, min(request.num_ctx or self._n_ctx, self._n_ctx))
        may_drop = request.truncate and request.shift
        prompt = yield from self._prompt_tokens(request, None if may_drop else limit)
        keep = protected_tokens(options.num_keep, len(prompt), limit, bos=model.add_bos)
        tokens = fit_prompt(prompt, limit, keep, may_drop=may_drop)
        for adapter in request.adapters:
            model.adapter(adapter.path)  # load it now: an error in its file belongs to this request
        seq = Sequence(
            request.id,
            list(tokens),
            limit=limit,
            keep=keep,
            shift=request.shift,
            max_new=max_reply_tokens(options.num_predict, limit),
            adapters=request.adapters,
            group=request.group,
            background=request.background,
            client=request.client,
        )
        seq.dropped = len(prompt) - len(tokens)
        if request.later_format:
            self._compiler.compile(request.later_format)
        bias = LogitBias(model, options.logit_bias) if options.logit_bias else None
        return ReplyStream(
            model,
            request,
            seq,
            text=TextStream(options.stop),
            constraint=self._compiler.compile(request.format) if request.format else None,
            sampler=Sampler(SamplingParameters.from_options(options, limit), bias),
            max_draft=self._max_draft(options.draft_num_predict),
        )

    def tokenize(self, request: Tokenize) -> Generator[None, None, Tokens]:
        """Return the tokens of texts, or their number; yield after each piece and each text. Raises BadRequest."""
        found: list[tuple[int, ...]] = []
        counts: list[int] = []
        for text in request.texts:
            tokens: list[int] = []
            count = 0
            for piece in self._model.tokenize_pieces(
                text, add_special=request.add_special, parse_special=request.parse_special
            ):
                count += len(piece)
                if not request.count_only:
                    tokens += piece
                yield
            counts.append(count)
            found.append(tuple(tokens))
        return Tokens(request.id, counts=tuple(counts)) if request.count_only else Tokens(request.id, tuple(found))

    def _max_draft(self, wanted: int | None) -> int:
        if self._model.recurrent:
            return 0
        return MAX_DRAFT if wanted is None else max(0, min(wanted, MAX_DRAFT))

    def _prompt_tokens(self, request: CompletionRequest, enough: int | None) -> Generator[None, None, list[int]]:
        """Return the tokens of the prompt, or some more than ``enough`` of them if it is longer."""
        model = self._model
        if request.tokens:
            model.check_tokens(request.tokens)
            return list(request.tokens)
        tokens: list[int] = []
        for piece in model.tokenize_pieces(request.prompt):
            if tokens:
                yield
            tokens += piece
            if enough is not None and len(tokens) > enough:
                break
        if not tokens and model.bos >= 0:
            tokens = [model.bos]
        if not tokens:
            raise BadRequest("the prompt is empty")
        return tokens
