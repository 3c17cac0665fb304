"""Work in progress is activity: whoever ends idle Jupyter servers must not end a pull or a long answer.

Only requests that do something count. Whoever watches (``/api/ps``, ``/metrics``, a page that shows the queue) would
else keep a server alive for ever.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import UTC, datetime

from tornado.ioloop import PeriodicCallback

from ollama_nb.server.state import ServerState

NAME = "ollama_nb"
BEAT_SECONDS = 10.0


class ActivityReporter:
    """Writes the time into Jupyter's ``last_activity_times`` as work begins, goes on and ends."""

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
