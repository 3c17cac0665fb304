"""What a step reads beyond what it must: drafts, and rows that only round it up."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.engine.config import Counters
from ollama_nb.engine.draft import Forecast, Guesser, Habit, Lookup, Prescribed, choose
from ollama_nb.engine.drafter import Drafter
from ollama_nb.engine.rows import RowTimes
from ollama_nb.engine.scheduler import Batch
from ollama_nb.engine.stream import Stream

TIGHT = 64
"""Steps without drafts and padding, after memory had no cells for them."""


class Speculator:
    """``times`` says what steps cost, ``drafts`` holds the guesses of the step that runs, by request."""

    def __init__(self, n_outputs: int, *, cuttable: bool, drafter: Drafter | None = None) -> None:
        """``n_outputs``: rows with logits that a step may have; memory that cannot be cut takes no drafts."""
        self.times = RowTimes(n_outputs)
        self.drafts: dict[int, list[int]] = {}
        self.drafter = drafter
        self._guessers: dict[int, Guesser] = {}
        self._habit = Habit()
        self._price = self._plain = 0.0
        self._cuttable = cuttable
        self._threads = 1
        self._tight = 0

    def use(self, threads: int) -> None:
        """From now on so many threads compute."""
        self._threads = threads
        if self.drafter is not None:
            self.drafter.use(threads)

    def welcome(self, stream: Stream) -> None:
        """A request begins: may the draft model guess for it?"""
        if self.drafter is not None and stream.most_drafted and self._habit.asks():
            stream.forecast = Forecast(stream.most_drafted)

    def leave(self, stream: Stream) -> None:
        """A request has ended."""
        if stream.forecast is not None and stream.forecast.seconds:
            self._habit.learn(stream.forecast.seconds)

    def plan(self, batch: Batch, streams: Sequence[Stream]) -> int:
        """Choose drafts for the replies of a batch (``streams``, in its order); return the rows of the whole step.

        Only a batch of replies has room: beside prompts, blocks are full of prompt tokens already.
        """
        self.drafts, self._guessers = {}, {}
        self.times.use(self._threads, adapted=bool(batch.adapters))
        tight = self._tight > 0
        self._tight -= tight
        if batch.replies < len(batch.chunks) or tight or not self._cuttable:
            return batch.size
        offers = [stream.offer() for stream in streams]
        asked = [at for at, (guesser, _) in enumerate(offers) if isinstance(guesser, Forecast)]
        toll = self.drafter.seconds(len(asked)) if self.drafter is not None and asked else 0.0
        plan = choose([chances for _, chances in offers], self.times, asked, toll)
        if plan is None:
            return self.times.rounded(batch.size)
        self._price, self._plain = plan.price, plan.plain
        self._guess(streams, [guesser for guesser, _ in offers], plan.sizes)
        return plan.rows if self.drafted == sum(plan.sizes) else self.times.rounded(batch.size + self.drafted)

    @property
    def drafted(self) -> int:
        """Tokens of all drafts of this step."""
        return sum(map(len, self.drafts.values()))

    def settle(self, stream: Stream, accepted: int, counts: Counters) -> None:
        """Of this stream's draft so many tokens came true."""
        drafted, guesser = len(self.drafts[stream.id]), self._guessers[stream.id]
        counts.drafted += drafted
        counts.accepted += accepted
        stream.drafted += drafted
        stream.accepted += accepted
        guesser.settle(drafted, accepted, self._price)
        if isinstance(guesser, Forecast):
            counts.model_drafted += drafted
            counts.model_accepted += accepted
            guesser.seconds += (accepted - self._price * drafted) * self._plain

    def give_way(self) -> None:
        """Memory had no cells for what a step need not read."""
        self._tight = TIGHT

    def close(self) -> None:
        if self.drafter is not None:
            self.drafter.close()

    def _guess(self, streams: Sequence[Stream], guessers: Sequence[Guesser | None], sizes: Sequence[int]) -> None:
        asked = []
        for stream, guesser, count in zip(streams, guessers, sizes, strict=True):
            if guesser is None or not count:
                continue
            self._guessers[stream.id] = guesser
            if isinstance(guesser, Lookup | Prescribed):
                self.drafts[stream.id] = guesser.guess(count)
            else:
                asked.append((stream, count))
        if asked and self.drafter is not None:
            self.drafts |= self.drafter.guess(asked)
