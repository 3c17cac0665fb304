"""The engine: one model that serves many requests.

``step`` does one iteration of continuous batching: take new requests and cancellations, tokenize a part of long
prompts, admit sequences to slots, plan a batch (``scheduler``), add drafts and padding (``speculation``), decode,
sample a token for each reply and report its text; then compute one piece of the embeddings that wait, if there are any.
Which request is served next is decided in ``fairness``. Whatever cannot be done is undone, so that the next step can
try again.

One thread calls all methods; ``cancel``, ``hurry``, ``abort`` and ``flush`` may also be called by any other thread.
``submit`` and ``cancel`` take effect in the next step. Every request ends with exactly one Finished or Failed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from collections.abc import Sequence as GenericSequence
from typing import Any

import numpy as np

from ollama_nb.engine import loading
from ollama_nb.engine.embedder import MAX_BATCH, Embedder, PoolingJob
from ollama_nb.engine.fairness import Kind
from ollama_nb.engine.llama import Context, DecodeStatus, Floats
from ollama_nb.engine.messages import (
    Adapters,
    CompletionRequest,
    Counters,
    Embed,
    Embedded,
    EngineConfig,
    Failed,
    Finished,
    Output,
    Rank,
    Ranked,
    Tokenize,
)
from ollama_nb.engine.prefix_cache import PrefixCounts
from ollama_nb.engine.scheduler import Batch
from ollama_nb.engine.sequence import SequenceState
from ollama_nb.engine.slots import Cut, MemoryOp, Share, Shift
from ollama_nb.engine.speculation import Speculator
from ollama_nb.engine.stream import InputProcessor, ReplyStream
from ollama_nb.engine.threads import ThreadTuner, Watchdog
from ollama_nb.engine.tokenizer import PIECE
from ollama_nb.errors import BadRequest, Busy, Cancelled, OllamaError

BULK_PIECE = 512  # tokens of bulk embeddings that are computed in one step
PIECE_BESIDE_REPLIES = 128  # tokens of embeddings in a step beside running sequences; as many as prompts get there
TOKENIZE_SECONDS = 0.01  # seconds of a step in which long prompts are tokenized
LOAD_WAIT = 0.02  # seconds that a step waits for the disk if it has nothing else to do


class Engine:
    """Loads its model in the constructor. Raises LoadError."""

    def __init__(self, config: EngineConfig) -> None:
        started = time.perf_counter()
        self.config = config
        self._model = model = loading.load_model(config)
        self._shape = shape = loading.ContextShape.of(config, model)
        self._embedder: Embedder | None = None
        self._context: Context | None = None
        if model.embeds_only and not config.vocab_only:
            self._embedder = loading.make_embedder(config, model, shape)
        elif not config.vocab_only:
            self._context = loading.make_context(config, model, shape)
        context = self._context
        self._tuner, self._watchdog = ThreadTuner(shape.n_threads), Watchdog(self.abort)
        self._scheduler = loading.make_scheduler(context, shape)
        self._prefix_cache = loading.make_prefix_cache(config, context, self._scheduler, shape)
        draft_model = loading.make_draft_model(config, model, shape) if context and config.draft else None
        outputs = context.n_outputs if context else 1
        self._speculator = Speculator(outputs, cuttable=not model.recurrent, draft_model=draft_model)
        self._inputs = InputProcessor(model, shape.n_ctx)
        self._inbox: deque[ReplyStream | Output | int] = deque()
        self._streams: dict[int, ReplyStream] = {}
        self._tokenizing: dict[int, Generator[None, None, ReplyStream | Output]] = {}
        """Requests with long texts that are being tokenized, by id."""
        self._jobs: dict[int, PoolingJob] = {}
        """Embeddings and rankings, by id, in the order of arrival."""
        self._embedding = 0
        """The job that is being computed now."""
        self._prefilling: frozenset[int] = frozenset()
        """Requests whose prompts are in the current decode."""
        self._reads_background = False
        """The current decode reads prompts of background requests."""
        self._counts = Counters()
        if context is not None:
            loading.warm_up(context, self._tuner, self._watchdog)
        self._speculator.set_threads(self._tuner.threads)
        draft = draft_model.context.model if draft_model else None
        self.facts = loading.gather_facts(config, model, context, draft, shape, time.perf_counter() - started)

    def close(self) -> None:
        """Free all native memory. May be called twice."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._inbox.clear()
        self._tokenizing.clear()
        self._jobs.clear()
        self._watchdog.close()
        if self._prefix_cache is not None:
            self._prefix_cache.close()
        if self._embedder is not None:
            self._embedder.close()
        self._speculator.close()
        if self._context is not None:
            self._context.close()
        self._model.close()

    # Requests

    def submit(self, request: CompletionRequest | Embed | Rank | Tokenize) -> None:
        """Queue a request. An invalid request ends with Failed in the next step."""
        try:
            if isinstance(request, Tokenize):
                self._tokenizing[request.id] = self._inputs.tokenize(request)
                return
            if isinstance(request, Embed | Rank):
                self._jobs[request.id] = self._ready_embedder(request.adapters).begin(request)
                return
            if self._context is None:
                raise BadRequest("this model was loaded for embeddings or tokenization only and cannot generate text")
            self._tokenizing[request.id] = self._inputs.process(request)
            if len(request.prompt) <= PIECE:
                self._tokenize_next(request.id)
        except OllamaError as error:
            self._inbox.append(Failed.of(request.id, error))

    def cancel(self, id: int) -> None:
        """End a request in the next step; if its prompt is being decoded now, stop that. Unknown ids are ignored.

        Any thread.
        """
        self._inbox.append(id)
        if id in self._prefilling and self._context is not None:
            self._context.abort()
        if id == self._embedding and self._embedder is not None:
            self._embedder.context.abort()

    def hurry(self) -> None:
        """Stop the current decode if it reads prompts of background requests, because another one came. Any thread."""
        if self._reads_background and self._context is not None:
            self._context.abort()

    def abort(self) -> None:
        """Stop the current native call. Nothing is lost: the next step repeats its work. Any thread."""
        if self._context is not None:
            self._context.abort()
        if self._embedder is not None:
            self._embedder.context.abort()

    def flush(self, seconds: float) -> None:
        """Wait up to ``seconds`` until prefixes that are being written are on disk. Any thread."""
        if self._prefix_cache is not None:
            self._prefix_cache.flush(seconds)

    @property
    def busy(self) -> bool:
        """Whether ``step`` has work."""
        return bool(self._inbox or self._streams or self._tokenizing or self._jobs)

    @property
    def counters(self) -> dict[str, Any]:
        """Counters since load by name, as JSON values."""
        counts, slots = self._counts, self._scheduler.slots
        disk = PrefixCounts() if self._prefix_cache is None else self._prefix_cache.counts
        return {
            "decodes": counts.decodes,
            "rows": {str(rows): count for rows, count in sorted(counts.rows.items())},
            "max_rows": max(counts.rows, default=0),
            "prompt_tokens": counts.prompt_tokens,
            "cached_tokens": counts.cached_tokens,
            "disk_hits": disk.hits,
            "disk_tokens": disk.tokens,
            "disk_bytes": disk.bytes,
            "disk_kept": disk.stored,
            "output_tokens": counts.output_tokens,
            "drafted": counts.drafted,
            "accepted": counts.accepted,
            "model_drafted": counts.model_drafted,
            "model_accepted": counts.model_accepted,
            "padded": counts.padded,
            "shifts": counts.shifts,
            "aborts": counts.aborts,
            "preemptions": self._scheduler.preemptions,
            "decode_seconds": counts.seconds,
            "threads": self._tuner.threads,
            "slots": len(slots.slots),
            "busy_slots": slots.busy,
            "waiting": len(self._scheduler.waiting),
            "tokenizing": len(self._tokenizing),
        }

    # The step

    def step(self) -> list[Output]:
        """Run one iteration and return its outputs; the order between requests is not defined."""
        out: list[Output] = []
        if self._context is not None:
            self._context.rearm()
        if self._tokenizing:
            self._tokenize()
        if self._inbox:
            self._take_inbox(out)
        if self._context is not None and (self._streams or not self._jobs):
            self._step_sequences(self._context, out)
        if self._jobs:
            self._step_jobs(out)
        return out

    def _tokenize(self) -> None:
        """Tokenize texts and long prompts, taking turns, for a short time."""
        until = time.perf_counter() + TOKENIZE_SECONDS
        while self._tokenizing and time.perf_counter() < until:
            self._tokenize_next(next(iter(self._tokenizing)))

    def _tokenize_next(self, id: int) -> None:
        """Tokenize the next piece of a text. After the last one, the request is in the inbox."""
        tokenizing = self._tokenizing.pop(id)
        try:
            next(tokenizing)
        except StopIteration as done:
            self._inbox.append(done.value)
        except OllamaError as error:
            self._inbox.append(Failed.of(id, error))
        except Exception as error:  # the other requests must continue
            self._inbox.append(Failed(id, f"internal error in the model runner: {error!r}"))
        else:
            self._tokenizing[id] = tokenizing  # the others are next

    def _step_jobs(self, out: list[Output]) -> None:
        """Compute one piece of the job whose turn it is."""
        job = self._scheduler.shares.choose(list(self._jobs.values()))
        id, sequences = job.request.id, list(self._scheduler.running)
        if job.kind is Kind.BACKGROUND and any(not seq.background for seq in sequences):
            return
        size = PIECE_BESIDE_REPLIES if sequences else MAX_BATCH if job.kind is Kind.INTERACTIVE else BULK_PIECE
        try:
            embedder = self._ready_embedder(job.request.adapters)
            self._embedding = id
            tokens = embedder.advance(job, size)
            self._embedding = 0
            self._scheduler.shares.charge(job, tokens)
            if not job.complete:
                return
            result = embedder.finish(job)
        except OllamaError as error:
            out.append(Failed.of(id, error))
        else:
            out.append(_pooled(job, result, embedder.model_limit))
        finally:
            self._embedding = 0
        del self._jobs[id]

    def _step_sequences(self, context: Context, out: list[Output]) -> None:
        scheduler = self._scheduler
        if scheduler.waiting:
            self._admit()
        batch = scheduler.plan()
        if not batch.chunks:
            if self._prefix_cache is not None and not self._jobs:
                self._prefix_cache.wait(LOAD_WAIT)
            return
        streams = [self._streams[chunk.seq.id] for chunk in batch.chunks]
        rows = self._speculator.plan(batch, streams)
        count = _fill(context, batch, self._speculator.drafts)
        if count < rows:
            context.pad(count, rows)
        status, seconds = self._decode(context, batch, rows)
        if rows > batch.size:
            context.cut(context.scratch, 0)
        if status is DecodeStatus.DONE:
            self._count(batch, rows, seconds)
            scheduler.commit(batch)
            if self._prefix_cache is not None:
                self._prefix_cache.record_step(batch, seconds)
            self._sample(batch, context.logits(), out)
        else:
            self._undo(batch, rows, status, out)

    def _decode(self, context: Context, batch: Batch, rows: int) -> tuple[DecodeStatus, float]:
        """Decode the batch and measure it for thread tuning and drafts; return the status and the seconds."""
        if len(batch.chunks) > batch.replies:
            self._prefilling = frozenset(chunk.seq.id for chunk in batch.chunks[batch.replies :])
            self._reads_background = batch.chunks[0].seq.background
        changed = context.set_adapters(batch.adapters)
        limit = self._tuner.time_limit(rows)
        self._watchdog.arm(limit)
        started = time.perf_counter()
        status = context.decode(rows)
        ended = time.perf_counter()
        self._watchdog.disarm()
        self._prefilling, self._reads_background = frozenset(), False
        seconds = ended - started
        if status is DecodeStatus.DONE and batch.replies == len(batch.chunks) and not changed:
            self._speculator.times.record(rows, seconds)
        late = status is DecodeStatus.ABORTED and seconds >= limit
        if (late or status is DecodeStatus.DONE) and self._tuner.record(rows, seconds, ended, aborted=late):
            context.set_threads(self._tuner.threads)
            self._speculator.set_threads(self._tuner.threads)
        return status, seconds

    def _take_inbox(self, out: list[Output]) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, ReplyStream):
                self._streams[item.id] = item
                self._speculator.add(item)
                self._scheduler.add(item.seq)
            elif not isinstance(item, int):
                out.append(item)
            elif self._tokenizing.pop(item, None) is not None:
                out.append(Finished(id=item, reason="cancelled"))
            elif self._jobs.pop(item, None) is not None:
                out.append(Failed.of(item, Cancelled()))
            elif (stream := self._streams.get(item)) is not None:
                text = stream.cancel()
                if text is not None:
                    out.append(text)
                self._end(stream, stream.finish(), out)

    def _admit(self) -> None:
        cache, waiting = self._prefix_cache, list(self._scheduler.waiting)
        if cache is not None:
            cache.start_loads()
        self._apply(self._scheduler.admit())
        now = time.perf_counter()
        for seq in waiting:
            if seq.state is SequenceState.PREFILL:
                if cache is not None:
                    cache.restore(seq)
                if not seq.preempted:
                    self._streams[seq.id].started = now
                    self._counts.cached_tokens += seq.cached

    def _apply(self, ops: Iterable[MemoryOp]) -> None:
        """Carry out memory operations; where one fails, the sequence is read again from its start."""
        for op in ops:
            if not self._do(op):
                self._scheduler.recompute(op.target if isinstance(op, Share) else op.slot)

    def _do(self, op: MemoryOp) -> bool:
        context = self._context
        assert context is not None
        match op:
            case Cut(slot, start):
                return context.cut(slot, start)
            case Share(source, target, count):
                return context.share(source, target, count)
            case Shift(slot, start, count):
                return context.shift(slot, start, count)

    def _count(self, batch: Batch, rows: int, seconds: float) -> None:
        counts, size = self._counts, batch.size
        counts.seconds += seconds
        counts.decodes += 1
        counts.prompt_tokens += size - batch.replies
        if batch.replies:
            counts.rows[batch.replies] += 1
        counts.padded += rows - size - self._speculator.drafted

    def _sample(self, batch: Batch, logits: Floats, out: list[Output]) -> None:
        row = 0
        for chunk in batch.chunks:
            if not chunk.output:
                continue
            stream, draft = self._streams[chunk.seq.id], self._speculator.drafts.get(chunk.seq.id, ())
            try:
                self._advance(stream, logits[row:], draft, out)
            except OllamaError as error:
                self._end(stream, Failed.of(stream.id, error), out)
                continue
            finally:
                row += 1 + len(draft)
            if stream.reason:
                self._end(stream, stream.finish(), out)
            elif stream.seq.full:
                self._counts.shifts += 1
                self._apply(self._scheduler.shift(stream.seq))

    def _advance(self, stream: ReplyStream, logits: Floats, draft: GenericSequence[int], out: list[Output]) -> None:
        """Sample the next token, then verify the draft until a token differs; remove its rejected tokens."""
        seq, accepted = stream.seq, 0
        try:
            for row, drafted in enumerate((*draft, None)):
                text = stream.advance(logits[row])
                if text is not None:
                    out.append(text)
                if stream.reason or seq.tokens[-1] != drafted:
                    break
                seq.accept()
                accepted += 1
        finally:
            if draft:
                self._speculator.record(stream, accepted, self._counts)
                if accepted < len(draft):
                    self._apply([Cut(seq.slot, seq.n_past)])

    def _end(self, stream: ReplyStream, last: Finished | Failed, out: list[Output]) -> None:
        self._counts.output_tokens += stream.seq.n_new
        self._speculator.remove(stream)
        if self._prefix_cache is not None:
            self._prefix_cache.remove(stream.seq, intact=isinstance(last, Finished))
        self._apply(self._scheduler.remove(stream.seq))
        del self._streams[stream.id]
        stream.close()
        out.append(last)
        if stream.seq.adapters:
            self._free_adapters()

    def _free_adapters(self) -> None:
        contexts = (self._context, self._embedder.context if self._embedder is not None else None)
        used = [context.adapters for context in contexts if context is not None]
        used += [stream.seq.adapters for stream in self._streams.values()]
        used += [job.request.adapters for job in self._jobs.values()]
        waiting = (item.seq.adapters for item in tuple(self._inbox) if isinstance(item, ReplyStream))
        self._model.free_adapters({one.path for adapters in (*used, *waiting) for one in adapters})

    def _undo(self, batch: Batch, rows: int, status: DecodeStatus, out: list[Output]) -> None:
        """After a failed decode, cut memory back to before the batch, and free cells or end the requests at fault."""
        self._apply(Cut(chunk.seq.slot, chunk.start) for chunk in batch.chunks)
        if status is DecodeStatus.ABORTED:
            self._counts.aborts += 1
        elif status is DecodeStatus.CACHE_FULL and rows > batch.size:
            self._speculator.back_off()
        elif status is DecodeStatus.CACHE_FULL:
            self._free_cells(batch, out)
        else:
            for chunk in batch.chunks:
                message = "the engine failed to compute this batch; the next request may work"
                self._end(self._streams[chunk.seq.id], Failed(chunk.seq.id, message), out)
            self._clear_memory()

    def _free_cells(self, batch: Batch, out: list[Output]) -> None:
        """Evict the least recently used prefix, or else fail the youngest request of the batch."""
        cut = self._scheduler.slots.evict()
        if cut is not None:
            self._apply([cut])
            return
        youngest = max(batch.chunks, key=lambda chunk: chunk.seq.id).seq
        full = Busy("the model's context memory is full")
        self._end(self._streams[youngest.id], Failed.of(youngest.id, full), out)

    def _clear_memory(self) -> None:
        assert self._context is not None
        self._context.clear()
        for slot in self._scheduler.slots.slots:
            self._scheduler.recompute(slot.index)

    # Embeddings and tokens

    def pool(self, request: Embed | Rank) -> tuple[Floats, PoolingJob]:
        """Compute embeddings or scores at once, as an array [inputs, width]. Raises OllamaError."""
        embedder = self._ready_embedder(request.adapters)
        job = embedder.begin(request)
        while not job.complete:
            embedder.advance(job, MAX_BATCH)
        return embedder.finish(job), job

    def _ready_embedder(self, adapters: Adapters) -> Embedder:
        if self._model.vocab_only:
            raise BadRequest("only the vocabulary is loaded")
        if self._embedder is None:
            self._embedder = loading.make_embedder(self.config, self._model, self._shape)
        if self._embedder.context.set_adapters(adapters):
            self._free_adapters()
        return self._embedder

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of a text."""
        return self._model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: GenericSequence[int]) -> str:
        """Return the text of token ids, including special tokens; invalid ids are skipped."""
        return self._model.detokenize(tokens).decode("utf-8", "replace")


def _pooled(job: PoolingJob, result: Floats, model_limit: int) -> Embedded | Ranked:
    """Return the last output of a job."""
    id, truncated = job.request.id, tuple(job.truncated)
    if isinstance(job.request, Rank):
        scores = tuple(result.tolist())
        return Ranked(id, scores, job.tokens, truncated=truncated, limit=job.limit, model_limit=model_limit)
    return Embedded(
        id,
        result.astype("<f4", copy=False).tobytes(),
        result.shape[1],
        job.tokens,
        time.perf_counter() - job.started,
        truncated=truncated,
        limit=job.limit,
        model_limit=model_limit,
    )


def _fill(context: Context, batch: Batch, drafts: Mapping[int, GenericSequence[int]]) -> int:
    """Write a batch into the context's arrays, each draft after the token that it follows; return the rows."""
    tokens, positions, sequences, outputs = context.tokens, context.positions, context.sequences, context.outputs
    row = 0
    for seq, start, size, output in batch.chunks:
        if size == 1:
            tokens[row], positions[row], sequences[row], outputs[row] = seq.tokens[start], start, seq.slot, output
            row += 1
            if (draft := drafts.get(seq.id)) is not None:
                end = row + len(draft)
                tokens[row:end], positions[row:end] = draft, np.arange(start + 1, start + 1 + len(draft))
                sequences[row:end], outputs[row:end] = seq.slot, 1
                row = end
            continue
        row = context.fill(row, seq.slot, start, seq.tokens[start : start + size], output=output)
    return row
