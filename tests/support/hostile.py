"""Values that a request should not contain, and what may answer them."""

from __future__ import annotations

import math
import os
from typing import Any

from hypothesis import strategies as st


def nested(kind: str, depth: int) -> Any:
    """A list or an object within itself."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308, math.nan, -math.inf,
    "", "-", "\0", "\ud800", "../../etc/passwd", "x" * 20_000, "{{ . }}" * 100, "((((" * 1000,
    [], [None], [0] * 1000, [[]], {}, {"": None}, {"a": [{}]}, nested("list", 60), nested("object", 60),
)  # fmt: skip
CASES = int(os.environ.get("HOSTILE_CASES", "0"))  # more generated values or sequences than `make test` has time for
NOT_OURS = {
    "source_error",
    "registry_unreachable",
    "access_denied",
    "credentials_required",
    "busy",
}  # codes of 5xx that others cause
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
