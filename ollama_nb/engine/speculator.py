"""What a step reads beyond what it must: drafts, and rows that only round it up."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.engine.draft import choose
from ollama_nb.engine.rows import RowTimes
from ollama_nb.engine.scheduler import Batch
from ollama_nb.engine.stream import Stream

TIGHT = 64
"""Steps without drafts and padding, after memory had no cells for them."""


class Speculator:
    """``times`` says what steps cost, ``drafts`` holds the guesses of the step that runs, by request."""

    def __init__(self, n_outputs: int, *, cuttable: bool) -> None:
        """``n_outputs``: rows with logits that a step may have; memory that cannot be cut takes no drafts."""
        self.times = RowTimes(n_outputs)
        self.drafts: dict[int, list[int]] = {}
        self._price = 0.0
        self._cuttable = cuttable
        self._tight = 0

    def plan(self, batch: Batch, streams: Sequence[Stream]) -> int:
        """Choose drafts for the replies of a batch (``streams``, in its order); return the rows of the whole step.

        Only a batch of replies has room: beside prompts, blocks are full of prompt tokens already.
        """
        self.drafts = {}
        tight = self._tight > 0
        self._tight -= tight
        if batch.replies < len(batch.chunks) or tight or not self._cuttable:
            return batch.size
        plan = choose([stream.offer() for stream in streams], self.times)
        if plan is None:
            return self.times.rounded(batch.size)
        self._price = plan.price
        for stream, count in zip(streams, plan.sizes, strict=True):
            if count and stream.lookup is not None:
                self.drafts[stream.id] = stream.lookup.guess(count)
        return plan.rows

    @property
    def drafted(self) -> int:
        """Tokens of all drafts of this step."""
        return sum(map(len, self.drafts.values()))

    def settle(self, stream: Stream, accepted: int) -> None:
        """Of this stream's draft so many tokens came true."""
        draft = self.drafts[stream.id]
        if stream.lookup is not None:
            stream.lookup.balance += accepted - self._price * len(draft)

    def give_way(self) -> None:
        """Memory had no cells for what a step need not read."""
        self._tight = TIGHT
