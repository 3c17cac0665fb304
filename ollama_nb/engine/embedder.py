"""Embeddings and reranking: many inputs in one decode, with the model's pooling (mean by default).

An input is decoded as a whole, since pooling covers one micro-batch; so inputs are limited to the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ollama_nb.engine.llama import Context, DecodeStatus, Floats, LlamaModel
from ollama_nb.engine.messages import EmbedInput
from ollama_nb.errors import BadRequest, Cancelled, ContextOverflow, OllamaError

MAX_BATCH = 2048  # tokens
MAX_SEQUENCES = 64
_RETURN_PROBABILITIES = frozenset({"qwen3", "qwen3vl"})  # architectures whose scores llama.cpp returns as such
TOO_LONG = "the input length exceeds the context length"


class Embedder:
    """Embeds and ranks with a context of its own. Raises LoadError."""

    def __init__(self, model: LlamaModel, *, n_ctx: int, n_threads: int, flash_attention: bool | None) -> None:
        self._model = model
        self.limit = min(n_ctx, MAX_BATCH)
        """Most tokens of an input, including special tokens."""
        room = max(self.limit, 512)
        self.context = Context(
            model,
            cells=room,
            n_seq=MAX_SEQUENCES,
            n_batch=room,
            n_ubatch=room,
            n_threads=n_threads,
            flash_attention=flash_attention,
            pooling="mean" if model.pooling == "none" else model.pooling,
        )

    def embed(
        self,
        inputs: Sequence[EmbedInput],
        *,
        truncate: bool = True,
        num_ctx: int = 0,
        normalise: bool = True,
    ) -> tuple[Floats, int]:
        """Return vectors [inputs, n_embd] in order, and the number of tokens. Token ids are read as they are.

        Raises ContextOverflow for an input that is too long, unless ``truncate`` (then its beginning is used),
        BadRequest for an input without tokens, Cancelled after an abort.
        """
        if self._model.pooling == "rank":
            raise BadRequest("this model ranks documents and cannot make embeddings: use /api/rerank")
        limit = self._limit(num_ctx)
        prompts = [
            self._tokens(text, limit, truncate) if isinstance(text, str) else self._checked(text, limit, truncate)
            for text in inputs
        ]
        vectors = self._pool(prompts)
        return (_unit(vectors) if normalise else vectors), sum(map(len, prompts))

    def rank(self, query: str, documents: Sequence[str], *, num_ctx: int = 0) -> tuple[Floats, int]:
        """Return the relevance of each document to the query, 0 to 1, in order, and the number of tokens.

        Documents that are too long are truncated. Raises BadRequest for a model without rank pooling, ContextOverflow
        for a query that leaves no room, Cancelled after an abort.
        """
        if self._model.pooling != "rank":
            raise BadRequest("this model does not rank documents")
        limit = self._limit(num_ctx)
        pairs = [self._pair(query, document, limit) for document in documents]
        scores = self._pool(pairs)[:, 0]
        if self._model.architecture not in _RETURN_PROBABILITIES:
            scores = (1.0 / (1.0 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        return scores, sum(map(len, pairs))

    def close(self) -> None:
        self.context.close()

    def _limit(self, num_ctx: int) -> int:
        return min(num_ctx, self.limit) if num_ctx > 0 else self.limit

    def _pool(self, prompts: Sequence[list[int]]) -> Floats:
        """Return the pooled output [prompts, pooled_width]."""
        context = self.context
        rows = np.zeros((len(prompts), context.pooled_width), np.float32)
        for group in groups([len(prompt) for prompt in prompts], context.n_batch, MAX_SEQUENCES):
            self._decode([prompts[at] for at in group])
            for seq, at in enumerate(group):
                rows[at] = context.pooled(seq)
        if not np.isfinite(rows).all():
            raise OllamaError("the model computed no usable numbers (NaN): its file may be damaged")
        return rows

    def _pair(self, query: str, document: str, limit: int) -> list[int]:
        """Return the tokens of a pair in the model's format, with the document truncated to fit."""
        model = self._model
        template = model.rank_template
        if template:
            before, _, after = template.partition("{document}")
            head = model.tokenize(before.replace("{query}", query), add_special=False)
            body = model.tokenize(document, add_special=False, parse_special=False)
            tail = model.tokenize(after.replace("{query}", query), add_special=False)
        else:
            first = model.tokenize(query, parse_special=False)
            bare = model.tokenize(query, add_special=False, parse_special=False)
            n_special = 0 if first[: len(bare)] == bare else 1
            tail = first[n_special + len(bare) :]
            head = first[: n_special + len(bare)] + (model.pair_separator or tail)
            body = model.tokenize(document, add_special=False, parse_special=False)
        room = limit - len(head) - len(tail)
        if room <= 0:
            raise ContextOverflow("the query leaves no room for a document in the context of this model")
        return head + body[:room] + tail

    def _tokens(self, text: str, limit: int, truncate: bool) -> list[int]:
        tokens = self._model.tokenize(text, parse_special=False)
        if not tokens:
            raise BadRequest("this model cannot embed an empty text")
        if len(tokens) <= limit:
            return tokens
        if not truncate:
            raise ContextOverflow(TOO_LONG)
        body = self._model.tokenize(text, add_special=False, parse_special=False)
        before = 1 if tokens[: len(body)] != body else 0
        after = tokens[before + len(body) :]
        return (tokens[: max(1, limit - len(after))] + after)[:limit]

    def _checked(self, tokens: Sequence[int], limit: int, truncate: bool) -> list[int]:
        """Return token ids from a client, cut to the limit."""
        if not tokens:
            raise BadRequest("an input has no tokens")
        self._model.check_tokens(tokens)
        if len(tokens) > limit and not truncate:
            raise ContextOverflow(TOO_LONG)
        return list(tokens[:limit])

    def _decode(self, prompts: Sequence[list[int]]) -> None:
        context, at = self.context, 0
        context.clear()
        for seq, prompt in enumerate(prompts):
            end = at + len(prompt)
            context.tokens[at:end] = prompt
            context.positions[at:end] = np.arange(len(prompt))
            context.sequences[at:end] = seq
            at = end
        context.outputs[:at] = 1
        status = context.decode(at)
        if status is DecodeStatus.ABORTED:
            raise Cancelled
        if status is not DecodeStatus.DONE:
            raise OllamaError(f"the engine could not decode the input ({status.name.lower()})")


def groups(lengths: Sequence[int], n_batch: int, n_seq: int) -> Iterator[list[int]]:
    """Yield the indices of the inputs of each decode: longest first, as many as fit."""
    group: list[int] = []
    room = n_batch
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if group and (lengths[at] > room or len(group) == n_seq):
            yield group
            group, room = [], n_batch
        group.append(at)
        room -= lengths[at]
    if group:
        yield group


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, norms, out=vectors, where=norms > 0)
    return vectors
