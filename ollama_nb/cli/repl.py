"""The loop of a conversation: read, command or question, answer."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from ollama_nb.cli import attach, slash
from ollama_nb.cli.editor import Editor, LineHistory
from ollama_nb.cli.talk import Talk
from ollama_nb.errors import OllamaError
from ollama_nb.settings import Settings

QUOTES = '"""'
_HOW_TO_LEAVE = "Use Ctrl + d or /bye to exit."
_UPSTREAM = "An error occurred while processing your message. Please try again."


def converse(talk: Talk) -> None:
    """Talk until the user leaves. An error that is no fault of one message ends it."""
    talk.preload()
    talk.replay()
    editor = Editor(_history())
    while True:
        try:
            text = read_message(editor)
        except KeyboardInterrupt:
            print(_HOW_TO_LEAVE)
            continue
        except EOFError:
            return
        if slash.leaves(text):
            return
        _take(talk, editor, text)


def read_message(editor: Editor) -> str:
    """A line; or, between three quotes, several. Commands keep theirs, but for the text of ``/set system``."""
    line = editor.read()
    if line.startswith(QUOTES):
        return _quoted(line, lambda: editor.read(more=True))
    words = line.split(maxsplit=2)
    if words[:2] == ["/set", "system"] and len(words) > 2 and words[2].startswith(QUOTES):
        return f"/set system {_quoted(words[2], lambda: editor.read(more=True))}"
    return line


def _quoted(first: str, read: Callable[[], str]) -> str:
    """What stands between the quotes that ``first`` opens; more is read until they are closed."""
    text = first.removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text += "\n" + read()
    return text.rstrip().removesuffix(QUOTES)


def _take(talk: Talk, editor: Editor, text: str) -> None:
    def keep_history(keep: bool) -> None:
        editor.history.keep = keep

    if text.startswith("/"):
        if slash.handle(text, talk, keep_history):
            return
        if not (talk.takes_files and attach.begins_with_path(text)):
            print(slash.unknown(text))
            return
    if text.strip():
        _ask(talk, text)


def _ask(talk: Talk, text: str) -> None:
    images: list[str] = []
    if talk.takes_files:
        text, images = attach.extract(text)
    try:
        talk.ask(text, images)
    except KeyboardInterrupt:
        print()
    except OllamaError as error:
        if talk.is_about_thinking(error):
            print(f"error: {error.message}")
        elif error.status == HTTPStatus.BAD_GATEWAY:
            print(f"{_UPSTREAM}\n")
        else:
            raise


def _history() -> LineHistory:
    return LineHistory(Path.home() / ".ollama" / "history", keep=not Settings.from_env().no_history)
