"""``%ollama list``, ``ps`` and ``ps --batches`` as DataFrames that display themselves as the terminal program's tables.

Imported by the first list, because importing pandas takes more than half a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pandas as pd

from ollama_nb.notebook.tables import html_table, trimmed
from ollama_nb.verbs import present

_TIMES = ("modified_at", "expires_at", "created_at")
_DETAILS = ("family", "parameter_size", "quantization_level")
_NEVER = "9999-12-31T00:00:00+00:00"


class ModelsFrame(pd.DataFrame):
    """Installed models: name, size (bytes), family, parameter_size, quantization_level, modified_at, digest.

    A selection or another result of an operation is a plain DataFrame.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("name", "size", *_DETAILS, "modified_at", "digest")
    HEADER: ClassVar[tuple[str, ...]] = present.LIST_HEADER

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> ModelsFrame:
        """Create it from the entries of the server's list."""
        frame = cls([_flat(entry) for entry in entries], columns=[*cls.COLUMNS])
        for name in (name for name in _TIMES if name in cls.COLUMNS):
            frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601")
        return frame

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def __reduce__(self) -> Any:
        return (type(self), (pd.DataFrame(self),))

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table that is displayed."""
        return present.list_rows(self._entries())

    def _entries(self) -> list[dict[str, Any]]:
        return [{str(name): _to_json(value) for name, value in row.items()} for row in self.to_dict("records")]

    def _is_complete(self) -> bool:
        return set(self.COLUMNS) == set(self.columns)

    def __repr__(self) -> str:
        return trimmed(present.table(self.HEADER, self.rows())) if self._is_complete() else repr(pd.DataFrame(self))

    def _repr_html_(self) -> str | None:
        if not self._is_complete():
            return pd.DataFrame(self).to_html(notebook=True)
        return html_table(self.HEADER, self.rows())


class RunningFrame(ModelsFrame):
    """Models in memory: name, size and size_vram (bytes), context_length, slots, expires_at, digest."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "name", "size", "size_vram", "context_length", "slots", "expires_at", "digest",
    )  # fmt: skip
    HEADER: ClassVar[tuple[str, ...]] = present.RUNNING_HEADER

    def rows(self) -> list[tuple[str, ...]]:
        return present.running_rows(entry | {"expires_at": entry["expires_at"] or _NEVER} for entry in self._entries())


class BatchesFrame(ModelsFrame):
    """Unfinished batches: id, model, endpoint, status, total, completed and failed lines, created_at."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "id", "model", "endpoint", "status", "total", "completed", "failed", "created_at",
    )  # fmt: skip
    HEADER: ClassVar[tuple[str, ...]] = present.BATCHES_HEADER

    def rows(self) -> list[tuple[str, ...]]:
        return present.batch_rows(self._entries())


def _to_json(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return None if value is pd.NaT else value


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One row. Times that mean "never" or are outside pandas' range are missing."""
    details = entry.get("details") or {}
    row = {**{name: details.get(name, "") for name in _DETAILS}, **entry}
    return row | {name: None for name in _TIMES if not "0002" < str(row.get(name) or "") < "2262"}
