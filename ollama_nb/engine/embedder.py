"""Embeddings and reranking: many inputs in one decode, with the model's pooling (mean by default).

A request is a job that is computed in pieces, so that others are served in between: ``begin``, then ``advance`` until
the job is complete, then ``finish``. An input is decoded as a whole, since pooling covers one micro-batch; so inputs
are limited to the batch size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ollama_nb.engine.fairness import Kind
from ollama_nb.engine.llama import Context, DecodeStatus, Floats, LlamaModel
from ollama_nb.engine.messages import Embed, EmbedInput, Rank
from ollama_nb.errors import BadRequest, ContextOverflow, OllamaError

MAX_BATCH = 2048  # tokens
MAX_SEQUENCES = 64
BULK_INPUTS = 16  # inputs above which a request is bulk work; see ``fairness``
BULK_SIZE = 16_384  # characters or token ids of all inputs above which it is
_RETURN_PROBABILITIES = frozenset({"qwen3", "qwen3vl"})  # architectures whose scores llama.cpp returns as such
TOO_LONG = "the input length exceeds the context length"


class PoolingJob:
    """The inputs of one request, embedded or ranked in pieces: the finished ones and the next ones."""

    def __init__(self, request: Embed | Rank, inputs: Sequence[EmbedInput], limit: int, width: int) -> None:
        self.request, self.inputs, self.limit = request, inputs, limit
        self.head: list[int] = []
        self.tail: list[int] = []
        """The tokens around each document."""
        self.rows = np.zeros((len(inputs), width), np.float32)
        self.prompts: list[list[int]] = []
        """The tokens of the next inputs."""
        self.n_tokenized = self.done = self.tokens = 0
        """Inputs that were tokenized and that were computed, and the tokens of the latter."""
        self.truncated: list[int] = []
        self.started = time.perf_counter()
        size = sum(map(len, inputs))
        bulk = len(inputs) > BULK_INPUTS or size > BULK_SIZE
        self.client = request.client
        self.kind = Kind.BACKGROUND if request.background else Kind.BULK if bulk else Kind.INTERACTIVE

    @property
    def complete(self) -> bool:
        return self.done == len(self.inputs)


class Embedder:
    """Embeds and ranks with a context of its own. Raises LoadError."""

    def __init__(self, model: LlamaModel, *, n_ctx: int, n_threads: int, flash_attention: bool | None) -> None:
        self._model = model
        self.limit = min(n_ctx, MAX_BATCH)
        """Most tokens of an input, including special tokens."""
        self.model_limit = min(model.n_ctx_train or MAX_BATCH, MAX_BATCH)
        """The limit if the model is loaded with the longest context that it was trained for."""
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

    def begin(self, request: Embed | Rank) -> PoolingJob:
        """Return the work of a request. Raises BadRequest for a model that cannot do it, ContextOverflow."""
        limit = self._limit(request.num_ctx)
        if isinstance(request, Embed):
            if self._model.pooling == "rank":
                raise BadRequest("this model ranks documents and cannot make embeddings: use /api/rerank")
            return PoolingJob(request, request.inputs, limit, self.context.pooled_width)
        if self._model.pooling != "rank":
            raise BadRequest("this model does not rank documents")
        job = PoolingJob(request, request.documents, limit, self.context.pooled_width)
        job.head, job.tail = self._around(request.query)
        if limit <= len(job.head) + len(job.tail):
            raise ContextOverflow("the query leaves no room for a document in the context of this model")
        return job

    def advance(self, job: PoolingJob, budget: int) -> int:
        """Compute the next inputs of a job, of about ``budget`` tokens together; return the tokens that were read.

        Nothing is lost after an abort: 0 is returned, and the next call computes the same inputs. Raises BadRequest for
        an input without tokens, ContextOverflow for one that is too long and may not be truncated.
        """
        budget = min(budget, self.context.n_batch)
        while job.n_tokenized < len(job.inputs) and len(job.prompts) < MAX_SEQUENCES:
            if job.prompts and sum(map(len, job.prompts)) >= budget:
                break
            prompt, cut = self._prompt(job, job.inputs[job.n_tokenized])
            if cut:
                job.truncated.append(job.n_tokenized)
            job.prompts.append(prompt)
            job.n_tokenized += 1
        count = _fitting(job.prompts, budget, MAX_SEQUENCES)
        if not count:
            return 0
        prompts = job.prompts[:count]
        if not self._decode(prompts):
            return 0
        for seq in range(count):
            job.rows[job.done + seq] = self.context.pooled(seq)
        del job.prompts[:count]
        job.done += count
        read = sum(map(len, prompts))
        job.tokens += read
        return read

    def finish(self, job: PoolingJob) -> Floats:
        """Return the vectors [inputs, n_embd] or scores [documents] of a job that is complete, in order."""
        rows = job.rows
        if not np.isfinite(rows).all():
            raise OllamaError("the model computed no usable numbers (NaN): its file may be damaged")
        if isinstance(job.request, Embed):
            return _unit(rows) if job.request.normalise else rows
        scores = rows[:, 0]
        if self._model.architecture not in _RETURN_PROBABILITIES:
            scores = (1.0 / (1.0 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        return scores

    def close(self) -> None:
        self.context.close()

    def _limit(self, num_ctx: int) -> int:
        return min(num_ctx, self.limit) if num_ctx > 0 else self.limit

    def _around(self, query: str) -> tuple[list[int], list[int]]:
        """Return the tokens before and after a document in the model's format for pairs."""
        model = self._model
        template = model.rank_template
        if template:
            before, _, after = template.partition("{document}")
            head = model.tokenize(before.replace("{query}", query), add_special=False)
            return head, model.tokenize(after.replace("{query}", query), add_special=False)
        first, last = model.added_tokens
        bare = model.tokenize(query, add_special=False, parse_special=False)
        return [*first, *bare, *(model.pair_separator or last)], last

    def _prompt(self, job: PoolingJob, item: EmbedInput) -> tuple[list[int], bool]:
        """Return the tokens of an input, cut to the limit of the job, and whether they were cut."""
        if isinstance(job.request, Rank):
            body, cut = self._first_tokens(str(item), job.limit - len(job.head) - len(job.tail))
            return job.head + body + job.tail, cut
        if isinstance(item, str):
            before, after = self._model.added_tokens
            body, cut = self._first_tokens(item, max(0, job.limit - len(before) - len(after)))
            prompt = ([*before, *body][: max(1, job.limit - len(after))] + after)[: job.limit]
            if not prompt:
                raise BadRequest("this model cannot embed an empty text")
        else:
            if not item:
                raise BadRequest("an input has no tokens")
            self._model.check_tokens(item)
            prompt, cut = list(item[: job.limit]), len(item) > job.limit
        if cut and not job.request.truncate:
            raise ContextOverflow(TOO_LONG)
        return prompt, cut

    def _first_tokens(self, text: str, count: int) -> tuple[list[int], bool]:
        """Return the first ``count`` tokens of a text, and whether there are more. Nothing behind them is tokenized."""
        tokens: list[int] = []
        for piece in self._model.tokenize_pieces(text, add_special=False, parse_special=False):
            tokens += piece
            if len(tokens) > count:
                return tokens[:count], True
        return tokens, False

    def _decode(self, prompts: Sequence[list[int]]) -> bool:
        """Decode prompts; return False after an abort."""
        context, at = self.context, 0
        context.rearm()
        context.clear()
        for seq, prompt in enumerate(prompts):
            end = at + len(prompt)
            context.tokens[at:end] = prompt
            context.positions[at:end] = np.arange(len(prompt))
            context.sequences[at:end] = seq
            at = end
        context.outputs[:at] = 1
        status = context.decode(at)
        if status not in (DecodeStatus.DONE, DecodeStatus.ABORTED):
            raise OllamaError(f"the engine could not decode the input ({status.name.lower()})")
        return status is DecodeStatus.DONE


def _fitting(prompts: Sequence[list[int]], budget: int, n_seq: int) -> int:
    """Return how many of the first prompts fit into ``budget`` tokens together: at least one, if there is one."""
    used = 0
    for count, prompt in enumerate(prompts):
        used += len(prompt)
        if count and (used > budget or count == n_seq):
            return count
    return len(prompts)


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, norms, out=vectors, where=norms > 0)
    return vectors
