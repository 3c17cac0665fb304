"""``WWW-Authenticate`` read, and the address where a token is asked for. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

# Between two things stands one class of characters only: two runs of spaces in a row would take quadratic time.
_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$)(?!=)")
_PARAMETER = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]*))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server wants: ``scheme`` in lower case, parameters by their lower-case names."""

    scheme: str
    parameters: Mapping[str, str]

    def get(self, name: str) -> str:
        return self.parameters.get(name, "")


def parse(header: str) -> tuple[Challenge, ...]:
    """All challenges of a header; what cannot be read ends the list."""
    found: list[Challenge] = []
    at = 0
    while match := _SCHEME.match(header, at):
        at = match.end()
        parameters: dict[str, str] = {}
        while pair := _PARAMETER.match(header, at):
            quoted = pair[2] is not None
            parameters.setdefault(pair[1].lower(), re.sub(r"\\(.)", r"\1", pair[2]) if quoted else pair[3])
            at = pair.end()
        found.append(Challenge(match[1].lower(), parameters))
    return tuple(found)


def token_url(challenge: Challenge, extra: Iterable[tuple[str, str]] = ()) -> str:
    """The realm with service and scopes as its query, keys sorted."""
    realm = challenge.get("realm")
    pairs = [("scope", scope) for scope in challenge.get("scope").split()]
    if challenge.get("service"):
        pairs.append(("service", challenge.get("service")))
    pairs += extra
    query = urlencode(sorted(pairs, key=lambda pair: pair[0]))
    return f"{realm}{'&' if urlsplit(realm).query else '?'}{query}" if query else realm
