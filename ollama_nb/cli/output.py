"""A reply on the terminal: thinking in grey, text wrapped, tool calls, and the figures at the end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from ollama_nb.cli.progress import ProgressDisplay
from ollama_nb.cli.terminal import BOLD, GREY, RESET, WordWrapper, is_terminal, size_of
from ollama_nb.client.chunks import DoneChunk, ReplyChunk, TextChunk, ThinkingChunk, ToolCallsChunk
from ollama_nb.client.conversation import describe_omission
from ollama_nb.verbs.present import stat_text

# Control characters in a reply could move the cursor, change the terminal or set its clipboard: print symbols instead.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\r\t"}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class ReplyPrinter:
    """Writes the pieces of a reply as they arrive. Only terminals receive escape sequences."""

    def __init__(self, *, wordwrap: bool = True, hide_thinking: bool = False, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = is_terminal(self._out)
        self._wrap = WordWrapper(size_of(self._out)[0] if self._live and wordwrap else 0)
        self._hide_thinking = hide_thinking
        self._thinking = False
        self._line_begun = False

    def shows(self, chunk: ReplyChunk) -> bool:
        """Whether a chunk appears on the screen."""
        return isinstance(chunk, TextChunk | ToolCallsChunk) or (
            isinstance(chunk, ThinkingChunk) and not self._hide_thinking
        )

    def feed(self, chunk: ReplyChunk) -> None:
        """Print a chunk."""
        match chunk:
            case TextChunk(text):
                self.write_text(text)
            case ThinkingChunk(text) if not self._hide_thinking:
                self._write_thinking(text)
            case ToolCallsChunk(calls):
                self._write_calls(calls)

    def write_text(self, text: str) -> None:
        """Print a piece of the answer."""
        self._end_thinking()
        self._write_wrapped(text)

    def end(self) -> None:
        """Reset the colours at the end of a reply, or where it breaks off."""
        self._end_thinking()
        self._out.flush()

    def _write_thinking(self, text: str) -> None:
        if not self._thinking:
            self._thinking = True
            self._write(f"{GREY}{BOLD}Thinking...\n{RESET}{GREY}" if self._live else "Thinking...\n")
        self._write_wrapped(text)

    def _write_calls(self, calls: Iterable[Mapping[str, Any]]) -> None:
        """Print the calls: the terminal program has no functions that could answer them."""
        text = "\n".join(
            f"  Model called a non-existent function '{call['function'].get('name', '')}()' with arguments: "
            + json.dumps(call["function"].get("arguments") or {}, ensure_ascii=False)
            for call in calls
        )
        self._end_thinking()
        self._write(f"{GREY}{BOLD}{text}{RESET}" if self._live else text)

    def _end_thinking(self) -> None:
        if not self._thinking:
            return
        self._thinking = False
        line_end = "\n" if self._line_begun else ""
        done = "...done thinking.\n\n"
        self._write(f"{line_end}{RESET}{GREY}{BOLD}{done}{RESET}" if self._live else line_end + done)
        self._wrap.reset()

    def _write_wrapped(self, text: str) -> None:
        self._line_begun = not text.endswith("\n")
        self._write(self._wrap.feed(text.translate(_CONTROLS)) if self._live else text)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def print_reply(chunks: Iterable[ReplyChunk], printer: ReplyPrinter, spinner: ProgressDisplay) -> DoneChunk | None:
    """Print a streamed reply and return its end. The spinner turns until the first chunk that is shown."""
    done = None
    try:
        for chunk in chunks:
            if printer.shows(chunk):
                spinner.clear()
            printer.feed(chunk)
            if isinstance(chunk, DoneChunk):
                done = chunk
    finally:
        spinner.clear()
        printer.end()
    return done


@contextlib.contextmanager
def waiting() -> Iterator[ProgressDisplay]:
    """A spinner without a message, erased at the end; nothing when standard error is not a terminal."""
    progress = ProgressDisplay()
    progress.spinner("")
    try:
        yield progress
    finally:
        progress.clear()


def print_end(done: DoneChunk | None, *, verbose: bool) -> None:
    """Print the server's warnings, what it left out, and with ``verbose`` the figures, to standard error."""
    if done is None:
        return
    for warning in filter(None, [*done.warnings, describe_omission(done.stats)]):
        print(f"warning: {warning}", file=sys.stderr)
    if verbose:
        sys.stderr.write(stat_text(done.stats))
    sys.stderr.flush()
