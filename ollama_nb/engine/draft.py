"""Drafts by prompt lookup: where a text repeats itself, what followed before is guessed to follow again.

A guess costs nothing until it is read. So every guess is first compared with what the model says anyway, and only a
stream whose guesses come true gets drafts: tokens read in the same step as the one before them, each kept only if the
sampler, given its turn, draws that very token. Rule: pure; a draft changes when tokens come, never which.
"""

from __future__ import annotations

from collections.abc import Iterable
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
_LEVELS = 7


class Lookup:
    """The text of one stream, and the place in it that is being repeated.

    Chances are counted by how many guesses in a row came true at this place: 0, 1, 2 to 3, 4 to 7, … 32 and more.
    """

    def __init__(self, tokens: Iterable[int], most: int) -> None:
        """``most``: tokens of a draft."""
        self.most = most
        self.balance = 0.0
        """Plain steps that drafts have saved; negative: lost."""
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._place = 0
        self._run = 0
        self._hits, self._tries = [0.0] * _LEVELS, [0.0] * _LEVELS
        self._prompt = tuple(tokens)

    def feed(self, token: int) -> None:
        """The next token of the text."""
        if self._prompt:
            self._read_prompt()
        text, place = self._text, self._place
        hit = place > 0 and text[place] == token
        if place:
            level = _level(self._run)
            self._hits[level] = self._hits[level] * FADING + hit
            self._tries[level] = self._tries[level] * FADING + 1.0
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
        if not self._place or self._run == 0 or self.balance < -CREDIT - CREDIT_SHARE * len(self._text):
            return []
        rates = self._rates()
        chances, chance = [], 1.0
        for ahead in range(min(count, self.most)):
            chance *= rates[_level(self._run + ahead)]
            chances.append(chance)
        return chances

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

    def _rates(self) -> list[float]:
        """The chance of the next guess on each level; where little is known, nearly that of the level below."""
        rates, rate = [], FIRST_CHANCE
        for hits, tries in zip(self._hits, self._tries, strict=True):
            rate = (hits + TRUST * rate) / (tries + TRUST)
            rates.append(rate)
        return rates


def _level(run: int) -> int:
    return min(run.bit_length(), _LEVELS - 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """``rows`` of the step in all, ``sizes`` of the drafts, ``price`` of one drafted row in plain steps."""

    rows: int
    sizes: tuple[int, ...]
    price: float


def choose(offers: Items[Items[float]], times: RowTimes) -> Plan | None:
    """Share the rows of a step among the streams' guesses (``Lookup.chances``, one list per stream, some empty).

    None: plain steps promise more, or nobody knows yet what they cost.
    """
    replies = len(offers)
    plain = times.seconds(times.rounded(replies))
    ranked = sorted(((chance, at) for at, offer in enumerate(offers) for chance in offer), key=lambda one: -one[0])
    if plain is None or not ranked:
        return None
    best, pace = None, GAIN * replies / plain
    value = float(replies)
    taken = 0
    for rows in range(up(replies + 1, BLOCK), times.most + 1, BLOCK):
        if taken == len(ranked):
            break
        more = ranked[taken : rows - replies]
        value += sum(chance for chance, _ in more)
        taken += len(more)
        seconds = times.seconds(rows) if times.fresh(rows) else None
        if seconds is None:
            seconds = plain * (1.0 + PRICE_GUESS * (rows - replies) / replies)
        if value / seconds > pace:
            pace = value / seconds
            best = rows, taken, seconds
    if best is None:
        return None
    rows, taken, seconds = best
    sizes = [0] * replies
    for _, at in ranked[:taken]:
        sizes[at] += 1
    return Plan(rows, tuple(sizes), (seconds / plain - 1.0) * replies / taken)
