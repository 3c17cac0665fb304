"""``list`` and ``ps`` as tables to go on with: pandas DataFrames that show themselves as the command line does.

Imported when the first list is asked for, because pandas takes its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pandas as pd

from ollama_nb.notebook.tables import Table, list_table, ps_table

_TIMES = ("modified_at", "expires_at")
_DETAILS = ("family", "parameter_size", "quantization_level")
_NEVER = "9999-12-31T00:00:00+00:00"


class ModelsFrame(pd.DataFrame):
    """Models on the disk: name, size (bytes), family, parameter_size, quantization_level, modified_at, digest.

    What is made of it (a selection, an order) is a DataFrame like any other.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("name", "size", *_DETAILS, "modified_at", "digest")

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> ModelsFrame:
        """From the objects of a server's list."""
        frame = cls([_flat(entry) for entry in entries], columns=[*cls.COLUMNS])
        for name in (name for name in _TIMES if name in cls.COLUMNS):
            frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601")
        return frame

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def __reduce__(self) -> Any:
        return (type(self), (pd.DataFrame(self),))

    def drawn(self) -> Table:
        """Its rows as the command line shows them."""
        return list_table(self._entries())

    def _entries(self) -> list[dict[str, Any]]:
        return [{str(name): _plain(value) for name, value in row.items()} for row in self.to_dict("records")]

    def _is_whole(self) -> bool:
        return set(self.COLUMNS) == set(self.columns)

    def __repr__(self) -> str:
        return repr(self.drawn()) if self._is_whole() else repr(pd.DataFrame(self))

    def _repr_html_(self) -> str | None:
        return self.drawn()._repr_html_() if self._is_whole() else pd.DataFrame(self).to_html(notebook=True)


class RunningFrame(ModelsFrame):
    """Models in memory: name, size and size_vram (bytes), context_length, slots, expires_at, digest."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "name", "size", "size_vram", "context_length", "slots", "expires_at", "digest",
    )  # fmt: skip

    def drawn(self) -> Table:
        return ps_table(entry | {"expires_at": entry["expires_at"] or _NEVER} for entry in self._entries())


def _plain(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return None if value is pd.NaT else value


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One row. A time that means "never", or one that pandas cannot count to, is missing."""
    details = entry.get("details") or {}
    row = {**{name: details.get(name, "") for name in _DETAILS}, **entry}
    return row | {name: None for name in _TIMES if not "0002" < str(row.get(name) or "") < "2262"}
