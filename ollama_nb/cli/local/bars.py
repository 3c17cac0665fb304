"""Progress of work in this process, drawn: one bar per status that has a total, one line for the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ollama_nb.api import events
from ollama_nb.cli.bars import Bar
from ollama_nb.cli.progress import Progress


@contextlib.contextmanager
def shown() -> Iterator[events.Report]:
    """A ``report`` for the service; the lines stay when the block ends."""
    with Progress() as progress:
        bars: dict[tuple[str, str], Bar] = {}

        def report(line: events.Progress) -> None:
            key = (line.status, line.digest)
            bar = bars.get(key)
            if bar is None:
                bar = bars[key] = progress.bar(f"{line.status}:", line.total)
            bar.set(line.completed)
            progress.touch(bar)

        yield report
