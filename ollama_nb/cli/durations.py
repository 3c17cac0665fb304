"""Durations as Go prints them, and the figures that `--verbose` shows after an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SECOND, _MILLI, _MICRO = 1_000_000_000, 1_000_000, 1_000


def go_duration(nanoseconds: int) -> str:
    """``1h1m1.005s``, ``1.5ms``, ``1.5µs``, ``0s``: no zeros at the end, no units that are not there."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for size, unit in ((_MICRO, "ns"), (_MILLI, "µs"), (_SECOND, "ms")):
        if rest < size:
            return f"{sign}{_decimal(rest, size // 1000)}{unit}"
    minutes, rest = divmod(rest, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    return (
        sign
        + (f"{hours}h" if hours else "")
        + (f"{minutes}m" if hours or minutes else "")
        + f"{_decimal(rest, _SECOND)}s"
    )


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def summary(final: Mapping[str, Any]) -> str:
    """The statistics of an answer's last object; lines without a value are left out."""
    rows: list[tuple[str, str]] = []
    for label, key in (("total", "total_duration"), ("load", "load_duration")):
        if final.get(key):
            rows.append((f"{label} duration:", go_duration(final[key])))
    for label, key in (("prompt eval", "prompt_eval"), ("eval", "eval")):
        count, nanoseconds = final.get(f"{key}_count") or 0, final.get(f"{key}_duration") or 0
        if count:
            rows.append((f"{label} count:", f"{count} token(s)"))
        if nanoseconds:
            rows.append((f"{label} duration:", go_duration(nanoseconds)))
            rows.append((f"{label} rate:", f"{count / nanoseconds * _SECOND:.2f} tokens/s"))
    if drafted := final.get("drafted_tokens"):
        accepted = final.get("accepted_tokens") or 0
        rows.append(("draft accept rate:", f"{accepted / drafted:.0%} ({accepted} of {drafted} tokens)"))
    return "".join(f"{label:<21} {value}\n" for label, value in rows)
