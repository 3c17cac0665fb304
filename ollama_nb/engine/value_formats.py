"""The formats of strings in JSON Schemas, as patterns of bounded length that common readers accept as a whole.

A pattern is narrower than the standard of its format where readers differ. It allows only values that Pydantic, msgspec
and Python's own parsers read: existing dates from year 1 on, no leap second, ``T`` and ``Z`` in capitals, host names
that cannot be mistaken for addresses or punycode. Every part has a most length, so that each value ends.
"""

from __future__ import annotations

from typing import NamedTuple

# Most characters of parts without a length of their own
_NUMBER = 4  # digits of a number in a duration
_SUBSECOND = 6  # digits after the second: microseconds, as in Python
_LABEL = 25  # letters and digits in a part of a host name; hyphens between them come on top
_LABELS = 4  # parts of a host name before its last one; with them it has 253 characters at most
_LOCAL = 32  # characters of a mailbox besides points
_TOP = 12  # letters of a top-level domain
_SEGMENT, _SEGMENTS = 100, 16  # characters in a part of a path, and parts
_QUERY, _FRAGMENT = 256, 64
_SCHEME = 12
_BASE64 = 256  # groups of four characters
_DECIMAL = 18  # digits before the point, and after it

RESERVED_DOMAINS = ("arpa", "invalid", "local", "localhost", "onion", "test")  # refused by email-validator


def _letters_except(words: tuple[str, ...], most: int) -> str:
    """Return a pattern for 2 to ``most`` ASCII letters except ``words``, in any case."""
    options = []
    prefixes = sorted({word[:length] for word in words for length in range(len(word))})
    for prefix in prefixes:
        spelled = "".join(f"[{letter}{letter.upper()}]" for letter in prefix)
        following = {word[len(prefix)] for word in words if word.startswith(prefix) and len(word) > len(prefix)}
        others = "".join(letter + letter.upper() for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in following)
        least = max(0, 1 - len(prefix))
        options.append(f"{spelled}[{others}][a-zA-Z]{{{least},{most - len(prefix) - 1}}}")
        if len(prefix) >= 2 and prefix not in words:
            options.append(spelled)
    for word in words:  # words that begin with another one
        spelled = "".join(f"[{letter}{letter.upper()}]" for letter in word)
        if word not in prefixes:
            options.append(f"{spelled}[a-zA-Z]{{1,{most - len(word)}}}")
    return f"(?:{'|'.join(options)})"


_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_TIME = f"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{{1,{_SUBSECOND}}})?"
_ZONE = "(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9]|[+-]14:00)"


def _units(names: str) -> str:
    """Return a pattern for numbers with consecutive units: ``1H``, ``1H30M``, ``30M5S``, but not ``1H5S``."""
    options = []
    for first in range(len(names)):
        rest = ""
        for name in reversed(names[first + 1 :]):
            rest = f"(?:[0-9]{{1,{_NUMBER}}}{name}{rest})?"
        options.append(f"[0-9]{{1,{_NUMBER}}}{names[first]}{rest}")
    return f"(?:{'|'.join(options)})"


_DURATION = f"P(?:{_units('YMD')}(?:T{_units('HMS')})?|T{_units('HMS')}|[0-9]{{1,{_NUMBER}}}W)"

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"(?:{_OCTET}\\.){{3}}{_OCTET}"
_HEX = "[0-9a-fA-F]{1,4}"


def _ipv6() -> str:
    options = [f"(?:{_HEX}:){{7}}{_HEX}", f"::(?:{_HEX}(?::{_HEX}){{0,6}})?"]
    options += [f"{_HEX}(?::{_HEX}){{{n - 1}}}::(?:{_HEX}(?::{_HEX}){{0,{6 - n}}})?" for n in range(1, 7)]
    return f"(?:{'|'.join(options)}|{_HEX}(?::{_HEX}){{6}}::)"


_IPV6 = _ipv6()
_PREFIX4, _PREFIX6 = "/(?:3[0-2]|[12]?[0-9])", "/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
_WHOLE4, _WHOLE6 = f"{_IPV4}(?:/32)?", f"{_IPV6}(?:/128)?"  # a network without host bits
_NETWORK4 = f"(?:{_OCTET}\\.0\\.0\\.0/(?:3[0-2]|2[0-9]|1[0-9]|[89])|(?:{_OCTET}\\.){{3}}0/(?:3[0-2]|2[4-9])|{_WHOLE4})"
_NETWORK6 = f"(?:(?:{_HEX}:){{1,3}}:/(?:12[0-8]|1[01][0-9]|[5-9][0-9]|4[89])|{_WHOLE6})"


def _uuid(version: str) -> str:
    hexadecimal = "[0-9a-fA-F]"
    last = f"{version}{hexadecimal}{{3}}-[89abAB]" if version else f"{hexadecimal}{{4}}-{hexadecimal}"
    return f"{hexadecimal}{{8}}-{hexadecimal}{{4}}-{last}{hexadecimal}{{3}}-{hexadecimal}{{12}}"


_ALPHANUMERIC = "[a-zA-Z0-9]"
_LABEL_PATTERN = f"{_ALPHANUMERIC}(?:-?{_ALPHANUMERIC}){{0,{_LABEL - 1}}}"
_LAST_LABEL = f"[a-zA-Z](?:-?{_ALPHANUMERIC}){{0,{_LABEL - 1}}}"  # one that begins with a digit might be an address
_HOSTNAME = f"(?:{_LABEL_PATTERN}\\.){{0,{_LABELS}}}{_LAST_LABEL}"
_ATOM = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]"
_EMAIL = (
    f"{_ATOM}(?:\\.?{_ATOM}){{0,{_LOCAL - 1}}}@(?:{_LABEL_PATTERN}\\.){{1,{_LABELS - 1}}}"
    f"{_letters_except(RESERVED_DOMAINS, _TOP)}"
)  # 63 + 1 + 3 * 50 + 12 characters at most, of the 254 that a mailbox may have

_PORT = "(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_CHARACTER = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
PATH_AND_QUERY = (
    f"(?:/{_CHARACTER}{{0,{_SEGMENT}}}){{0,{_SEGMENTS}}}(?:\\?(?:{_CHARACTER}|[/?]){{0,{_QUERY}}})?"
    f"(?:#{_CHARACTER}{{0,{_FRAGMENT}}})?"
)
HOST_AND_PORT = f"(?:{_HOSTNAME}|{_IPV4})(?::{_PORT})?"
_URI = (
    f"(?:{_letters_except(('file', 'mailto', 'urn', 'tel'), _SCHEME)}://{HOST_AND_PORT}{PATH_AND_QUERY}"
    f"|file://(?:/{_CHARACTER}{{1,{_SEGMENT}}}){{1,{_SEGMENTS}}}"
    f"|mailto:{_EMAIL}|tel:\\+?[0-9](?:-?[0-9]){{1,19}}"
    f"|urn:[a-zA-Z][a-zA-Z0-9]{{1,15}}:(?:[a-zA-Z0-9._:-]){{1,{_SEGMENT}}})"
)


def _base64(letters: str) -> str:
    """Return a pattern for whole groups of four; the unused bits of the last one are zero."""
    return f"(?:{letters}{{4}}){{0,{_BASE64}}}(?:{letters}[AQgw]==|{letters}{{2}}[AEIMQUYcgkosw048]=)?"


FORMATS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME + _ZONE,
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "partial-time": _TIME,
    "partial-date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": _EMAIL,
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipv4interface": f"{_IPV4}(?:{_PREFIX4})?",
    "ipv6interface": f"{_IPV6}(?:{_PREFIX6})?",
    "ipvanyinterface": f"(?:{_IPV4}(?:{_PREFIX4})?|{_IPV6}(?:{_PREFIX6})?)",
    "ipv4network": _NETWORK4,
    "ipv6network": _NETWORK6,
    "ipvanynetwork": f"(?:{_NETWORK4}|{_NETWORK6})",
    "uuid": _uuid(""),
    **{f"uuid{version}": _uuid(str(version)) for version in range(1, 9)},
    "uri": _URI,
    "base64": _base64("[A-Za-z0-9+/]"),
    "base64url": _base64("[A-Za-z0-9_-]"),
    "decimal": f"-?(?:0|[1-9][0-9]{{0,{_DECIMAL - 1}}})(?:\\.[0-9]{{1,{_DECIMAL}}})?",
    "fraction": f"-?(?:0|[1-9][0-9]{{0,{_DECIMAL - 1}}})(?:/[1-9][0-9]{{0,{_DECIMAL - 1}}})?",
    "color": "#[0-9a-fA-F]{6}",
}
"""Name → pattern of the whole string. Other formats are annotations: they constrain nothing, and a request gets a
warning. The names are those of JSON Schema and Pydantic, and ``partial-date-time``: without a time zone."""


class ValueLimits(NamedTuple):
    """Limits of numbers within bounds; those of other numbers are in ``json_watch.py``."""

    integer: int = 9_200_000_000_000_000_000  # absolute value of an integer; it fits into 64 bits
    decimals: int = 10  # digits after the point
    step: float = 1e-10  # between neighbouring numbers with these digits
    exact: int = 10_000  # absolute value up to which doubles keep them


LIMITS = ValueLimits()
