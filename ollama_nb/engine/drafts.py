"""Speculative decoding, the pure half: draft sources, the measured time of steps, and how many rows a step should have.

A draft is a few tokens that are expected to follow a reply. They are decoded in one step together with the reply's
next token; each is kept only if the sampler draws the same token (it is accepted), so drafts change the speed and never
the text. Three sources make drafts:

- ``PromptLookup``: what followed the same tokens earlier in the prompt or the reply.
- ``GrammarSource``: text that the constraint leaves no choice about.
- ``DraftModelSource``: a small model beside the large one (``speculation.DraftModel``).

Each source tracks its acceptance rate. ``plan_drafts`` gives the rows of a step to the drafts most likely to be
accepted, where ``StepTimes`` shows that more rows are worth their time.

``StepTimes`` also decides on batch padding. Matrix kernels process rows in blocks and the remaining rows one by one, so
that seven rows can take longer than eight. Whether they do depends on the model, the processor and the thread count, so
it is measured while serving: an unknown number of rows is tried for two steps, and tried again later, less and less
often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# Acceptance rates

GRAM = 3  # tokens; a match of this length is followed by prompt lookup
LOOKUP_PRIOR = 0.3  # acceptance rate of a prompt lookup before anything is measured
MODEL_PRIOR = 0.8  # the same for a token of a draft model: high enough to be tried
GRAMMAR_PRIOR = 0.95  # the same for a token whose text the grammar dictates
PRIOR_WEIGHT = 2.0  # draft tokens that the prior counts for
DECAY = 0.97  # of older observations, with each new one
LEVELS = 7  # 0, 1, 2-3, 4-7, ... 32 and more; see DraftSource

# The choice of a step's size

MIN_SPEEDUP = 1.05  # expected tokens per second over those of a plain step
LOSS_TOKENS, LOSS_SHARE = 3.0, 0.01  # plain steps that drafts may lose in one reply: fixed, and per token of its text
DRAFT_BLOCK = 4  # rows; step sizes with drafts are multiples of this
ROW_COST_PRIOR = 0.25  # of a one-row step: assumed time of each further row until it is measured
MAX_SKIPPED = 32  # replies in a row that may go without the draft model after it slowed replies down

# Step times

PADDING_BLOCKS = 4, 8  # rows; a step is padded to a multiple of one of these or not at all
MIN_SAMPLES = 2  # steps that measure a size (the faster one counts: the first of a size also allocates buffers)
FIRST_LIFETIME, MAX_LIFETIME = 32, 512
"""Steps after which an unused measurement expires: contexts grow, and it may have been taken at a busy moment. The
lifetime of a size doubles each time, up to the second number."""
MIN_GAIN = 0.97  # more rows must take less than this share of the time of fewer


class DraftSource:
    """Base of the draft sources of one reply: acceptance rates, and how much time the drafts have saved.

    Acceptance is counted on ``LEVELS`` levels, each of which covers about twice as many draft tokens as the one before.
    """

    def __init__(self, max_tokens: int, prior: float) -> None:
        """``max_tokens``: length of a draft; ``prior``: acceptance rate while nothing is measured."""
        self.max_tokens = max_tokens
        self.balance = 0.0
        """Plain steps that drafts have saved in this reply; negative: lost."""
        self._prior = prior
        self._accepted, self._drafted = [0.0] * LEVELS, [0.0] * LEVELS

    def record(self, drafted: int, accepted: int, row_cost: float) -> None:
        """Record a verified draft, of which each row cost ``row_cost`` plain steps."""
        self.balance += accepted - row_cost * drafted

    def _count(self, level: int, accepted: bool) -> None:
        self._accepted[level] = self._accepted[level] * DECAY + accepted
        self._drafted[level] = self._drafted[level] * DECAY + 1.0

    def _probabilities(self, run: int, count: int, length: int) -> list[float]:
        """Return for each of ``count`` tokens the probability that it and all before it are accepted.

        ``run`` tokens were accepted before them. The list is empty when drafts have lost too much time in a text of
        ``length`` tokens.
        """
        if self.balance < -LOSS_TOKENS - LOSS_SHARE * length:
            return []
        rates = self._rates()
        probabilities, probability = [], 1.0
        for ahead in range(min(count, self.max_tokens)):
            probability *= rates[_level(run + ahead)]
            probabilities.append(probability)
        return probabilities

    def _rates(self) -> list[float]:
        """Acceptance rate on each level; the rate of the level below is its prior."""
        rates, rate = [], self._prior
        for accepted, drafted in zip(self._accepted, self._drafted, strict=True):
            rate = (accepted + PRIOR_WEIGHT * rate) / (drafted + PRIOR_WEIGHT)
            rates.append(rate)
        return rates


class PromptLookup(DraftSource):
    """Drafts from the text itself: where its last tokens occurred before, the same continuation is expected.

    Every token of the reply is compared with the expected one, drafted or not, so acceptance rates cost nothing to
    measure. The level is the number of expected tokens that came true in a row.
    """

    def __init__(self, tokens: Iterable[int], max_tokens: int) -> None:
        super().__init__(max_tokens, LOOKUP_PRIOR)
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._place = 0
        """Index into the text of the expected token; 0: nothing is expected."""
        self._run = 0
        self._prompt = tuple(tokens)

    def append(self, token: int) -> None:
        """Add the next token of the text."""
        if self._prompt:
            self._index_prompt()
        text, place = self._text, self._place
        hit = place > 0 and text[place] == token
        if place:
            self._count(_level(self._run), hit)
        text.append(token)
        earlier = self._index()
        if hit:
            self._place, self._run = place + 1, self._run + 1
        else:  # follow the newer match, or else assume that one token was replaced by another
            self._place, self._run = earlier or (place + 1 if place and self._run else 0), 0

    def draft(self, count: int) -> list[int]:
        """Return the next ``count`` expected tokens; an empty list where nothing is repeated."""
        if not self._place:
            return []
        tokens = self._text[self._place : self._place + count]
        while len(tokens) < count:  # the match reaches the end of the text: a loop, which continues
            tokens += tokens[: count - len(tokens)]
        return tokens

    def probabilities(self, count: int) -> list[float]:
        """Return for each of the next ``count`` tokens the probability that it and all before it are accepted."""
        if not self._place or self._run == 0:
            return []
        return self._probabilities(self._run, count, len(self._text))

    def _index_prompt(self) -> None:
        for token in self._prompt:
            self._text.append(token)
            self._index()
        self._prompt = ()

    def _index(self) -> int:
        """Index the last ``GRAM`` tokens; return the index of what followed their earlier occurrence, 0 without one."""
        text = self._text
        if len(text) < GRAM:
            return 0
        gram = tuple(text[-GRAM:])
        before = self._after.get(gram, 0)
        self._after[gram] = len(text)
        return before


class IndependentSource(DraftSource):
    """Base of sources that do not follow earlier text. The level is the position within a draft."""

    def __init__(self, max_tokens: int, prior: float) -> None:
        super().__init__(max_tokens, prior)
        self._length = 0

    def append(self) -> None:
        """Note that the text is one token longer."""
        self._length += 1

    def probabilities(self, count: int) -> list[float]:
        """Return for each of the next ``count`` tokens the probability that it and all before it are accepted."""
        return self._probabilities(0, count, self._length)

    def record(self, drafted: int, accepted: int, row_cost: float) -> None:
        super().record(drafted, accepted, row_cost)
        for position in range(min(accepted + 1, drafted)):
            self._count(_level(position), position < accepted)


class DraftModelSource(IndependentSource):
    """Acceptance rate of a draft model in one reply; ``speculation.DraftModel`` makes the drafts."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__(max_tokens, MODEL_PRIOR)
        self.seconds = 0.0
        """Time that drafts have saved, less the time for reading this text with the draft model; negative: lost."""


class GrammarSource(IndependentSource):
    """Drafts of text that the constraint dictates: the text is certain, only its split into tokens is not."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__(max_tokens, GRAMMAR_PRIOR)
        self.tokens: list[int] = []
        """The dictated tokens; empty where the constraint leaves a choice."""

    def draft(self, count: int) -> list[int]:
        """Return the first ``count`` dictated tokens."""
        return self.tokens[:count]

    def probabilities(self, count: int) -> list[float]:
        return super().probabilities(min(count, len(self.tokens)))


class DraftModelBackoff:
    """Exponential back-off of the draft model: after a reply that it slowed down, some replies go without it."""

    def __init__(self) -> None:
        self._skip = self._length = 0

    def allows(self) -> bool:
        """Return whether the draft model serves the reply that begins now."""
        allowed = self._skip == 0
        self._skip -= not allowed
        return allowed

    def record(self, seconds: float) -> None:
        """Record the time that drafts saved in a finished reply (negative: lost)."""
        self._length = min(2 * self._length + 1, MAX_SKIPPED) if seconds < 0 else 0
        self._skip = self._length


def _level(run: int) -> int:
    return min(run.bit_length(), LEVELS - 1)


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """The drafts of one step.

    ``rows``: of the whole step; ``sizes``: tokens of each reply's draft; ``row_cost``: cost of one draft row in plain
    steps; ``plain_seconds``: duration of a plain step divided by its replies.
    """

    rows: int
    sizes: tuple[int, ...]
    row_cost: float
    plain_seconds: float


def plan_drafts(
    offers: Sequence[Sequence[float]],
    times: StepTimes,
    from_model: Collection[int] = (),
    round_seconds: float = 0.0,
) -> DraftPlan | None:
    """Distribute the rows of a step over the drafts that are most likely to be accepted.

    ``offers``: one list of acceptance probabilities per reply, some of them empty. ``from_model``: indices of the
    replies whose drafts a draft model makes first, in rounds of one token each that take ``round_seconds``.
    Return None when plain steps are expected to be as fast, or their duration is not known yet.
    """
    replies = len(offers)
    plain = times.seconds(times.padded(replies))
    ranked = sorted(
        ((probability, index) for index, offer in enumerate(offers) for probability in offer), key=lambda one: -one[0]
    )
    if plain is None or not ranked:
        return None
    best: DraftPlan | None = None
    rate = MIN_SPEEDUP * replies / plain
    expected = float(replies)  # tokens of the step
    sizes, taken = [0] * replies, 0
    for rows in range(round_up(replies + 1, DRAFT_BLOCK), times.max_rows + 1, DRAFT_BLOCK):
        if taken == len(ranked):
            break
        more = ranked[taken : rows - replies]
        expected += sum(probability for probability, _ in more)
        taken += len(more)
        for _, index in more:
            sizes[index] += 1
        rounds = max((sizes[index] for index in from_model), default=0)
        seconds = times.seconds(rows) if times.is_current(rows) else None
        if seconds is None:
            seconds = plain * (1.0 + ROW_COST_PRIOR * (rows - replies) / replies)
        seconds += rounds * round_seconds
        if expected / seconds > rate:
            rate = expected / seconds
            best = DraftPlan(rows, tuple(sizes), (seconds / plain - 1.0) * replies / taken, plain / replies)
    return best


class _Measurement:
    """The latest durations of steps with one number of rows."""

    __slots__ = ("last", "lifetime", "recent")

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=5)
        self.last = 0
        self.lifetime = FIRST_LIFETIME

    @property
    def seconds(self) -> float:
        """The median; of two, the faster."""
        return sorted(self.recent)[(len(self.recent) - 1) // 2]


class StepTimes:
    """Duration of a step by its number of rows (each with logits), separately for every thread count."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._tables: dict[tuple[int, bool], dict[int, _Measurement]] = {}
        self._table: dict[int, _Measurement] = {}
        self._clock = 0
        self.select(1)

    def select(self, threads: int, *, adapted: bool = False) -> None:
        """Use the table for ``threads`` threads, with LoRA adapters (``adapted``) or without."""
        self._table = self._tables.setdefault((threads, adapted), {})

    def record(self, rows: int, seconds: float) -> None:
        """Record the duration of a step with ``rows`` rows."""
        self._clock += 1
        known = self._table.setdefault(rows, _Measurement())
        if known.recent and self._clock - known.last > known.lifetime:
            known.recent.clear()
            known.lifetime = min(2 * known.lifetime, MAX_LIFETIME)
        known.recent.append(seconds)
        known.last = self._clock

    def seconds(self, rows: int) -> float | None:
        """Return the duration that was measured last; None: not measured yet."""
        known = self._table.get(rows)
        return known.seconds if known else None

    def is_current(self, rows: int) -> bool:
        """Return whether the duration was measured often enough and has not expired."""
        known = self._table.get(rows)
        return known is not None and len(known.recent) >= MIN_SAMPLES and self._clock - known.last < known.lifetime

    def padded(self, rows: int) -> int:
        """Return the number of rows to decode for ``rows`` rows: more only where that is measured to be faster."""
        if not 1 < rows < self.max_rows:
            return rows
        choices = sorted({rows, *(round_up(rows, block) for block in PADDING_BLOCKS)})
        best, least = rows, float("inf")
        for choice in choices:
            if choice > self.max_rows:
                break
            if not self.is_current(choice):
                return choice
            seconds = self._table[choice].seconds
            if seconds < least * MIN_GAIN:
                best, least = choice, seconds
        return best


def round_up(count: int, block: int) -> int:
    """Return the smallest multiple of ``block`` that is at least ``count``."""
    return -(-count // block) * block
