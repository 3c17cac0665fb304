"""Fuzz the reply parsers and the stop strings: ``python tests/fuzz/fuzz_reply.py t11 600 [SEED]``.

``t11``: every family and the generic parser. Every split of a text gives the same reply, no text is lost, ids are
unique, and little is buffered. ``t12``: stop strings. Every split gives the result of a search over the whole text.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fuzz.budget import for_seconds
from support.replies import in_order, in_pieces, read_all

from ollama_nb import families
from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import Message, Tool
from ollama_nb.engine.text import TextStream
from ollama_nb.reply.generic import TemplateReplyParser
from ollama_nb.reply.markers import MarkerMatcher
from ollama_nb.reply.output import ReplyContext, ReplyParser
from ollama_nb.reply.regions import HIDDEN, CallRegion, ForkRegion, HeaderRegion, RegionParser, TextRegion

Pieces = Sequence[str]
HELD_AT_MOST = 600
"""Characters that are buffered until the next piece: the longest header, or a marker."""


def tool(name: str, *required: str, **types: Any) -> Tool:
    properties = {key: {"type": value} for key, value in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = (
    tool("get_weather", "city", city="string", days="integer", hot=["boolean", "null"], tags="array", opts="object"),
    tool("get", x="number"),
    tool("now"),
    tool("mail.send-all", to="string"),
)
TURNS = [
    ReplyContext(tools, think, last)
    for tools in (TOOLS, ())
    for think in (True, False, None, "high")
    for last in (None, Message("assistant", "So"), Message("assistant", "", "hm"), Message("tool", "sunny"))
]
COMMON = [
    "a", "b c", " ", "\n", "\n\n", "<", ">", "</", "{", "}", "[", "]", "(", ")", '"', "'", "\\", ",", ":", "=", "你好",
    "🙂", "get_weather", "get", "now", "mail.send-all", "city", "Paris", "days", "2", "null", "true", "None", "1e999",
    '{"city": "Paris"}', '{"name": "now", "arguments": {}}', '{"name": "get_weather", "arguments": {"city": "P"}}',
    '"name"', '"arguments"', "```json\n", "\n```", "<tool_call>", "</tool_call>", "<think>", "</think>",
]  # fmt: skip
OF_A_FAMILY = {
    "qwen": ["<function=get_weather>", "<function=now>", "</function>", "<parameter=city>", "</parameter>", "<c=d>"],
    "tagged": ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<user>", "</user>"],
    "gemma": ["call:", "call:get_weather{", "call:now{}", "city:", '<|"|>', "<escape>", "thought\n", "city:'x'"],
    "python": ["now()", "[now()]", "get_weather(city='P', days=2)", "get_weather(", "a=", "[1, 2]", "{'k': None}"],
    "glimmer": ["<atem:function_calls>", "</atem:function_calls>", '<atem:invoke name="now">', '<atem:invoke name="',
                "</atem:invoke>", '<atem:parameter name="city">', "</atem:parameter>", " to=self", " to=user",
                " to=now", "assistant"],
    "harmony": ["assistant", "analysis", "commentary", "final", " to=functions.now", " to=functions.get_weather",
                "<|constrain|>json", "<|call|>"],
    "cohere": ['[{"tool_call_id": "0", "tool_name": "now", "parameters": {}}]',
               '{"tool_name": "get", "parameters": {}}'],
}  # fmt: skip
VARIANTS = {"glm": "tagged", "laguna": "tagged", "poolside": "tagged", "functiongemma": "gemma", "olmo": "python",
            "lfm2": "python", "ornith": "qwen", "nemotron": "qwen"}  # fmt: skip


class Lost(AssertionError):
    pass


def words_for(name: str) -> list[str]:
    kind = next((kind for start, kind in VARIANTS.items() if name.startswith(start)), None)
    own = OF_A_FAMILY.get(kind or next((kind for kind in OF_A_FAMILY if name.startswith(kind)), ""), [])
    markers = list(families.parser(name).preserve)
    return COMMON + 4 * (own + markers)


def random_text(words: Sequence[str], rng: random.Random) -> str:
    text = "".join(rng.choice(words) for _ in range(rng.randint(0, rng.choice((4, 12, 40)))))
    if text and rng.random() < 0.3:  # a damaged marker
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", "<", " ", text[at : at + 3])) + text[at + rng.randint(0, 2) :]
    return text


def random_pieces(text: str, rng: random.Random) -> list[str]:
    most = rng.choice((1, 2, 5, 20))
    pieces: list[str] = []
    at = 0
    while at < len(text):
        size = rng.randint(1, most)
        pieces.append(text[at : at + size])
        at += size
    return pieces


# T11


def check_reply(make: Callable[[], ReplyParser], text: str, cuts: Sequence[Pieces]) -> None:
    """Pieces and whole text give the same reply; its ids are unique and its calls are counted."""
    whole = read_all(make(), [text])
    calls = [call for event in whole if isinstance(event, ToolCalls) for call in event.calls]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    assert all(event.content or event.thinking for event in whole if isinstance(event, Delta))
    for pieces in cuts:
        reader = make()
        events = []
        for piece in pieces:
            events += reader.feed(piece)
            if isinstance(reader, RegionParser):
                assert len(reader._rest) <= HELD_AT_MOST, (text, pieces)
        assert in_order(events + reader.end()) == in_order(whole), (text, pieces)


def check_nothing_lost(reader: RegionParser, text: str) -> None:
    """The emitted texts occur in the input in order, with only markers and whitespace between them."""
    told: list[str] = []
    markers = _watch(reader, told)
    read_all(reader, [text])
    places = {0}
    for piece in filter(None, told):
        places = {at + len(piece) for at in _reachable(places, text, markers) if text.startswith(piece, at)}
        if not places:
            raise Lost(f"{text!r} became {told!r}: {piece!r} is not where it should be")
    places = _reachable(places, text, markers)
    if not any(marker.startswith(text[at:]) for at in places for marker in markers | {""}):
        raise Lost(f"{text!r} became {told!r}: something is missing")


def _reachable(places: set[int], text: str, markers: set[str]) -> set[int]:
    """The positions, and all positions after markers and whitespace from there."""
    found, todo = set(places), list(places)
    while todo:
        at = todo.pop()
        ends = {at + len(marker) for marker in markers if text.startswith(marker, at)}
        ends |= {at + 1} if text[at : at + 1].isspace() else set()
        todo += ends - found
        found |= ends
    return found


def _watch(reader: RegionParser, told: list[str]) -> set[str]:
    """Log the events of a parser, calls as their source text; return the markers that it may drop."""
    out, regions = reader._out, reader._regions
    markers: set[str] = set()
    for name in ("content", "thinking"):
        setattr(out, name, _logged(getattr(out, name), told))
    for region in regions.values():
        if isinstance(region, TextRegion | ForkRegion | CallRegion):
            markers |= {
                marker for marker, exit in region._exits.items() if not getattr(regions[exit.to], "_whole", False)
            }
        if isinstance(region, TextRegion) and region._kind == HIDDEN:
            region._write = lambda text, out: told.append(text)  # type: ignore[method-assign]
        if isinstance(region, CallRegion):
            region._finish = _finish(region._finish, told)  # type: ignore[method-assign]
        if isinstance(region, HeaderRegion):
            markers |= {region._marker, "<|start|>assistant"}
            region._route = _route(region._route, told)
    _log_malformed(out, told)
    return markers


def _logged(tell: Callable[[str], None], told: list[str]) -> Callable[[str], None]:
    def log(text: str) -> None:
        told.append(text)
        tell(text)

    return log


def _log_malformed(out: Any, told: list[str]) -> None:
    tell = out.malformed

    def log(text: str, why: str) -> None:
        if why:
            told.append(text)
        tell(text, why)  # without a reason it is content

    out.malformed = log


def _finish(finish: Callable[..., bool], told: list[str]) -> Callable[..., bool]:
    def log(body: str, closing: str, out: Any, **more: Any) -> bool:
        mark = len(told)
        read = finish(body, closing, out, **more)
        if read:
            told[mark:] = [body]
        return read

    return log


def _route(route: Callable[[str], tuple[str, str]], told: list[str]) -> Callable[[str], tuple[str, str]]:
    def log(header: str) -> tuple[str, str]:
        to, stray = route(header)
        told.append(header.removesuffix(stray))
        return to, stray

    return log


def check_work(make: Callable[[], Any], start: str, word: str, size: int) -> None:
    """The work is linear in the text: lines executed, and characters searched for markers."""
    text = start + word * (LONG // len(word))
    once, twice = (work_of(make(), in_pieces(part, size)) for part in (text, text + text[len(start) :]))
    assert twice <= 2.4 * once + 2000, (start, word, size, once, twice)


LONG = 1500


def work_of(reader: Any, pieces: Pieces) -> int:
    count = 0

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        code = frame.f_code
        if code.co_name == "search" and "markers" in code.co_filename:
            count += len(frame.f_locals["text"]) - frame.f_locals.get("at", 0) if len(pieces) > 1 else 0
        return line if f"{os.sep}reply{os.sep}" in code.co_filename else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.end()
    finally:
        sys.settrace(before)
    return count


def check_generic(rng: random.Random) -> None:
    marker = rng.choice(("<tool_call>", "[TOOL_CALLS]", "[TOOL_CALLS] [", "{", "[", "Action: ```json", "get"))
    text = random_text([*COMMON, *[marker] * 6, f"{marker}{COMMON[-9]}", "[/TOOL_CALLS]"], rng)
    setup: dict[str, Any] = {
        "thinking": rng.choice((None, ("<think>", "</think>"))),
        "inside_thinking": rng.random() < 0.3,
        "tools": TOOLS,
        "tool_marker": marker,
    }
    check_reply(lambda: TemplateReplyParser(**setup), text, [random_pieces(text, rng), list(text)])
    told = in_order(read_all(TemplateReplyParser(**setup), [text]))
    if not any(kind == "call" for kind, _ in told):
        kept = "".join("".join(value for _, value in told).split())
        rests = (text, text.replace("<think>", "", 1), text.replace("</think>", "", 1))
        assert kept in {"".join(rest.split()) for rest in (*rests, rests[1].replace("</think>", "", 1))}, text


def run_t11(budget: Iterator[int], seed: int) -> int:
    """Fuzz the parsers; return the number of texts."""
    rng = random.Random(seed)
    words = {name: words_for(name) for name in families.parsers()}
    for count in budget:
        if count % 8 == 0:
            check_generic(rng)
            continue
        name, turn = rng.choice(list(families.parsers())), rng.choice(TURNS)
        if count % 200 == 1:
            check_work(_maker(name, turn), rng.choice(words[name]), rng.choice(words[name]), rng.choice((0, 3, 7)))
        text = random_text(words[name], rng)
        make = _maker(name, turn)
        check_reply(make, text, [random_pieces(text, rng), list(text)])
        check_nothing_lost(make(), text)
    return count


def _maker(name: str, turn: ReplyContext) -> Callable[[], RegionParser]:
    return lambda: families.parser(name).create(turn)


# T12


def naive(stops: Sequence[str], text: str) -> int:
    """The position of the first stop string, or -1."""
    return min((text.find(stop) for stop in stops if stop in text), default=-1)


def check_stops(stops: Sequence[str], text: str, rng: random.Random) -> None:
    """A stream of bytes, split anywhere, ends at the position that the search finds."""
    data, stream, told = text.encode(), TextStream(stops), ""
    at = 0
    while at < len(data) and not stream.stopped:
        size = rng.randint(1, 6)
        told += stream.feed(data[at : at + size])
        at += size
        if not stream.stopped:
            whole = data[:at].decode(errors="ignore")
            assert len(whole) - len(told) <= max(map(len, stops)), (stops, text)
    told += stream.end()
    place = naive(stops, text)
    assert (told, stream.stopped) == (text[:place] if place >= 0 else text, place >= 0), (stops, text)


def check_matcher(stops: Sequence[str], text: str, rng: random.Random) -> None:
    """The matcher itself: the text before the marker, the marker, and the text after it."""
    matcher, told = MarkerMatcher(stops), ""
    pieces = random_pieces(text, rng)
    for number, piece in enumerate(pieces, 1):
        before, marker, rest = matcher.feed(piece)
        told += before
        if marker is not None:
            rest += "".join(pieces[number:])
            break
    else:
        before, marker, rest = matcher.end()
        told += before
    place = naive(stops, text)
    expected = max((stop for stop in stops if text.startswith(stop, place)), key=len) if place >= 0 else None
    assert (told, marker) == (text[:place] if place >= 0 else text, expected), (stops, text)
    assert told + (marker or "") + rest == text


def run_t12(budget: Iterator[int], seed: int) -> int:
    """Fuzz the search for stop strings; return the number of texts."""
    rng = random.Random(seed)
    total = 0
    for total in budget:  # noqa: B007
        letters = rng.choice(("a", "ab", "abc", "ab<>\n", "a你🙂\n"))
        stops = ["".join(rng.choices(letters, k=rng.randint(1, rng.choice((3, 12))))) for _ in range(rng.randint(1, 5))]
        text = "".join(
            rng.choice(stops) if rng.random() < 0.08 else rng.choice(letters) for _ in range(rng.randint(0, 60))
        )
        check_stops(stops, text, rng)
        check_matcher(stops, text, rng)
    return total


TARGETS: dict[str, Callable[[Iterator[int], int], int]] = {"t11": run_t11, "t12": run_t12}

if __name__ == "__main__":
    target, seconds, *seed = sys.argv[1:]
    chosen = int(seed[0]) if seed else time.time_ns() % 1_000_000
    print(f"{target} with seed {chosen}", flush=True)
    print(f"{TARGETS[target](for_seconds(float(seconds)), chosen)} texts")
