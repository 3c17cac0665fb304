"""The journal of child processes that ended unexpectedly, which outlives the server.

``crashes.jsonl`` in the state folder has one JSON object per line, the latest last: ``time``, ``process`` (the module
that it ran), ``pid``, ``cause`` and the last lines of its output. :mod:`ollama_nb.runner.children` logs such an end
with these fields; a handler of the log writes them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ollama_nb.redact import redact, secrets_of

KEPT = 50  # crashes in the journal
OUTPUT_LINES = 5  # of a crashed process that are kept
LOGGER = logging.getLogger("ollama_nb.runner")
"""Where children log their end."""


def journal(home: Path) -> Path:
    """The journal's file in the state folder ``home``."""
    return home / "crashes.jsonl"


def read_crashes(home: Path) -> list[dict[str, Any]]:
    """The recorded crashes, the latest last. Lines that are not valid are skipped."""
    found = []
    with contextlib.suppress(OSError):
        for line in journal(home).read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and {"time", "process", "cause"} <= entry.keys():
                    found.append(entry)
    return found


class CrashJournal(logging.Handler):
    """Records the ends of children that are logged with the attribute ``crash``, at most ``KEPT`` of them."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = home

    def open(self) -> None:
        """Record from now on."""
        LOGGER.addHandler(self)

    def close(self) -> None:
        LOGGER.removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        crash: Mapping[str, Any] | None = getattr(record, "crash", None)
        if crash is None:
            return
        output = str(crash.get("output", "")).splitlines()[-OUTPUT_LINES:]
        entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **crash, "output": output}
        line = redact(json.dumps(entry, ensure_ascii=False), secrets_of(os.environ))
        with contextlib.suppress(OSError):  # a journal that cannot be written must not fail a request
            self._write(line)

    def _write(self, line: str) -> None:
        path = journal(self._home)
        old = path.read_text("utf-8", "replace").splitlines()[-KEPT + 1 :] if path.exists() else []
        temp = path.with_name(f".{path.name}-{os.getpid()}")
        temp.unlink(missing_ok=True)
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join([*old, line]) + "\n")
        temp.replace(path)
