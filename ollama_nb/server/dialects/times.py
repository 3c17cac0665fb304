"""Times as Go prints them: RFC 3339 with as few fraction digits as needed, durations in nanoseconds.

Everywhere else in this program time is float seconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

_LONGEST = (1 << 63) - 1
_FOREVER = _LONGEST / 1e9


def nanoseconds(seconds: float) -> int:
    """A Go duration; for ever is the longest one, about 292 years."""
    return min(round(seconds * 1e9), _LONGEST) if seconds < _FOREVER else _LONGEST


def utc_now() -> str:
    """Now, in UTC, as ``2026-08-01T10:00:00.123456789Z``."""
    return utc(time.time_ns())


def utc(unix_ns: int) -> str:
    seconds, fraction = divmod(unix_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}{_fraction(fraction)}Z"


def local(unix_seconds: float) -> str:
    """With this machine's offset from UTC (``Z`` where that is zero); infinity is 292 years from now."""
    if unix_seconds >= _FOREVER:
        unix_seconds = time.time() + _FOREVER
    seconds, rest = divmod(unix_seconds, 1)
    moment = datetime.fromtimestamp(seconds, UTC).astimezone()
    offset = f"{moment:%z}"
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}"
    # A float holds the microseconds of a present-day time, not more.
    return f"{moment:%Y-%m-%dT%H:%M:%S}{_fraction(int(rest * 1e6) * 1000)}{zone}"


def _fraction(nanoseconds: int) -> str:
    return f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
