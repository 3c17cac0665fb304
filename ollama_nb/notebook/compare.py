"""``%ollama compare``: send one prompt to several models and stream their answers side by side."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from ollama_nb.client.client import Client
from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.notebook.display import CellAnswer, Interrupted, current_cell, follow, is_notebook, was_just_shown
from ollama_nb.notebook.line import Line
from ollama_nb.notebook.render import footer, reply_html, reply_plain
from ollama_nb.notebook.reply import BROKEN, ReplyState
from ollama_nb.notebook.session import MagicsSession
from ollama_nb.notebook.talk import INTERRUPTED, output_variable, parse_question, text_of

_GRID = "display: grid; gap: 1.2em; grid-template-columns: repeat(auto-fit, minmax(16em, 1fr)); align-items: start"
_HEAD = "font-weight: bold; border-bottom: 1px solid var(--jp-border-color2, #bdbdbd); margin-bottom: 0.4em"
_CELL = "min-width: 0; overflow-wrap: anywhere"


class ComparisonPage:
    """A page of several replies. Its chunks are ``{"column": NUMBER, "chunk": OBJECT or "error": TEXT}``."""

    def __init__(self, replies: Sequence[ReplyState]) -> None:
        self.replies = replies

    def feed(self, chunk: Mapping[str, Any]) -> None:
        reply = self.replies[chunk["column"]]
        if "error" in chunk:
            reply.fail()
            reply.notes.append(str(chunk["error"]))
        else:
            reply.feed(chunk["chunk"])

    def interrupt(self) -> None:
        for reply in self.replies:
            if not reply.reason:
                reply.interrupt()

    fail = interrupt

    def html(self) -> str:
        cells = "".join(
            f'<div style="{_CELL}"><div style="{_HEAD}">{escape(reply.model)}</div>{reply_html(reply)}</div>'
            for reply in self.replies
        )
        return f'<div style="{_GRID}">{cells}</div>'

    def plain(self) -> str:
        return "\n\n".join(f"{reply.model}\n{'-' * len(reply.model)}\n{reply_plain(reply)}" for reply in self.replies)

    def log(self) -> str:
        """A terminal cannot show columns, so nothing is printed until all replies are complete."""
        return f"{self.plain()}\n" if all(reply.reason for reply in self.replies) else ""


class Comparison(dict[str, CellAnswer]):
    """The answers by model, displayed side by side."""

    def __init__(self, page: ComparisonPage) -> None:
        super().__init__({reply.model: CellAnswer(reply) for reply in page.replies})
        self._page, self._shown_at = page, current_cell()

    def _ipython_display_(self) -> None:
        if not was_just_shown(self._shown_at):
            data = {"text/html": self._page.html(), "text/plain": self._page.plain()}
            publish_display_data(data)  # type: ignore[no-untyped-call]
        elif not is_notebook(get_ipython()):
            print(" | ".join(map(footer, self._page.replies)))


class MergedStreams(Iterator[Mapping[str, Any]]):
    """Several streams as one, each read by a thread of its own. Closing it closes all connections."""

    def __init__(self, starts: Sequence[tuple[Client, Callable[[Client], Iterator[Mapping[str, Any]]]]]) -> None:
        self._chunks: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._clients = [client for client, _ in starts]
        self._left = len(starts)
        for column, (client, start) in enumerate(starts):
            threading.Thread(target=self._read, args=(column, client, start), daemon=True, name="ollama-nb").start()

    def __next__(self) -> Mapping[str, Any]:
        while self._left:
            chunk = self._chunks.get()
            if chunk is not None:
                return chunk
            self._left -= 1
        raise StopIteration

    def close(self) -> None:
        for client in self._clients:
            client.hang_up()

    def _read(self, column: int, client: Client, start: Callable[[Client], Iterator[Mapping[str, Any]]]) -> None:
        try:
            for chunk in start(client):
                self._chunks.put({"column": column, "chunk": chunk})
        except OllamaError as error:
            self._chunks.put({"column": column, "error": error.message})
        finally:
            self._chunks.put(None)


def compare(session: MagicsSession, line: Line, cell: str | None) -> Comparison:
    """Ask all models at the same time. The error of a model is shown in its column."""
    models, prompt, output = line.words, text_of(line, cell), output_variable(line)
    if not prompt:
        raise BadRequest("no prompt: `%ollama compare MODEL MODEL your question`")
    if len(set(models)) < len(models):
        raise BadRequest("a model cannot be compared with itself: name each model once")
    question = parse_question(session, line)
    fields = question.fields | ({"system": question.system_text} if question.system_text else {})
    if question.images:
        fields["images"] = question.images
    server = session.connect()

    def request(model: str) -> tuple[Client, Callable[[Client], Iterator[Mapping[str, Any]]]]:
        return server.twin(), lambda client: client.generate(model, prompt, stream=True, truncate=False, **fields)

    hide = line.has("--hidethinking")
    page = ComparisonPage(
        [ReplyState(model, show_thinking=not hide, verbose=line.has("--verbose")) for model in models]
    )
    try:
        follow(lambda: MergedStreams([request(model) for model in models]), page, session.screen())
    except Interrupted:
        session.keep(("_ollama", output), Comparison(page))
        raise Interrupted(INTERRUPTED) from None
    if all(reply.reason == BROKEN for reply in page.replies):
        raise OllamaError("all models failed")
    found = Comparison(page)
    session.keep(("_ollama", output), found)
    return found
