"""The activity widget: running and waiting requests and unfinished batches, without prompts, and a way to cancel."""

from __future__ import annotations

from ollama_nb.notebook.widgets.panel import PageMessage, Panel, source


class Activity(Panel):
    """Running and waiting requests (model, state, tokens, speed) and unfinished batches with their progress.

    It polls the server only while it is visible.
    """

    _esm = source("page.js", "activity.js")

    def do_hello(self, message: PageMessage) -> None:
        self.work(self._look)

    do_look = do_hello

    def do_cancel(self, message: PageMessage) -> None:
        """Cancel a request, if the page could not reach the server itself."""
        self.work(lambda: self._cancel(str(message["id"])))

    def do_cancel_batch(self, message: PageMessage) -> None:
        """Cancel a batch, if the page could not reach the server itself."""
        self.work(lambda: self._cancel_batch(str(message["id"])))

    def _cancel_batch(self, batch_id: str) -> None:
        self._find_server().cancel_batch(batch_id)
        self._look()

    def _cancel(self, request_id: str) -> None:
        self._find_server().cancel(request_id)
        self._look()

    def _look(self) -> None:
        queue = self._find_server().queue()
        self.post("queue", requests=queue["requests"], batches=queue.get("batches", []))
