"""An answer on its way to the terminal: thinking in grey, text wrapped, tool calls, figures at the end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from ollama_nb.cli.durations import summary
from ollama_nb.cli.progress import Progress
from ollama_nb.cli.terminal import BOLD, GREY, RESET, is_terminal, size_of
from ollama_nb.cli.wrap import Wrapper

# A model's words must not move the cursor, change the terminal or reach its clipboard: controls are shown, not sent.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\r\t"}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@dataclass
class Reply:
    """What was said, collected."""

    content: str = ""
    thinking: str = ""
    final: Mapping[str, Any] = field(default_factory=dict)


class Printer:
    """Writes pieces as they come. Escape sequences go to terminals only."""

    def __init__(self, *, wordwrap: bool = True, hide_thinking: bool = False, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = is_terminal(self._out)
        self._wrap = Wrapper(size_of(self._out)[0] if self._live and wordwrap else 0)
        self.hides_thinking = hide_thinking
        self._thinking = False
        self._line_begun = False

    def think(self, text: str) -> None:
        if self.hides_thinking or not text:
            return
        if not self._thinking:
            self._thinking = True
            self._write(f"{GREY}{BOLD}Thinking...\n{RESET}{GREY}" if self._live else "Thinking...\n")
        self._text(text)

    def say(self, text: str) -> None:
        if text:
            self._end_thinking()
            self._text(text)

    def calls(self, calls: Iterable[Mapping[str, Any]]) -> None:
        """Nobody can answer a tool's call here; say what the model wanted."""
        lines = [
            f"  Model called a non-existent function '{call['function'].get('name', '')}()' with arguments: "
            + json.dumps(call["function"].get("arguments") or {}, ensure_ascii=False)
            for call in calls
        ]
        if lines:
            self._end_thinking()
            text = "\n".join(lines)
            self._write(f"{GREY}{BOLD}{text}{RESET}" if self._live else text)

    def end(self) -> None:
        """Nothing more comes: leave no colour behind."""
        self._end_thinking()
        self._out.flush()

    def _end_thinking(self) -> None:
        if not self._thinking:
            return
        self._thinking = False
        break_ = "\n" if self._line_begun else ""
        done = "...done thinking.\n\n"
        self._write(f"{break_}{RESET}{GREY}{BOLD}{done}{RESET}" if self._live else break_ + done)
        self._wrap.reset()

    def _text(self, text: str) -> None:
        self._line_begun = not text.endswith("\n")
        self._write(self._wrap.feed(text.translate(_CONTROLS)) if self._live else text)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def show_answer(lines: Iterable[Mapping[str, Any]], printer: Printer, spinner: Progress) -> Reply:
    """Print a chat's or generate's stream; the spinner turns until there is something to show."""
    reply = Reply()
    try:
        for line in lines:
            _take(line, reply, printer, spinner)
    finally:
        spinner.clear()
        printer.end()
    return reply


def _take(line: Mapping[str, Any], reply: Reply, printer: Printer, spinner: Progress) -> None:
    message: Mapping[str, Any] = line.get("message") or {"content": line.get("response"), **line}
    thinking, content = message.get("thinking") or "", message.get("content") or ""
    calls = message.get("tool_calls") or ()
    if content or calls or (thinking and not printer.hides_thinking):
        spinner.clear()
    printer.think(thinking)
    printer.say(content)
    printer.calls(calls)
    reply.thinking += thinking
    reply.content += content
    if line.get("done"):
        reply.final = line


@contextlib.contextmanager
def waiting() -> Iterator[Progress]:
    """The spinner of a wait without words, gone at its end; nothing where standard error is no terminal."""
    progress = Progress()
    progress.spinner("")
    try:
        yield progress
    finally:
        progress.clear()


def tell_end(final: Mapping[str, Any], *, verbose: bool) -> None:
    """The server's warnings, what was left out, and the figures where they are wanted; all on standard error."""
    for warning in [*(final.get("warnings") or ()), *_left_out(final)]:
        print(f"warning: {warning}", file=sys.stderr)
    if verbose:
        sys.stderr.write(summary(final))
    sys.stderr.flush()


def _left_out(final: Mapping[str, Any]) -> list[str]:
    """A conversation that outgrew the context is told, not silently forgotten."""
    truncated = final.get("truncated") or {}
    messages, tokens = truncated.get("messages_dropped"), truncated.get("prompt_tokens_dropped")
    if not messages and not tokens:
        return []
    what = f"the oldest messages ({messages})" if messages else f"{tokens} tokens of the prompt"
    context = f" of {final['context_length']} tokens" if final.get("context_length") else ""
    return [f"{what} did not fit into the context{context} and were left out; `num_ctx` widens it"]
