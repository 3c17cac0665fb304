"""A draft model: small, beside a large one, and asked what that will say next.

Its memory follows the large model's sequences, place by place: before it guesses it forgets what was not said after
all, and reads what was said meanwhile. Rule: whatever fails here costs guesses, never a reply.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items

from ollama_nb.engine.draft import PRICE_GUESS
from ollama_nb.engine.filling import put
from ollama_nb.engine.llama import Context, Decoded
from ollama_nb.engine.slots import MIN_SHARED, common_prefix
from ollama_nb.engine.stream import Stream

EASE = 0.2
"""Weight of the newest time in the mean."""
USUAL = 2
"""Tokens that a sequence leaves unread from one draft to the next: the last guess, and what was drawn after it."""


class Drafter:
    """``context`` has a place for each of the large model's sequences and computes on ``n_threads`` at most.

    ``n_vocab``: tokens that the large model knows.
    """

    def __init__(self, context: Context, n_vocab: int, n_threads: int) -> None:
        self.context = context
        self._n_threads = n_threads
        self._n_vocab = n_vocab
        self._held: list[list[int]] = [[] for _ in range(context.n_seq)]
        self._seconds = {1: context.time_one()}

    def seconds(self, replies: int) -> float:
        """What one more guess for each of so many replies takes."""
        known = self._seconds.get(replies)
        return self._seconds[1] * (1.0 + PRICE_GUESS * (replies - 1)) if known is None else known

    def use(self, threads: int) -> None:
        """Compute on as many threads as the large model does, if it can use them."""
        self.context.set_threads(min(threads, self._n_threads))

    def guess(self, wants: Items[tuple[Stream, int]]) -> dict[int, list[int]]:
        """Up to so many tokens for each stream, by request; none yet for one whose text must still be read."""
        context, drafts = self.context, dict[int, list[int]]()
        context.rearm()
        active = self._read(wants)
        while active:
            rows = context.logits()[: len(active)].argmax(axis=1).tolist()
            going = []
            for (stream, count), token in zip(active, rows, strict=True):
                if token >= self._n_vocab:
                    continue
                draft = drafts.setdefault(stream.id, [])
                draft.append(token)
                if len(draft) < count and token not in context.model.eog:
                    going.append((stream, count))
            active = going
            if active and not self._extend([(stream.seq.slot, drafts[stream.id][-1]) for stream, _ in active]):
                break
        return drafts

    def close(self) -> None:
        self.context.close()
        self.context.model.close()

    def _read(self, wants: Items[tuple[Stream, int]]) -> list[tuple[Stream, int]]:
        """Read what is new of each text, as much as a batch holds; return those that are read to their end."""
        room, count = self.context.n_batch, 0
        ready, begun = [], time.perf_counter()
        read: list[tuple[Stream, int]] = []
        for stream, wanted in wants:
            start = self._align(stream)
            tokens = stream.seq.tokens[start : start + room - count]
            whole = start + len(tokens) == len(stream.seq.tokens)
            self._fill(count, stream.seq.slot, start, tokens, output=whole)
            count += len(tokens)
            read.append((stream, len(tokens)))
            if whole:
                ready.append((stream, wanted))
            if count == room:
                break
        if not self._decode(count, [stream.seq.slot for stream, _ in read]):
            return []
        self._bill(read, time.perf_counter() - begun)
        return ready

    def _align(self, stream: Stream) -> int:
        """Make memory hold nothing but a beginning of the stream's text, a long one if any place has it; its length."""
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
        """Let the slot begin with what another one holds of this text, if that is worth it."""
        lengths = [0 if at == slot else common_prefix(held, text) for at, held in enumerate(self._held)]
        count = max(lengths)
        if count >= MIN_SHARED:
            self.context.cut(slot, 0)
            self._held[slot] = text[:count] if self.context.share(lengths.index(count), slot, count) else []

    def _extend(self, guesses: Items[tuple[int, int]]) -> bool:
        """Read one more guess for each slot."""
        begun = time.perf_counter()
        for row, (slot, token) in enumerate(guesses):
            self._fill(row, slot, len(self._held[slot]), [token], output=True)
        if not self._decode(len(guesses), [slot for slot, _ in guesses]):
            return False
        self._learn(len(guesses), time.perf_counter() - begun)
        return True

    def _fill(self, row: int, slot: int, start: int, tokens: list[int], *, output: bool) -> None:
        put(self.context, row, slot, start, tokens, output=output)
        self._held[slot] += tokens

    def _decode(self, count: int, slots: Items[int]) -> bool:
        """False: it was not done, and what was to be read is forgotten; where memory was full, everything is."""
        status = self.context.decode(count)
        if status is Decoded.DONE:
            return True
        if status is not Decoded.ABORTED:
            self.context.clear()
            slots = range(len(self._held))
        for slot in slots:
            self.context.cut(slot, 0)
            self._held[slot] = []
        return False

    def _bill(self, read: Items[tuple[Stream, int]], seconds: float) -> None:
        """Those whose texts were long pay for what this took longer than usual."""
        long = [(stream, count) for stream, count in read if count > USUAL]
        if not long:
            self._learn(len(read), seconds)
            return
        beyond, total = max(0.0, seconds - self.seconds(len(read))), sum(count for _, count in long)
        for stream, count in long:
            if stream.forecast is not None:
                stream.forecast.seconds -= beyond * count / total

    def _learn(self, replies: int, seconds: float) -> None:
        known = self._seconds.get(replies, seconds)
        self._seconds[replies] = known + EASE * (seconds - known)
