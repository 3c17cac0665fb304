"""Sizes and counts as people read them (contract: cli.md §6.2)."""

from __future__ import annotations


def human_bytes(size: int) -> str:
    """Decimal units: ``999 B``, ``1.2 KB``, ``42 GB``."""
    if size < 1000:
        return f"{size} B"
    value, unit = float(size), ""
    for unit in ("KB", "MB", "GB", "TB"):
        value /= 1000
        if value < 1000 or unit == "TB":
            break
    if value >= 10:
        return f"{int(value)} {unit}"
    return f"{int(value)} {unit}" if value.is_integer() else f"{value:.1f} {unit}"


def human_number(count: int) -> str:
    """Parameter counts: ``8B``, ``2.9B``, ``134.52M``, ``260K``."""
    for size, digits, unit in ((1_000_000_000, 1, "B"), (1_000_000, 2, "M"), (1_000, 0, "K")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value.is_integer() else f"{value:.{digits}f}{unit}"
    return str(count)
