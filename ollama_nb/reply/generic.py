"""The reply parser for models that name no parser: it is configured by what their template shows.

The reasoning parser separates thinking from the answer by the template's two tags. The tool-call parser finds JSON
calls after the marker that the template writes before calls. No text is lost, and the events do not depend on how the
text is split into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ollama_nb.api.events import ParsedEvent
from ollama_nb.api.messages import Tool
from ollama_nb.reply.argument_stream import ArgumentStream, CallPiece, json_head, quoted_name
from ollama_nb.reply.arguments import ObjectEnd, as_object, parse_object, tool_name
from ollama_nb.reply.markers import MarkerMatcher
from ollama_nb.reply.output import MalformedCall, Output, ParsedCall


class TemplateReplyParser:
    """Parses one reply into thinking, content and tool calls.

    ``thinking`` is the opening and closing tag, or None to leave thinking in the content. ``inside_thinking``: the
    prompt ended with the opening tag. Calls are parsed only if ``tools`` were offered and ``tool_marker`` is known.
    """

    def __init__(
        self,
        thinking: tuple[str, str] | None = None,
        inside_thinking: bool = False,
        tools: Sequence[Tool] = (),
        tool_marker: str | None = None,
    ) -> None:
        self._thinking = ReasoningParser(*thinking, inside=inside_thinking) if thinking else None
        self._tools = ToolCallParser(tools, tool_marker) if tools and tool_marker else None
        self._out = Output()

    def report_arguments(self) -> None:
        """From now on, report the arguments of calls while they are written, as ToolCallDelta events."""
        self._out.detailed = True
        if self._tools is not None:
            self._tools.reports_arguments = True

    @property
    def thinking_end(self) -> str:
        """The text to append to the reply so far to end its thinking; empty if it is not thinking now."""
        return f"\n{self._thinking.closing}\n\n" if self._thinking and self._thinking.inside else ""

    def feed(self, text: str) -> list[ParsedEvent]:
        """Parse the next piece and return the events that are now certain."""
        thinking, content = self._thinking.feed(text) if self._thinking else ("", text)
        self._add(thinking, content)
        return self._out.take()

    def end(self) -> list[ParsedEvent]:
        """Return the events for all text that is still held back."""
        self._add(*(self._thinking.end() if self._thinking else ("", "")))
        for item in self._tools.end() if self._tools else ():
            self._out.add(item)
        self._out.end_of_calls()
        return self._out.take()

    def _add(self, thinking: str, content: str) -> None:
        self._out.thinking(thinking)
        for item in self._tools.feed(content) if self._tools else (content,):
            self._out.add(item)


# Thinking


class ReasoningParser:
    """Splits a reply into thinking and content. ``inside``: the prompt ended with the opening tag.

    Only a tag at the very beginning starts thinking. The tags and the white space after each of them are dropped.
    """

    def __init__(self, opening: str, closing: str, *, inside: bool = False) -> None:
        self._opening = opening
        self.closing = closing
        self._matcher = MarkerMatcher([closing])
        self._space: list[str] = []  # at the very beginning
        self._tag = ""  # what may be the beginning of the opening tag
        self._state = _THINKING if inside else _START
        self._eats_space = inside

    @property
    def inside(self) -> bool:
        """Whether the next text is thinking."""
        return self._state is _THINKING

    def feed(self, text: str) -> tuple[str, str]:
        """Parse the next piece and return the thinking and the content that are now certain."""
        if self._state is _START:
            text = self._begin(text)
            if self._state is _START:
                return "", ""
        if self._state is _CONTENT:
            return "", self._without_space(text)
        thinking, marker, rest = self._matcher.feed(self._without_space(text))
        if marker is None:
            return thinking, ""
        self._state, self._eats_space = _CONTENT, True
        return thinking, self._without_space(rest)

    def end(self) -> tuple[str, str]:
        """Return the held-back text: thinking if the tag is still open, else content."""
        if self._state is _START:
            self._state = _CONTENT
            return "", "".join(self._space) + self._tag
        return self._matcher.end()[0], ""

    def _begin(self, text: str) -> str:
        """Look for the opening tag. Return the text after it, or all text once the tag cannot follow any more."""
        if not self._tag:
            trimmed = text.lstrip()
            self._space.append(text[: len(text) - len(trimmed)])
            text = trimmed
        text = self._tag + text
        if text.startswith(self._opening):
            self._state, self._eats_space = _THINKING, True
            return text[len(self._opening) :]
        if self._opening.startswith(text):
            self._tag = text
            return ""
        self._state = _CONTENT
        return "".join(self._space) + text

    def _without_space(self, text: str) -> str:
        if self._eats_space:
            text = text.lstrip()
            self._eats_space = not text
        return text


_START, _THINKING, _CONTENT = "start", "thinking", "content"


# Tool calls

ParsedItem = str | CallPiece | ParsedCall | MalformedCall
_NAME_KEYS = ("name", "function", "tool", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters")
_MARKUP = r"</[^<>\s]{1,64}>|<[|｜][^<>]{1,64}[|｜]>|\[/?[A-Z_]+\]|```(?:json)?|[\s\]),;}]"


class ToolCallParser:
    """Finds calls of the offered tools: JSON after ``marker``, the text that the template writes before calls.

    The markers ``{`` and ``[`` count only at the beginning of a reply. Each character is examined once. Text that is
    not a call is returned as text; only the markup around calls is dropped.
    """

    def __init__(self, tools: Sequence[Tool], marker: str) -> None:
        names = sorted(filter(None, map(tool_name, tools)), key=len, reverse=True)
        self.reports_arguments = False
        self._known = frozenset(names)
        self._stream: ArgumentStream | None = None
        self._calls = _CallFinder(self._known)
        self._names = re.compile("|".join(map(_whole_word, names))) if names else None
        self._marker = marker
        self._bracket = marker in ("{", "[")
        self._markup = re.compile(f"(?:{_MARKUP}{'' if self._bracket else '|' + re.escape(marker)})*")
        self._matcher = MarkerMatcher([marker])
        self._state = _SEARCH if names else _OFF
        self._found = 0
        self._before: list[str] = []  # text up to and including the last object that is not a call
        self._head: list[str] = []  # text since then
        self._object: list[str] = []  # the incomplete object
        self._inside: ObjectEnd | None = None
        self._brackets = 0

    def feed(self, text: str) -> list[ParsedItem]:
        """Parse the next piece and return the text and calls that are now certain, in order."""
        out: list[ParsedItem] = []
        if self._state is _SEARCH:
            text = self._search(text, out)
        if self._state is _CALLS:
            text = self._scan(text, out)
        if self._state is _OFF and text:
            out.append(text)
        return out

    def end(self) -> list[ParsedItem]:
        """Return the held-back text without markup.

        After a marker other than a bracket, it is a malformed call.
        """
        begun = self._state is _CALLS and not self._bracket and (self._inside is not None or not self._found)
        held = "".join(self._pending())
        if self._state is _SEARCH:
            held = self._matcher.end()[0]
        elif self._found:
            held = self._without_markup(held)
        self._state = _OFF
        if begun and held:
            why = "the tool call is not closed" if self._inside else "no call of an offered tool was found"
            return [MalformedCall(held, why)]
        return [held] if held else []

    # Looking for the marker

    def _search(self, text: str, out: list[ParsedItem]) -> str:
        before, marker, rest = self._matcher.feed(text)
        if before:
            out.append(before)
        if self._bracket and before.strip():
            self._state = _OFF
            return (marker or "") + rest
        if marker is None:
            return ""
        self._state = _CALLS
        return marker + rest

    # Parsing the objects after the marker

    def _scan(self, text: str, out: list[ParsedItem]) -> str:
        """Consume text; return the rest once it is certain that the reply contains no calls."""
        at = 0
        while at < len(text):
            if self._inside:
                end, complete = self._in_object(text, at)
                out += self._stream.feed(text[at:end]) if self._stream else ()
            else:
                end, complete = self._outside(text, at)
                out += self._stream.feed("{") if self._inside and self._stream else ()
            at = end
            if complete and not self._complete(out):
                self._state = _OFF
                out.append("".join(self._pending()))
                return text[at:]
        return ""

    def _outside(self, text: str, at: int) -> tuple[int, bool]:
        """Advance to the next object. The flag is True, for the marker ``[``, if a list without calls ended."""
        for match in (_LIST_MARK if self._marker == "[" else _START_MARK).finditer(text, at):
            mark, place = match[0], match.start()
            if mark == "{":
                self._head.append(text[at:place])
                self._inside = ObjectEnd()
                self._object = ["{"]
                self._stream = ArgumentStream(_HEAD, quoted_name, self._known) if self.reports_arguments else None
                return place + 1, False
            self._brackets += 1 if mark == "[" else -1
            if not self._brackets and not self._found:
                self._head.append(text[at : place + 1])
                return place + 1, True
        self._head.append(text[at:])
        return len(text), False

    def _in_object(self, text: str, at: int) -> tuple[int, bool]:
        """Advance to the end of the object. The flag is True if it is in this piece."""
        assert self._inside is not None
        end = self._inside.find(text, at)
        self._object.append(text[at:] if end < 0 else text[at:end])
        if end < 0:
            return len(text), False
        self._inside = None
        return end, True

    def _complete(self, out: list[ParsedItem]) -> bool:
        """Handle the end of an object, or of a list without calls. Return False if the reply contains no calls."""
        body, head = "".join(self._object), "".join(self._head)
        lead, _, near = ("", "", head) if self._bracket else head.rpartition(self._marker)
        calls = self._calls.calls(body)
        if not calls and (named := self._named(near, body)):
            calls, near = [named], ""
        if not calls:
            self._before += (head, body)
            self._head, self._object = [], []
            return bool(self._found) or not self._bracket or self._brackets > 0
        text = _LIST_OPENED.sub("", self._without_markup("".join(self._before) + lead + near))
        if text:
            out.append(text)
        for name, arguments in calls:
            out.append(ParsedCall(name, arguments))
            self._found += 1
        self._before, self._head, self._object = [], [], []
        return True

    def _named(self, head: str, body: str) -> tuple[str, dict[str, Any]] | None:
        """Return a call whose name precedes its arguments."""
        match = self._names.search(head) if self._names else None
        arguments = self._calls.arguments(body) if match else None
        return (match[0], arguments) if match and arguments is not None else None

    def _pending(self) -> list[str]:
        pending = self._before + self._head + self._object
        self._before, self._head, self._object = [], [], []
        return pending

    def _without_markup(self, text: str) -> str:
        match = self._markup.match(text)
        return text[match.end() :] if match else text


_HEAD = json_head("name", "(?:arguments|parameters)")
_SEARCH, _CALLS, _OFF = "search", "calls", "off"
_LIST_OPENED = re.compile(r"\s*\[\s*$")
_START_MARK = re.compile(r"\{")
_LIST_MARK = re.compile(r"[{\[\]]")


def _whole_word(name: str) -> str:
    """Return a pattern for the name that does not match inside a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    return before + re.escape(name) + (r"(?!\w)" if re.search(r"\w$", name) else "")


class _CallFinder:
    """Finds the calls of known tools in a JSON object."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def calls(self, body: str) -> list[tuple[str, dict[str, Any]]]:
        value = parse_object(body) if body else None
        try:
            return list(self._find(value))
        except RecursionError:
            return []

    def arguments(self, body: str) -> dict[str, Any] | None:
        """Return the arguments from an object that does not name its tool."""
        value = parse_object(body) if body else None
        if value is not None and len(value) == 1 and (key := next(iter(value))) in _ARGUMENT_KEYS:
            return as_object(value[key])
        return value

    def _find(self, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield calls in document order, without descending into calls."""
        if isinstance(value, list):
            for item in value:
                yield from self._find(item)
        if not isinstance(value, dict):
            return
        given = [key for key in _ARGUMENT_KEYS if key in value]
        name = next((value[key] for key in _NAME_KEYS if self._known(value.get(key))), None)
        if name is not None:
            arguments: dict[str, Any] | None = {} if not given else None
            for key in given:
                arguments = as_object(value[key]) if arguments is None else arguments
            if arguments is not None:
                yield name, arguments
            return
        if isinstance(value.get("name"), str) and given:
            return  # a call of a tool that was not offered
        for key, item in value.items():
            arguments = as_object(item) if self._known(key) else None
            if arguments is not None:
                yield key, arguments
            else:
                yield from self._find(item)

    def _known(self, name: Any) -> bool:
        return isinstance(name, str) and name in self._names
