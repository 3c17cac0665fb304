"""Remove secrets from text before it is logged, reported or saved, and folders of this machine before it is sent."""

from __future__ import annotations

import logging
import os
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


def hide_folders(text: str, folders: Iterable[Path]) -> str:
    """The text with paths relative to ``folders``, and with ``~`` for the home folder.

    The path of such a folder itself becomes the folder's name.
    """
    home = Path.home()
    names: dict[str, str] = {}
    for folder in folders:
        for each in (folder, _resolved(folder)):
            below_home = [f"~/{each.relative_to(home)}"] if each.is_relative_to(home) else []
            names |= dict.fromkeys((str(each), *below_home), each.name)
    names |= {str(each): "~" for each in (home, _resolved(home)) if str(each) not in names}
    found = sorted((name for name in names if len(name) > 1), key=len, reverse=True)  # not "/" nor "~"
    pattern = rf"(?<![\w.~-])({'|'.join(map(re.escape, found))})(?![\w-])(/+(?=[\w.]))?"
    return re.sub(pattern, lambda path: _relative(names[path[1]], path[2]), text)


def _resolved(folder: Path) -> Path:
    return Path(os.path.realpath(folder))  # unlike Path.resolve, it does not fail for a loop of links


def _relative(name: str, slash: str | None) -> str:
    """What replaces a folder's path: ``name`` if the path ends here or is the home folder, else nothing."""
    return f"{name}{slash or ''}" if name == "~" or not slash else ""


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
