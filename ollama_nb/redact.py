"""Remove secrets from text before it is logged, reported or saved."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

HIDDEN = "***"
MIN_SECRET = 6  # characters; shorter values of variables are not searched for, because they also occur elsewhere
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|COOKIE", re.IGNORECASE)
_NOT_SECRET = {"ollama", "unused"}  # placeholders for clients that demand a key
_SHAPES = re.compile(
    r"(?P<login>://)[^\s/@\"']+(?=@)"
    r"|(?P<header>\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|digest)\s+)?)[^\s\"',]+"
    r"|(?P<scheme>\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}"
    r"|(?P<query>[?&](?:token|key|api_key|password|secret|access_token)=)[^&\s\"']+"
    r"|\b(?:onb_|hf_|sk-)[\w-]{6,}",
    re.IGNORECASE,
)
"""Passwords in addresses, authorization headers, secret query arguments, and keys by their prefix."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without secrets: those of a known shape, and the given ones."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(_hide, text)


def _hide(found: re.Match[str]) -> str:
    return (found[found.lastgroup] if found.lastgroup else "") + HIDDEN


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name probably has a secret value."""
    return _SECRET_NAME.search(name) is not None


def secrets_of(env: Mapping[str, str]) -> list[str]:
    """The values of an environment's secret variables, longest first."""
    found = {value.strip() for name, value in env.items() if is_secret_name(name)} - _NOT_SECRET
    return sorted((value for value in found if len(value) >= MIN_SECRET and not _is_path(value)), key=len, reverse=True)


def _is_path(value: str) -> bool:
    return value.startswith("/") and Path(value).exists()


class RedactingFormatter(logging.Formatter):
    """A log formatter whose lines, tracebacks included, have no secrets."""

    def __init__(self, layout: str, secrets: Iterable[str] = ()) -> None:
        super().__init__(layout)
        self._secrets = [*secrets]

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)
