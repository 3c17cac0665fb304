"""A parser for replies whose parts are delimited by markers: a state machine, configured by each model family.

Theory of operation. A reply is a sequence of regions, such as thinking, content or a tool call. Each region is a state:
it consumes text up to one of its markers, adds what it found to the output, and names the next region. A family
describes its format as a mapping from names to regions, and RegionParser runs it.

* ``TextRegion`` is running text, streamed as it arrives.
* ``ForkRegion`` is a position at which one of several markers may follow.
* ``CallRegion`` is the text of tool calls, parsed once it is complete.
* ``HeaderRegion`` is a message header that decides what the message is.

Each character is examined once, and the events do not depend on how the text is split into pieces. No text is lost:
only markers are dropped, with the adjacent white space where an ``Exit`` asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from ollama_nb.api.events import ParsedEvent
from ollama_nb.reply.argument_stream import ArgumentStream, NameOf, quoted_name
from ollama_nb.reply.arguments import ObjectEnd
from ollama_nb.reply.markers import Markers
from ollama_nb.reply.output import MalformedCall, Output, ParsedCall

THINKING, CONTENT, HIDDEN = "thinking", "content", "hidden"


class Exit(NamedTuple):
    """What follows a marker.

    ``to`` is the next region. ``before`` and ``after``: the white space on that side is dropped with the marker.
    ``closes``: the marker ends the text of a call; otherwise it only begins the next region.
    """

    to: str
    before: bool = True
    after: bool = True
    closes: bool = True


class RegionStep(NamedTuple):
    """The result of one step of a region.

    The region consumed the text up to ``at``. ``to`` is the next region, None if this one needs more text.
    ``eat_space`` drops the white space that follows. ``unread`` is consumed text that the next region gets first.

    ``space`` is the white space before ``marker`` that is dropped with it. It is restored with the marker if that turns
    out to be content.
    """

    at: int
    to: str | None = None
    eat_space: bool = False
    marker: str = ""
    space: str = ""
    unread: str = ""


class Region(Protocol):
    """One state of the parser."""

    answer_prefix: str
    """What a model has to write here before its answer can begin; used to continue a reply in another request."""

    def enter(self, step: RegionStep) -> None:
        """Reset the region; ``step`` led to it."""

    def consume(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        """Consume ``text`` from ``at`` on and add it to ``out``. ``final``: no more text follows."""


class RegionParser:
    """Parses one reply. ``start`` is the region in which the reply begins."""

    def __init__(self, regions: Mapping[str, Region], start: str) -> None:
        self._regions = regions
        self._region = regions[start]
        self._out = Output()
        self._rest = ""
        self._entered = self._consumed = 0
        self._unit = (0, self._region.answer_prefix)
        self.answer_start: int | None = None
        """The offset in the reply at which the answer's region begins, None while there is no answer."""
        self.call_start: tuple[int, str] | None = None
        """Where a call may stand instead of the answer or call that has begun: the offset in the reply, and the
        ``answer_prefix`` there. None while neither has begun. Headers of messages come after this place."""

    def report_arguments(self) -> None:
        """From now on, report the arguments of calls while they are written, as ToolCallDelta events."""
        self._out.detailed = True

    @property
    def answer_prefix(self) -> str:
        """The text to append to the reply so far for an answer to begin there."""
        return self._region.answer_prefix

    @property
    def thinking_end(self) -> str:
        """The text to append to the reply so far to end its thinking; empty if it is not thinking now."""
        return self._region.thinking_end if isinstance(self._region, TextRegion) else ""

    def feed(self, text: str) -> list[ParsedEvent]:
        """Parse the next piece and return the events that are now certain."""
        self._run(self._rest + text, final=False)
        return self._out.take()

    def end(self) -> list[ParsedEvent]:
        """Return the events for all text that is still held back."""
        self._run(self._rest, final=True)
        return self._out.take()

    def _run(self, text: str, *, final: bool) -> None:
        at = 0
        while True:
            step = self._region.consume(text, at, final, self._out)
            if self.answer_start is None and self._out.has_content:
                self.answer_start = self._entered
                self.call_start = self.call_start or self._unit
            self._consumed += step.at - at - len(step.unread)
            if step.to is None:
                break
            text, at = (step.unread + text[step.at :], 0) if step.unread else (text, step.at)
            before, self._region, self._entered = self._region, self._regions[step.to], self._consumed
            self._note_unit(before, step)
            if isinstance(self._region, CallRegion):  # an unparsable call is an answer, marker included
                self._entered -= len(step.space) + len(step.marker)
            self._region.enter(step)
        self._rest = text[step.at :]

    def _note_unit(self, before: Region, step: RegionStep) -> None:
        """Keep the place before the markers and headers that lead to the current region."""
        is_header = isinstance(before, HeaderRegion)
        if isinstance(self._region, CallRegion):
            if not is_header and not isinstance(before, ForkRegion):
                self._unit = (self._consumed - len(step.marker), before.answer_prefix)
            self.call_start = self.call_start or self._unit
        elif not is_header and not (isinstance(before, ForkRegion) and isinstance(self._region, TextRegion)):
            self._unit = (self._consumed, self._region.answer_prefix)


class TextRegion:
    """Running text up to the first marker of ``exits``. ``kind`` is THINKING, CONTENT or HIDDEN (dropped).

    A region of thinking, hidden or not, has an ``answer_prefix``, and a ``thinking_end`` of its own if no tool call can
    follow that. Trailing white space is held back until it is known whether a marker follows that drops it.
    """

    def __init__(
        self, kind: str, exits: Mapping[str, Exit], answer_prefix: str = "", *, thinking_end: str = ""
    ) -> None:
        self._kind, self._exits, self.answer_prefix = kind, exits, answer_prefix
        self.thinking_end = (thinking_end or answer_prefix) if kind != CONTENT else ""
        self._markers = Markers(exits)
        self._holds = any(exit.before for exit in exits.values())
        self._space: list[str] = []
        self._eat = False

    def enter(self, step: RegionStep) -> None:
        self._eat, self._space = step.eat_space, []

    def consume(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        start, marker = self._markers.search(text, at, final=final)
        self._add(text[at:start], out)
        if marker is None:
            if final:
                self._flush(out)
            return RegionStep(start)
        exit = self._exits[marker]
        if not exit.before:
            self._flush(out)
        return RegionStep(start + len(marker), exit.to, exit.after, marker, "".join(self._space))

    def _add(self, text: str, out: Output) -> None:
        if self._eat:
            text = text.lstrip()
            self._eat = not text
        if not self._holds:
            self._write(text, out)
            return
        body = text.rstrip()
        if body:
            self._flush(out)
            self._write(body, out)
        self._space.append(text[len(body) :])

    def _flush(self, out: Output) -> None:
        self._write("".join(self._space), out)
        self._space = []

    def _write(self, text: str, out: Output) -> None:
        if self._kind == CONTENT:
            out.content(text)
        elif self._kind == THINKING:
            out.thinking(text)


class ForkRegion:
    """A position at which one of the markers of ``exits`` may follow; if none does, ``otherwise`` is the next region.

    ``space`` is the treatment of white space before the marker: ``kept`` if no marker follows, ``dropped`` in any case,
    or ``none`` if a marker must follow without white space.
    """

    def __init__(self, exits: Mapping[str, Exit], otherwise: str, space: str = "kept", answer_prefix: str = "") -> None:
        self._exits, self._otherwise, self.answer_prefix = exits, otherwise, answer_prefix
        self._markers = sorted(exits, key=len, reverse=True)
        self._allows_space, self._drops = space != "none", space == "dropped"
        self._eat = False
        self._space: list[str] = []

    def enter(self, step: RegionStep) -> None:
        self._eat, self._space = step.eat_space, []

    def consume(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
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
        return RegionStep(at, self._otherwise, eat_space=dropped, unread="" if dropped else "".join(self._space))

    @staticmethod
    def _unfinished(marker: str, text: str, at: int) -> bool:
        return 0 < len(text) - at < len(marker) and marker.startswith(text[at:])


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


_SPACE = re.compile(r"\s*")

CallParser = Callable[[str, bool], Sequence[str | ParsedCall | MalformedCall]]
"""Parses the text between the markers of a call. The flag says whether the closing marker was present."""


class CallRegion:
    """The text of calls up to one of the markers of ``exits``, parsed by ``parse_call`` once it is complete.

    ``whole``: the opening marker is part of the call's text. ``by_object``: the call also ends after its first JSON
    object, and ``by_object`` is the region that follows it. ``head`` matches the text of a call up to its arguments, if
    they are a JSON object, and ``name_of`` gets the name of the tool from the match: for ToolCallDelta events.

    If the arguments are a JSON object, a marker within it does not end the call. If the object turns out to be unclosed
    or the call to be malformed, the first such marker does end it, and the text after the marker is parsed again.
    """

    MAX_RETURNS = 3  # times that text of one reply is parsed again; after them, markers end calls anywhere

    def __init__(
        self,
        parse_call: CallParser,
        exits: Mapping[str, Exit],
        *,
        whole: bool = False,
        by_object: str | None = None,
        head: re.Pattern[str] | None = None,
        name_of: NameOf = quoted_name,
    ) -> None:
        self._head, self._name_of = head, name_of
        self._stream: ArgumentStream | None = None
        self._parse_call, self._exits, self._whole, self._by_object = parse_call, exits, whole, by_object
        self._ends = Markers(exits)
        self._all = Markers({*exits, "{"})
        self._by_json = by_object is not None or head is not None
        self._returns = 0
        self._object: ObjectEnd | None = None
        self._opening = ""
        self._body: list[str] = []
        self._size = self._object_start = 0
        self._inner: tuple[int, str] | None = None
        self.answer_prefix = ""

    def enter(self, step: RegionStep) -> None:
        self._opening, self._body, self._object = step.space + step.marker, [], None
        self._size, self._inner = 0, None
        if self._by_object is None and self._returns >= self.MAX_RETURNS:
            self._by_json = False
        self._stream = ArgumentStream(self._head, self._name_of) if self._head is not None else None
        if self._whole:
            self._opening, self._body, self._size = step.space, [step.marker], len(step.marker)
            self._object = ObjectEnd() if self._by_object and step.marker == "{" else None

    def consume(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        while True:
            if self._object is not None:
                end = self._object.find(text, at)
                self._collect(text[at:] if end < 0 else text[at:end], out)
                if end < 0:
                    return self._unclosed("", len(text), out) if final else RegionStep(len(text))
                self._leave_object()
                if self._by_object is not None:
                    self._finish("".join(self._body), "", out, closed=True)
                    return RegionStep(end, self._by_object)
                at = end
            start, marker = (self._all if self._by_json else self._ends).search(text, at)
            self._collect(text[at:start], out)
            if marker is None:
                return self._unclosed(text[start:], len(text), out) if final else RegionStep(start)
            if marker in self._exits:
                return self._closed(marker, start, out)
            self._object, self._object_start = ObjectEnd(), self._size
            self._collect(marker, out)
            at = start + 1

    def _collect(self, text: str, out: Output) -> None:
        """Add text to the body of the call."""
        self._body.append(text)
        self._size += len(text)
        if out.detailed and self._stream is not None:
            for piece in self._stream.feed(text):
                out.piece(piece)

    def _leave_object(self) -> None:
        """Note the first marker within the object that ends here."""
        self._object = None
        if self._inner is None and self._by_object is None:
            at, marker = self._ends.search("".join(self._body), self._object_start, final=True)
            self._inner = (at, marker) if marker is not None else None

    def _closed(self, marker: str, start: int, out: Output) -> RegionStep:
        """Handle a marker at ``start`` that ends the call."""
        exit = self._exits[marker]
        body = "".join(self._body)
        if marker == self._opening.lstrip() and not body.strip():
            return RegionStep(start + len(marker), exit.to, exit.after, marker)
        if step := self._return_to_inner_marker(body, start, out):
            return step
        parsed = self._finish(body, marker if exit.closes else "", out)
        return RegionStep(start + len(marker), exit.to, exit.after and parsed, marker)

    def _unclosed(self, partial: str, end: int, out: Output) -> RegionStep:
        """Handle a reply that ends inside the call: perhaps only its closing marker, or a part of that, is missing."""
        if self._object is not None:
            self._leave_object()
        body = "".join(self._body)
        if step := self._return_to_inner_marker(body, end - len(partial), out):
            return step
        items = self._parse_call(body, False)
        if partial and any(isinstance(item, MalformedCall) for item in items):
            body, partial = body + partial, ""
        self._finish(body, partial, out, closed=False)
        return RegionStep(end)

    def _return_to_inner_marker(self, body: str, at: int, out: Output) -> RegionStep | None:
        """End a malformed call at the first marker within its objects, if there is one; return to the text after it."""
        if self._inner is None or not any(isinstance(item, MalformedCall) for item in self._parse_call(body, False)):
            return None
        self._returns += 1
        start, marker = self._inner
        exit = self._exits[marker]
        parsed = self._finish(body[:start], marker if exit.closes else "", out)
        return RegionStep(at, exit.to, exit.after and parsed, marker, unread=body[start + len(marker) :])

    def _finish(self, body: str, closing: str, out: Output, *, closed: bool | None = None) -> bool:
        """Parse the collected text and add the result to ``out``. Return False if it contains no call."""
        items = self._parse_call(body, bool(closing) if closed is None else closed)
        if items and not any(isinstance(item, ParsedCall) for item in items):
            why = next((item.why for item in items if isinstance(item, MalformedCall)), "")
            out.malformed(self._opening + body + closing, why)
            out.end_of_calls()
            return False
        for item in items:
            out.add(item)
        out.end_of_calls()
        return True


class HeaderRegion:
    """The header of a message, up to ``marker``.

    ``route`` parses it; it returns the next region, and text that does not belong to the header and is content.
    ``plausible`` decides whether a text can be the beginning of a header. If it cannot, it is content, and
    ``otherwise`` is the next region.
    """

    LONGEST = 400  # characters; a longer text is not a header

    def __init__(
        self,
        marker: str,
        route: Callable[[str], tuple[str, str]],
        plausible: Callable[[str], bool],
        otherwise: str,
        answer_prefix: str,
    ) -> None:
        self._marker, self._route, self._plausible, self._otherwise = marker, route, plausible, otherwise
        self._markers = Markers([marker])
        self.answer_prefix = answer_prefix

    def enter(self, step: RegionStep) -> None:
        pass

    def consume(self, text: str, at: int, final: bool, out: Output) -> RegionStep:
        start, marker = self._markers.search(text, at, final=final)
        if not self._plausible(text[at : min(start, at + self.LONGEST)]) or start - at > self.LONGEST:
            return RegionStep(at, self._otherwise)
        if marker is None:
            return RegionStep(at, self._otherwise) if final and at < len(text) else RegionStep(at)
        to, stray = self._route(text[at:start])
        out.content(stray)
        return RegionStep(start + len(marker), to)
