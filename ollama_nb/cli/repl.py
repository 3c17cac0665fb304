"""The interactive loop: read a line, run a slash command or ask the model.

The line editor is prompt_toolkit's, with Ollama's keys and history file.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ollama_nb.cli import slash
from ollama_nb.cli.session import ReplSession, begins_with_path, extract_files
from ollama_nb.errors import OllamaError
from ollama_nb.settings import Settings

QUOTES = '"""'
_EXIT_HINT = "Use Ctrl + d or /bye to exit."
_UPSTREAM = "An error occurred while processing your message. Please try again."


def converse(session: ReplSession) -> None:
    """Run the loop until the user leaves. Errors that concern more than one message end it."""
    session.preload()
    session.replay()
    editor = LineEditor(_history())
    while True:
        try:
            text = read_message(editor)
        except KeyboardInterrupt:
            print(_EXIT_HINT)
            continue
        except EOFError:
            return
        if slash.leaves(text):
            return
        _handle(session, editor, text)


def read_message(editor: LineEditor) -> str:
    """A line, or several between triple quotes. In slash commands only ``/set system`` takes triple quotes."""
    line = editor.read()
    if line.startswith(QUOTES):
        return _quoted(line, lambda: editor.read(more=True))
    words = line.split(maxsplit=2)
    if words[:2] == ["/set", "system"] and len(words) > 2 and words[2].startswith(QUOTES):
        return f"/set system {_quoted(words[2], lambda: editor.read(more=True))}"
    return line


def _quoted(first: str, read: Callable[[], str]) -> str:
    """The text between the triple quotes that ``first`` opens; lines are read until they are closed."""
    text = first.removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text += "\n" + read()
    return text.rstrip().removesuffix(QUOTES)


def _handle(session: ReplSession, editor: LineEditor, text: str) -> None:
    def keep_history(keep: bool) -> None:
        editor.history.keep = keep

    if text.startswith("/"):
        if slash.handle(text, session, keep_history):
            return
        if not (session.takes_files and begins_with_path(text)):
            print(slash.unknown(text))
            return
    if text.strip():
        _ask(session, text)


def _ask(session: ReplSession, text: str) -> None:
    images: list[str] = []
    if session.takes_files:
        text, images = extract_files(text)
    try:
        session.ask(text, images)
    except KeyboardInterrupt:
        print()
    except OllamaError as error:
        if session.is_about_thinking(error):
            print(f"error: {error.message}")
        elif error.status == HTTPStatus.BAD_GATEWAY:
            print(f"{_UPSTREAM}\n")
        else:
            raise


def _history() -> LineHistory:
    return LineHistory(Path.home() / ".ollama" / "history", keep=not Settings.from_env().no_history)


# The line editor

PROMPT, MORE = ">>> ", "... "
PLACEHOLDER, MORE_PLACEHOLDER = "Send a message (/? for help)", "Press Enter to send"
MAX_HISTORY_LINES = 100
TAB = " " * 8
_GREY = "fg:#8a8a8a"  # colour 245 of 256


class LineEditor:
    """``read`` one entry at a time. Ctrl-C raises KeyboardInterrupt, Ctrl-D on an empty line EOFError."""

    def __init__(self, history: LineHistory) -> None:
        self.history = history
        self._session: PromptSession[str] = PromptSession(
            history=history, key_bindings=_keys(), enable_suspend=True, prompt_continuation=MORE
        )

    def read(self, *, more: bool = False) -> str:
        """A line, or several that were pasted or broken with Ctrl-J; ``more``: it continues a message."""
        hint = MORE_PLACEHOLDER if more else PLACEHOLDER
        return self._session.prompt(MORE if more else PROMPT, placeholder=FormattedText([(_GREY, hint)]))


class LineHistory(History):
    """History in a file that only the user can read: plain lines, the newest last. ``keep`` False: not written."""

    def __init__(self, path: Path, *, keep: bool = True) -> None:
        super().__init__()
        self._path, self.keep = path, keep
        self._lines = self._read()

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._lines)

    def store_string(self, string: str) -> None:
        if not self.keep:
            return
        self._lines = [*self._lines, *string.splitlines()][-MAX_HISTORY_LINES:]
        with contextlib.suppress(OSError):  # a history that cannot be written must not end the session
            self._write()

    def _read(self) -> list[str]:
        try:
            return self._path.read_text("utf-8", "replace").splitlines()[-MAX_HISTORY_LINES:]
        except OSError:
            return []

    def _write(self) -> None:
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = self._path.with_name(self._path.name + ".tmp")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(f"{line}\n" for line in self._lines)
        fresh.replace(self._path)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    def insert(text: str) -> Callable[[KeyPressEvent], None]:
        return lambda event: event.current_buffer.insert_text(text)

    keys.add("tab")(insert(TAB))
    keys.add("c-j")(insert("\n"))

    @keys.add("c-g")
    def _edit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        run_in_terminal(lambda: edit(buffer))

    return keys


def edit(buffer: Buffer) -> None:
    """Edit the buffer's text in the user's editor. An empty text changes nothing."""
    command = next(filter(None, map(os.environ.get, ("OLLAMA_EDITOR", "VISUAL", "EDITOR"))), "vi")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ollama-prompt-.txt"
        path.write_text(buffer.text, "utf-8")
        try:
            subprocess.run([*shlex.split(command), str(path)], check=False)
        except (FileNotFoundError, ValueError):
            print(
                f'error: editor "{command}" not found, set OLLAMA_EDITOR to the path of your preferred editor',
                file=sys.stderr,
            )
            return
        text = path.read_text("utf-8", "replace").rstrip("\r\n")
    if text.strip():
        buffer.text = text
        buffer.cursor_position = len(text)
