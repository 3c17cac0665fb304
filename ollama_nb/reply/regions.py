"""Replies whose parts stand between markers: a small machine that walks from region to region.

Rule: each character is looked at once, no text is lost, and how the text was cut into pieces changes nothing. Only
markers vanish, and the white space beside those that say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.reply.arguments import ObjectEnd
from ollama_nb.reply.markers import Markers
from ollama_nb.reply.output import MalformedCall, Output, ParsedCall

THINKING, CONTENT, HIDDEN = "thinking", "content", "hidden"


class Exit(NamedTuple):
    """Where a marker leads; whether the white space before and after it goes with it; whether it ends a call's text
    or only begins what comes next."""

    to: str
    before: bool = True
    after: bool = True
    closes: bool = True


class RegionStep(NamedTuple):
    """A region has read up to ``at``. ``to`` None: it needs more text. ``again`` is text to be read once more.

    ``space`` is the white space in front of ``marker`` that goes with it, unless the marker turns out to be text.
    """

    at: int
    to: str | None = None
    eat_space: bool = False
    marker: str = ""
    space: str = ""
    again: str = ""


class Region(Protocol):
    to_answer: str
    """What the model would have to write here before its answer can begin."""

    def enter(self, step: RegionStep) -> None: ...

    def read(self, text: str, at: int, final: bool, out: Output) -> RegionStep: ...


class RegionParser:
    """Reads one reply. ``start`` is the region in which it begins."""

    def __init__(self, regions: Mapping[str, Region], start: str) -> None:
        self._regions = regions
        self._region = regions[start]
        self._out = Output()
        self._rest = ""
        self._entered = self._read = 0
        self.answer_at: int | None = None
        """Where in the whole text the answer's region begins; None as long as nothing was answered."""

    @property
    def to_answer(self) -> str:
        """What is missing for an answer to begin where the text now ends."""
        return self._region.to_answer

    def feed(self, text: str) -> list[Delta | ToolCalls]:
        """The events that ``text`` makes certain; none when all of it must be held back."""
        self._walk(self._rest + text, final=False)
        return self._out.take()

    def end(self) -> list[Delta | ToolCalls]:
        """No more text comes: everything held back comes out."""
        self._walk(self._rest, final=True)
        return self._out.take()

    def _walk(self, text: str, *, final: bool) -> None:
        at = 0
        while True:
            step = self._region.read(text, at, final, self._out)
            if self.answer_at is None and self._out.has_content:
                self.answer_at = self._entered
            self._read += step.at - at - len(step.again)
            if step.to is None:
                break
            text, at = (step.again + text[step.at :], 0) if step.again else (text, step.at)
            self._region, self._entered = self._regions[step.to], self._read
            if isinstance(self._region, CallRegion):  # what cannot be read as a call is an answer from its marker on
                self._entered -= len(step.space) + len(step.marker)
            self._region.enter(step)
        self._rest = text[step.at :]


class TextRegion:
    """Running text up to the first of ``exits``, given out as it comes.

    White space at its end is held back until it is known whether it stands before a marker that takes it along.
    """

    def __init__(self, kind: str, exits: Mapping[str, Exit], to_answer: str = "") -> None:
        self._kind, self._exits, self.to_answer = kind, exits, to_answer
        self._markers = Markers(exits)
        self._holds = any(exit.before for exit in exits.values())
        self._space: list[str] = []
        self._eat = False

    def enter(self, step: RegionStep) -> None:
        self._eat, self._space = step.eat_space, []

    def read(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        start, marker = self._markers.search(text, at, final=final)
        self._say(text[at:start], out)
        if marker is None:
            if final:
                self._flush(out)
            return RegionStep(start)
        exit = self._exits[marker]
        if not exit.before:
            self._flush(out)
        return RegionStep(start + len(marker), exit.to, exit.after, marker, "".join(self._space))

    def _say(self, text: str, out: Output) -> None:
        if self._eat:
            text = text.lstrip()
            self._eat = not text
        if not self._holds:
            self._give(text, out)
            return
        body = text.rstrip()
        if body:
            self._flush(out)
            self._give(body, out)
        self._space.append(text[len(body) :])

    def _flush(self, out: Output) -> None:
        self._give("".join(self._space), out)
        self._space = []

    def _give(self, text: str, out: Output) -> None:
        if self._kind == CONTENT:
            out.content(text)
        elif self._kind == THINKING:
            out.thinking(text)


class ForkRegion:
    """A place where one of ``exits`` may stand; if none does, ``otherwise`` follows.

    ``space``: what becomes of white space in front: ``kept`` if no marker follows, ``dropped``, or ``none`` is allowed.
    """

    def __init__(self, exits: Mapping[str, Exit], otherwise: str, space: str = "kept", to_answer: str = "") -> None:
        self._exits, self._otherwise, self.to_answer = exits, otherwise, to_answer
        self._markers = sorted(exits, key=len, reverse=True)
        self._allows_space, self._drops = space != "none", space == "dropped"
        self._eat = False
        self._space: list[str] = []

    def enter(self, step: RegionStep) -> None:
        self._eat, self._space = step.eat_space, []

    def read(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        if self._allows_space:
            start, at = at, _end_of_space(text, at)
            self._space.append(text[start:at])
        if not final and any(self._unfinished(marker, text, at) for marker in self._markers):
            return RegionStep(at)
        for marker in self._markers:
            if text.startswith(marker, at):
                return RegionStep(at + len(marker), self._exits[marker].to, self._exits[marker].after, marker)
        if at == len(text) and not final:
            return RegionStep(at)
        dropped = self._drops or self._eat
        return RegionStep(at, self._otherwise, eat_space=dropped, again="" if dropped else "".join(self._space))

    @staticmethod
    def _unfinished(marker: str, text: str, at: int) -> bool:
        return 0 < len(text) - at < len(marker) and marker.startswith(text[at:])


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


_SPACE = re.compile(r"\s*")

CallParser = Callable[[str, bool], Sequence[str | ParsedCall | MalformedCall]]
"""Reads what stood between a call's markers; the flag tells whether the closing marker was there."""


class CallRegion:
    """The text of calls, up to one of ``exits``; nothing is given out before it is complete.

    ``whole``: the opening marker is part of the call. ``by_object``: the call ends with its first JSON object.
    """

    def __init__(
        self, reading: CallParser, exits: Mapping[str, Exit], *, whole: bool = False, by_object: str | None = None
    ) -> None:
        self._reading, self._exits, self._whole, self._by_object = reading, exits, whole, by_object
        self._markers = Markers({*exits, "{"} if by_object else exits)
        self._object: ObjectEnd | None = None
        self._opening = ""
        self._body: list[str] = []
        self.to_answer = ""

    def enter(self, step: RegionStep) -> None:
        self._opening, self._body, self._object = step.space + step.marker, [], None
        if self._whole:
            self._opening, self._body = step.space, [step.marker]
            self._object = ObjectEnd() if self._by_object and step.marker == "{" else None

    def read(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        if self._object is not None:
            return self._in_object(text, at, final, out)
        start, marker = self._markers.search(text, at)
        self._body.append(text[at:start])
        if marker is None and not final:
            return RegionStep(start)
        if marker is None:
            self._unclosed(text[start:], out)
            return RegionStep(len(text))
        if marker not in self._exits:
            self._object = ObjectEnd()
            self._body.append(marker)
            return self._in_object(text, start + 1, final, out)
        exit = self._exits[marker]
        body = "".join(self._body)
        repeated = marker == self._opening.lstrip() and not body.strip()
        read = repeated or self._finish(body, marker if exit.closes else "", out)
        return RegionStep(start + len(marker), exit.to, exit.after and read, marker)

    def _in_object(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        assert self._object is not None and self._by_object is not None
        end = self._object.find(text, at)
        self._body.append(text[at:] if end < 0 else text[at:end])
        if end >= 0:
            self._finish("".join(self._body), "", out, closed=True)
            return RegionStep(end, self._by_object)
        if final:
            self._unclosed("", out)
        return RegionStep(len(text))

    def _unclosed(self, partial: str, out: Output) -> None:
        """The reply ended inside the call: perhaps only its closing marker, or a part of it, is missing."""
        body = "".join(self._body)
        read = self._reading(body, False)
        if partial and any(isinstance(item, MalformedCall) for item in read):
            body, partial = body + partial, ""
        self._finish(body, partial, out, closed=False)

    def _finish(self, body: str, closing: str, out: Output, *, closed: bool | None = None) -> bool:
        """Give out what the text says; False when it says no call."""
        items = self._reading(body, bool(closing) if closed is None else closed)
        if items and not any(isinstance(item, ParsedCall) for item in items):
            why = next((item.why for item in items if isinstance(item, MalformedCall)), "")
            out.malformed(self._opening + body + closing, why)
            return False
        for item in items:
            out.add(item)
        return True


class HeaderRegion:
    """What stands between a message's start and its text, up to ``marker``; ``route`` reads it.

    ``route`` gives the region that follows and what was no header. ``plausible`` tells, for the beginning of a header,
    whether it may still become one: if not, it is content and ``otherwise`` follows.
    """

    LONGEST = 400

    def __init__(
        self,
        marker: str,
        route: Callable[[str], tuple[str, str]],
        plausible: Callable[[str], bool],
        otherwise: str,
        to_answer: str,
    ) -> None:
        self._marker, self._route, self._plausible, self._otherwise = marker, route, plausible, otherwise
        self._markers = Markers([marker])
        self.to_answer = to_answer

    def enter(self, step: RegionStep) -> None:
        pass

    def read(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        start, marker = self._markers.search(text, at, final=final)
        if not self._plausible(text[at : min(start, at + self.LONGEST)]) or start - at > self.LONGEST:
            return RegionStep(at, self._otherwise)
        if marker is None:
            return RegionStep(at, self._otherwise) if final and at < len(text) else RegionStep(at)
        to, stray = self._route(text[at:start])
        out.content(stray)
        return RegionStep(start + len(marker), to)
