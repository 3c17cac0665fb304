"""From a request to a stream that can run: prompt tokens, their fit into the context, sampler, constraint, drafts."""

from __future__ import annotations

from ollama_nb.engine.bias import Bias
from ollama_nb.engine.grammar import Grammars
from ollama_nb.engine.llama import Model
from ollama_nb.engine.sampler import Recipe, Sampler
from ollama_nb.engine.sequence import MIN_CONTEXT, Request, Sequence, fit, protected, reply_limit
from ollama_nb.engine.stream import Stream
from ollama_nb.engine.text import TextStream
from ollama_nb.errors import BadRequest

MAX_DRAFT = 15


class Intake:
    """Makes streams for one model, whose sequences hold ``n_ctx`` tokens at most."""

    def __init__(self, model: Model, n_ctx: int) -> None:
        self._model, self._n_ctx = model, n_ctx
        self._grammars = Grammars(model)

    def stream(self, request: Request) -> Stream:
        """Raises BadRequest or ContextOverflow for a request that cannot run."""
        model, options = self._model, request.options
        limit = max(MIN_CONTEXT, min(request.num_ctx or self._n_ctx, self._n_ctx))
        prompt = self._prompt(request)
        keep = protected(options.num_keep, len(prompt), limit, bos=model.add_bos)
        tokens = fit(prompt, limit, keep, may_drop=request.truncate and request.shift)
        longest = reply_limit(options.num_predict, limit)
        for adapter in request.adapters:
            model.adapter(adapter.path)  # read now: what is wrong with it is this request's matter
        seq = Sequence(
            request.id,
            list(tokens),
            limit=limit,
            keep=keep,
            shift=request.shift,
            max_new=longest,
            adapters=request.adapters,
        )
        seq.dropped = len(prompt) - len(tokens)
        text = TextStream(options.stop)
        constraint = self._grammars.constraint(request.format) if request.format else None
        bias = Bias(model, options.logit_bias) if options.logit_bias else None
        sampler = Sampler(Recipe.of(options, limit), bias)
        most = MAX_DRAFT if options.draft_num_predict is None else min(options.draft_num_predict, MAX_DRAFT)
        most = 0 if model.recurrent else max(0, most)
        return Stream(model, request, seq, sampler=sampler, text=text, constraint=constraint, max_draft=most)

    def _prompt(self, request: Request) -> list[int]:
        model = self._model
        if request.tokens:
            if not all(0 <= token < model.n_vocab for token in request.tokens):
                raise BadRequest(f"a prompt token is none of this model's {model.n_vocab} tokens")
            return list(request.tokens)
        tokens = model.tokenize(request.prompt)
        if not tokens and model.bos >= 0:
            tokens = [model.bos]
        if not tokens:
            raise BadRequest("the prompt is empty")
        return tokens
