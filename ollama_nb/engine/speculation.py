"""Speculative decoding, the acting half: choose the drafts of each step, run the draft model, record acceptance.

The decisions are in ``drafts``. Errors of the draft model cost drafts, never a reply.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ollama_nb.engine.drafts import (
    ROW_COST_PRIOR,
    DraftModelBackoff,
    DraftModelSource,
    DraftSource,
    GrammarSource,
    PromptLookup,
    StepTimes,
    plan_drafts,
)
from ollama_nb.engine.llama import Context, DecodeStatus
from ollama_nb.engine.messages import Counters
from ollama_nb.engine.scheduler import Batch
from ollama_nb.engine.slots import MIN_SHARED, common_prefix
from ollama_nb.engine.stream import ReplyStream

BACK_OFF_STEPS = 64  # steps without drafts and padding after the KV cache had no cells for them
SMOOTHING = 0.2  # weight of the newest measurement in a moving average
USUAL_UNREAD = 2  # tokens that a sequence adds from one draft to the next: the last draft token and the one after it


class Speculator:
    """Chooses drafts and batch padding for each step.

    ``times`` holds the measured step times, ``drafts`` the drafts of the current step by request id.
    """

    def __init__(self, n_outputs: int, *, cuttable: bool, draft_model: DraftModel | None = None) -> None:
        """``n_outputs``: most rows with logits in a step. Without ``cuttable`` memory there are no drafts."""
        self.times = StepTimes(n_outputs)
        self.drafts: dict[int, list[int]] = {}
        self.draft_model = draft_model
        self._sources: dict[int, DraftSource] = {}
        self._backoff = DraftModelBackoff()
        self._row_cost = self._plain_seconds = 0.0
        self._cuttable = cuttable
        self._threads = 1
        self._pause = 0

    def set_threads(self, threads: int) -> None:
        """Note the number of threads of the next steps."""
        self._threads = threads
        if self.draft_model is not None:
            self.draft_model.set_threads(threads)

    def add(self, stream: ReplyStream) -> None:
        """Decide at the start of a request whether the draft model serves it."""
        if self.draft_model is not None and stream.max_draft and self._backoff.allows():
            stream.model_source = DraftModelSource(stream.max_draft)

    def remove(self, stream: ReplyStream) -> None:
        """Record at the end of a request what the draft model was worth."""
        if stream.model_source is not None and stream.model_source.seconds:
            self._backoff.record(stream.model_source.seconds)

    def plan(self, batch: Batch, streams: Sequence[ReplyStream]) -> int:
        """Make the drafts of a batch (``streams``: in its order); return the rows of the whole step.

        Only batches without prompt tokens get drafts or padding: prompt tokens fill blocks of rows by themselves.
        """
        self.drafts, self._sources = {}, {}
        self.times.select(self._threads, adapted=bool(batch.adapters))
        paused = self._pause > 0
        self._pause -= paused
        if batch.replies < len(batch.chunks) or paused or not self._cuttable:
            return batch.size
        offers = [stream.best_source() for stream in streams]
        from_model = [index for index, (source, _) in enumerate(offers) if isinstance(source, DraftModelSource)]
        seconds = (
            self.draft_model.round_seconds(len(from_model)) if self.draft_model is not None and from_model else 0.0
        )
        plan = plan_drafts([probabilities for _, probabilities in offers], self.times, from_model, seconds)
        if plan is None:
            return self.times.padded(batch.size)
        self._row_cost, self._plain_seconds = plan.row_cost, plan.plain_seconds
        self._draft(streams, [source for source, _ in offers], plan.sizes)
        return plan.rows if self.drafted == sum(plan.sizes) else self.times.padded(batch.size + self.drafted)

    @property
    def drafted(self) -> int:
        """Tokens of all drafts of this step."""
        return sum(map(len, self.drafts.values()))

    def record(self, stream: ReplyStream, accepted: int, counts: Counters) -> None:
        """Record how many tokens of this stream's draft were accepted."""
        drafted, source = len(self.drafts[stream.id]), self._sources[stream.id]
        counts.drafted += drafted
        counts.accepted += accepted
        stream.drafted += drafted
        stream.accepted += accepted
        source.record(drafted, accepted, self._row_cost)
        if isinstance(source, DraftModelSource):
            counts.model_drafted += drafted
            counts.model_accepted += accepted
            source.seconds += (accepted - self._row_cost * drafted) * self._plain_seconds

    def back_off(self) -> None:
        """Stop drafts and padding for a while: the KV cache had no cells for them."""
        self._pause = BACK_OFF_STEPS

    def close(self) -> None:
        if self.draft_model is not None:
            self.draft_model.close()

    def _draft(
        self, streams: Sequence[ReplyStream], sources: Sequence[DraftSource | None], sizes: Sequence[int]
    ) -> None:
        from_model = []
        for stream, source, count in zip(streams, sources, sizes, strict=True):
            if source is None or not count:
                continue
            self._sources[stream.id] = source
            if isinstance(source, PromptLookup | GrammarSource):
                self.drafts[stream.id] = source.draft(count)
            else:
                from_model.append((stream, count))
        if from_model and self.draft_model is not None:
            self.drafts |= self.draft_model.draft(from_model)


class DraftModel:
    """A small model that drafts for a large one. Its KV cache follows the large model's sequences, slot by slot.

    Before it drafts for a sequence, it removes the tokens that were not accepted and reads the new ones.
    ``context`` has a slot for each of the large model's sequences; ``n_threads``: most threads that it uses;
    ``n_vocab``: size of the large model's vocabulary.
    """

    def __init__(self, context: Context, n_vocab: int, n_threads: int) -> None:
        self.context = context
        self._n_threads = n_threads
        self._n_vocab = n_vocab
        self._held: list[list[int]] = [[] for _ in range(context.n_seq)]
        """The tokens in each slot."""
        self._seconds = {1: context.time_one()}

    def round_seconds(self, replies: int) -> float:
        """Return the time to draft one more token for each of ``replies`` replies."""
        known = self._seconds.get(replies)
        return self._seconds[1] * (1.0 + ROW_COST_PRIOR * (replies - 1)) if known is None else known

    def set_threads(self, threads: int) -> None:
        """Use as many threads as the large model, up to this model's own limit."""
        self.context.set_threads(min(threads, self._n_threads))

    def draft(self, requests: Sequence[tuple[ReplyStream, int]]) -> dict[int, list[int]]:
        """Return drafts of up to the requested number of tokens, by request id.

        A stream whose text is longer than the draft model can read in one batch gets a draft in a later step.
        """
        context, drafts = self.context, dict[int, list[int]]()
        context.rearm()
        active = self._read(requests)
        while active:
            tokens = context.logits()[: len(active)].argmax(axis=1).tolist()
            unfinished = []
            for (stream, count), token in zip(active, tokens, strict=True):
                if token >= self._n_vocab:
                    continue
                draft = drafts.setdefault(stream.id, [])
                draft.append(token)
                if len(draft) < count and token not in context.model.eog:
                    unfinished.append((stream, count))
            active = unfinished
            if active and not self._extend([(stream.seq.slot, drafts[stream.id][-1]) for stream, _ in active]):
                break
        return drafts

    def close(self) -> None:
        self.context.close()
        self.context.model.close()

    def _read(self, requests: Sequence[tuple[ReplyStream, int]]) -> list[tuple[ReplyStream, int]]:
        """Read the new tokens of each text, as many as fit one batch; return the requests that are read completely."""
        room, count = self.context.n_batch, 0
        ready, started = [], time.perf_counter()
        read: list[tuple[ReplyStream, int]] = []
        for stream, wanted in requests:
            start = self._align(stream)
            tokens = stream.seq.tokens[start : start + room - count]
            complete = start + len(tokens) == len(stream.seq.tokens)
            self._fill(count, stream.seq.slot, start, tokens, output=complete)
            count += len(tokens)
            read.append((stream, len(tokens)))
            if complete:
                ready.append((stream, wanted))
            if count == room:
                break
        if not self._decode(count, [stream.seq.slot for stream, _ in read]):
            return []
        self._charge(read, time.perf_counter() - started)
        return ready

    def _align(self, stream: ReplyStream) -> int:
        """Make the stream's slot hold a prefix of its text, the longest that any slot has; return its length."""
        slot, text = stream.seq.slot, stream.seq.tokens[:-1]  # the last token is always read: its logits are needed
        if common_prefix(self._held[slot], text) < MIN_SHARED:
            self._share(slot, text)
        held = self._held[slot]
        count = common_prefix(held, text)
        if count < len(held):
            self.context.cut(slot, count)
            del held[count:]
        return count

    def _share(self, slot: int, text: list[int]) -> None:
        """Share the cells of the slot that holds the longest prefix of this text, if it is long enough."""
        lengths = [0 if at == slot else common_prefix(held, text) for at, held in enumerate(self._held)]
        count = max(lengths)
        if count >= MIN_SHARED:
            self.context.cut(slot, 0)
            self._held[slot] = text[:count] if self.context.share(lengths.index(count), slot, count) else []

    def _extend(self, drafted: Sequence[tuple[int, int]]) -> bool:
        """Read one more draft token in each slot."""
        started = time.perf_counter()
        for row, (slot, token) in enumerate(drafted):
            self._fill(row, slot, len(self._held[slot]), [token], output=True)
        if not self._decode(len(drafted), [slot for slot, _ in drafted]):
            return False
        self._record(len(drafted), time.perf_counter() - started)
        return True

    def _fill(self, row: int, slot: int, start: int, tokens: list[int], *, output: bool) -> None:
        self.context.fill(row, slot, start, tokens, output=output)
        self._held[slot] += tokens

    def _decode(self, count: int, slots: Sequence[int]) -> bool:
        """Decode the first ``count`` rows. On failure return False and empty ``slots``, or all if the cache is full."""
        status = self.context.decode(count)
        if status is DecodeStatus.DONE:
            return True
        if status is not DecodeStatus.ABORTED:
            self.context.clear()
            slots = range(len(self._held))
        for slot in slots:
            self.context.cut(slot, 0)
            self._held[slot] = []
        return False

    def _charge(self, read: Sequence[tuple[ReplyStream, int]], seconds: float) -> None:
        """Charge the time for reading long texts to the streams that they belong to."""
        long = [(stream, count) for stream, count in read if count > USUAL_UNREAD]
        if not long:
            self._record(len(read), seconds)
            return
        extra, total = max(0.0, seconds - self.round_seconds(len(read))), sum(count for _, count in long)
        for stream, count in long:
            if stream.model_source is not None:
                stream.model_source.seconds -= extra * count / total

    def _record(self, replies: int, seconds: float) -> None:
        known = self._seconds.get(replies, seconds)
        self._seconds[replies] = known + SMOOTHING * (seconds - known)
