"""Reports requests as activity to Jupyter, so that culling of idle servers does not end a pull or a long reply.

Requests that only read the server's state (``/api/ps``, ``/metrics``, a page that shows the queue) do not count: they
would keep a server alive forever.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import UTC, datetime

from tornado.ioloop import PeriodicCallback

from ollama_nb.server.state import ServerState

NAME = "ollama_nb"
BEAT_SECONDS = 10.0  # between two reports of a running request


class ActivityReporter:
    """Writes the time into Jupyter's ``last_activity_times`` when work begins and ends, and regularly meanwhile."""

    def __init__(self, state: ServerState, times: MutableMapping[str, datetime]) -> None:
        self._state, self._times = state, times
        self._beat = PeriodicCallback(self.beat, BEAT_SECONDS * 1000)

    def start(self) -> None:
        self._state.on_work = self._mark
        self._beat.start()

    def stop(self) -> None:
        self._beat.stop()

    def beat(self) -> None:
        if self._state.working:
            self._mark()

    def _mark(self) -> None:
        self._times[NAME] = datetime.now(UTC)
