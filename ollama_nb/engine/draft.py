"""Drafts: tokens guessed ahead and read in one step, each kept only if the sampler, given its turn, draws it too.

``Lookup`` guesses by the text: where it repeats itself, what followed before is guessed to follow again. That costs
nothing until it is read, so every guess is first compared with what the model says anyway. ``Forecast`` says how far
the guesses of a draft model are to be trusted. ``choose`` gives a step's rows to the guesses that promise most.
Rule: pure; a draft changes when tokens come, never which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from ollama_nb.engine.rows import RowTimes, up

GRAM = 3
"""So many equal tokens make a place worth following."""
FIRST_CHANCE, TRUST = 0.3, 2.0
"""What a guess is thought to be worth before any came true, and how many guesses that opinion weighs."""
FADING = 0.97
GAIN = 1.05
"""Drafts must promise so many times the plain pace."""
CREDIT, CREDIT_SHARE = 3.0, 0.01
"""What drafts may lose at most, in plain steps: so many, and this share of the reply."""
BLOCK = 4
PRICE_GUESS = 0.25
"""A row more is first believed to cost this share of a step of one row; a draft then measures it."""
MODEL_CHANCE = 0.8
"""What the guess of a draft model is thought to be worth before any came true: enough to be tried."""
PRESCRIBED_CHANCE = 0.95
"""What a guess is thought to be worth of which the letters are certain."""
LONGEST_REST = 32
_LEVELS = 7


class Guesser:
    """Something that guesses for one reply, the chances of what it guesses, and what its drafts have saved.

    Chances are counted by levels, of which each holds about twice as many guesses as the one before.
    """

    def __init__(self, most: int, first: float) -> None:
        """``most``: tokens of a draft; ``first``: the chance of a guess while nothing is known."""
        self.most = most
        self.balance = 0.0
        """Plain steps that drafts have saved; negative: lost."""
        self._first = first
        self._hits, self._tries = [0.0] * _LEVELS, [0.0] * _LEVELS

    def settle(self, drafted: int, accepted: int, price: float) -> None:
        """So many tokens of a draft came true; each of its rows cost ``price`` plain steps."""
        self.balance += accepted - price * drafted

    def _note(self, level: int, hit: bool) -> None:
        self._hits[level] = self._hits[level] * FADING + hit
        self._tries[level] = self._tries[level] * FADING + 1.0

    def _chances(self, run: int, count: int, length: int) -> list[float]:
        """For each of ``count`` guesses after ``run`` true ones the chance that it and all before it come true.

        None for any of them when drafts have lost too much in a text of this length.
        """
        if self.balance < -CREDIT - CREDIT_SHARE * length:
            return []
        rates = self._rates()
        chances, chance = [], 1.0
        for ahead in range(min(count, self.most)):
            chance *= rates[_level(run + ahead)]
            chances.append(chance)
        return chances

    def _rates(self) -> list[float]:
        """The chance of the next guess on each level; where little is known, nearly that of the level below."""
        rates, rate = [], self._first
        for hits, tries in zip(self._hits, self._tries, strict=True):
            rate = (hits + TRUST * rate) / (tries + TRUST)
            rates.append(rate)
        return rates


class Lookup(Guesser):
    """The text of one stream, and the place in it that is being repeated.

    Chances are counted by how many guesses in a row came true at this place: 0, 1, 2 to 3, 4 to 7, … 32 and more.
    """

    def __init__(self, tokens: Iterable[int], most: int) -> None:
        super().__init__(most, FIRST_CHANCE)
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._place = 0
        self._run = 0
        self._prompt = tuple(tokens)

    def feed(self, token: int) -> None:
        """The next token of the text."""
        if self._prompt:
            self._read_prompt()
        text, place = self._text, self._place
        hit = place > 0 and text[place] == token
        if place:
            self._note(_level(self._run), hit)
        text.append(token)
        seen = self._index()
        if hit:
            self._place, self._run = place + 1, self._run + 1
        else:  # elsewhere, or one token was replaced by another
            self._place, self._run = seen or (place + 1 if place and self._run else 0), 0

    def guess(self, count: int) -> list[int]:
        """The tokens that may follow, ``count`` of them; none where nothing is repeated."""
        if not self._place:
            return []
        tokens = self._text[self._place : self._place + count]
        while len(tokens) < count:  # it repeats what it is just saying: so will the repetition
            tokens += tokens[: count - len(tokens)]
        return tokens

    def chances(self, count: int) -> list[float]:
        """For each of the next guesses the chance that it and all before it come true."""
        if not self._place or self._run == 0:
            return []
        return self._chances(self._run, count, len(self._text))

    def _read_prompt(self) -> None:
        for token in self._prompt:
            self._text.append(token)
            self._index()
        self._prompt = ()

    def _index(self) -> int:
        """Note where the last tokens stand; return what followed them when they stood elsewhere before (0: nowhere)."""
        text = self._text
        if len(text) < GRAM:
            return 0
        gram = tuple(text[-GRAM:])
        before = self._after.get(gram, 0)
        self._after[gram] = len(text)
        return before


class Ahead(Guesser):
    """Guesses that do not come from what the reply repeats, counted by how many were guessed before in one draft."""

    def __init__(self, most: int, first: float) -> None:
        super().__init__(most, first)
        self._length = 0

    def feed(self) -> None:
        """The text is one token longer."""
        self._length += 1

    def chances(self, count: int) -> list[float]:
        """For each of the next guesses the chance that it and all before it come true."""
        return self._chances(0, count, self._length)

    def settle(self, drafted: int, accepted: int, price: float) -> None:
        super().settle(drafted, accepted, price)
        for depth in range(min(accepted + 1, drafted)):
            self._note(_level(depth), depth < accepted)


class Forecast(Ahead):
    """How far a draft model's guesses are to be trusted for one reply."""

    def __init__(self, most: int) -> None:
        """``most``: tokens of a draft."""
        super().__init__(most, MODEL_CHANCE)
        self.seconds = 0.0
        """Time that drafts have saved, less the time in which the draft model read this text; negative: lost."""


class Prescribed(Ahead):
    """What a format leaves no choice about: the letters are certain, only their cut into tokens is a guess."""

    def __init__(self, most: int) -> None:
        """``most``: tokens of a draft."""
        super().__init__(most, PRESCRIBED_CHANCE)
        self.tokens: list[int] = []
        """What comes next; none where there is a choice."""

    def guess(self, count: int) -> list[int]:
        """The first ``count`` of them."""
        return self.tokens[:count]

    def chances(self, count: int) -> list[float]:
        return super().chances(min(count, len(self.tokens)))


class Habit:
    """Whether a draft model is asked at all: after a reply that it slowed down some go without, each time more."""

    def __init__(self) -> None:
        self._rest = self._longer = 0

    def asks(self) -> bool:
        """A reply begins: whether the model is asked for drafts."""
        resting = self._rest > 0
        self._rest -= resting
        return not resting

    def learn(self, seconds: float) -> None:
        """A reply has ended for which drafts saved so much time."""
        self._longer = min(2 * self._longer + 1, LONGEST_REST) if seconds < 0 else 0
        self._rest = self._longer


def _level(run: int) -> int:
    return min(run.bit_length(), _LEVELS - 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """``rows`` of the step in all, ``sizes`` of the drafts, ``price`` of one drafted row in plain steps.

    A plain step takes ``plain`` seconds for each reply.
    """

    rows: int
    sizes: tuple[int, ...]
    price: float
    plain: float


def choose(offers: Items[Items[float]], times: RowTimes, asked: Collection[int] = (), toll: float = 0.0) -> Plan | None:
    """Share the rows of a step among the streams' guesses (chances, one list per stream, some empty).

    ``asked``: places of the streams whose guesses a draft model makes first, ``toll`` seconds each round of them.
    None: plain steps promise more, or nobody knows yet what they cost.
    """
    replies = len(offers)
    plain = times.seconds(times.rounded(replies))
    ranked = sorted(((chance, at) for at, offer in enumerate(offers) for chance in offer), key=lambda one: -one[0])
    if plain is None or not ranked:
        return None
    best: Plan | None = None
    pace = GAIN * replies / plain
    value = float(replies)
    sizes, taken = [0] * replies, 0
    for rows in range(up(replies + 1, BLOCK), times.most + 1, BLOCK):
        if taken == len(ranked):
            break
        more = ranked[taken : rows - replies]
        value += sum(chance for chance, _ in more)
        taken += len(more)
        for _, at in more:
            sizes[at] += 1
        rounds = max((sizes[at] for at in asked), default=0)
        seconds = times.seconds(rows) if times.fresh(rows) else None
        if seconds is None:
            seconds = plain * (1.0 + PRICE_GUESS * (rows - replies) / replies)
        seconds += rounds * toll
        if value / seconds > pace:
            pace = value / seconds
            best = Plan(rows, tuple(sizes), (seconds / plain - 1.0) * replies / taken, plain / replies)
    return best
