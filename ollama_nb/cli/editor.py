"""The line that a message is typed into: keys, history, several lines, an editor for long ones."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT, MORE = ">>> ", "... "
PLACEHOLDER, MORE_PLACEHOLDER = "Send a message (/? for help)", "Press Enter to send"
MOST_ENTRIES = 100
TAB = " " * 8
_GREY = "fg:#8a8a8a"  # colour 245 of 256


class Editor:
    """``read`` one entry at a time. Ctrl-C raises KeyboardInterrupt, Ctrl-D on an empty line EOFError."""

    def __init__(self, history: LineHistory) -> None:
        self.history = history
        self._session: PromptSession[str] = PromptSession(
            history=history, key_bindings=_keys(), enable_suspend=True, prompt_continuation=MORE
        )

    def read(self, *, more: bool = False) -> str:
        """A line, or several that were pasted or broken with Ctrl-J; ``more``: it continues what came before."""
        hint = MORE_PLACEHOLDER if more else PLACEHOLDER
        return self._session.prompt(MORE if more else PROMPT, placeholder=FormattedText([(_GREY, hint)]))


class LineHistory(History):
    """Plain lines in a file that only its user reads: the newest last, 100 at most; ``keep`` False: not written."""

    def __init__(self, path: Path, *, keep: bool = True) -> None:
        super().__init__()
        self._path, self.keep = path, keep
        self._lines = self._read()

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._lines)

    def store_string(self, string: str) -> None:
        if not self.keep:
            return
        self._lines = [*self._lines, *string.splitlines()][-MOST_ENTRIES:]
        with contextlib.suppress(OSError):  # a history that cannot be kept is no reason to stop talking
            self._write()

    def _read(self) -> list[str]:
        try:
            return self._path.read_text("utf-8", "replace").splitlines()[-MOST_ENTRIES:]
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

    def inserts(text: str) -> Callable[[KeyPressEvent], None]:
        return lambda event: event.current_buffer.insert_text(text)

    keys.add("tab")(inserts(TAB))
    keys.add("c-j")(inserts("\n"))

    @keys.add("c-g")
    def _edit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        run_in_terminal(lambda: edit(buffer))

    return keys


def edit(buffer: Buffer) -> None:
    """Take the buffer's text through the user's editor. An empty text changes nothing."""
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
