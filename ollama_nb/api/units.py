"""Sizes, counts and times in the form in which Ollama shows them to users."""

from __future__ import annotations

import re

from ollama_nb.errors import BadRequest

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def byte_size(text: str) -> int:
    """The number of bytes in ``100MB``, ``1.5GiB`` or ``64000``. Raises BadRequest."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadRequest(f'invalid size "{text}": write it as 100MB or 64MiB')
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))


def human_bytes(size: int) -> str:
    """A size in decimal units: ``999 B``, ``1.2 KB``, ``42 GB``."""
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
    """A parameter count: ``8B``, ``2.9B``, ``134.52M``, ``260K``."""
    for size, digits, unit in ((1_000_000_000, 1, "B"), (1_000_000, 2, "M"), (1_000, 0, "K")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value.is_integer() else f"{value:.{digits}f}{unit}"
    return str(count)


def human_time(seconds: float) -> str:
    """A time relative to now, given in seconds from now: ``2 minutes ago``, ``4 minutes from now``, ``Forever``."""
    if seconds > 20 * 365 * 86400:
        return "Forever"
    return f"{_human_duration(abs(seconds))} {'from now' if seconds > 0 else 'ago'}"


def _human_duration(seconds: float) -> str:
    whole, minutes, hours = int(seconds), int(seconds / 60), int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for limit, size, unit in ((48, 1, "hours"), (336, 24, "days"), (1440, 168, "weeks"), (17520, 720, "months")):
        if hours < limit:
            return f"{hours // size} {unit}"
    return f"{int(seconds / 3600) // 24 // 365} years"
