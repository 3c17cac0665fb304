"""Model names and digests, the only values from which paths in the store are built.

Grammar: ``[scheme://][host/][namespace/]model[:tag]``, parsed from the right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ollama_nb.errors import BadRequest, InvalidName

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_PART = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.:]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.]{0,79}"),
}
_MARKS = {"host": '"_", "-", "." and ":"', "namespace": '"_" and "-"'}
"""The characters that a part may contain besides letters and digits; model and tag: ``_``, ``-`` and ``.``."""
_MAX_SHOWN = 100  # characters of an invalid name in error messages
_LOGIN = re.compile(r"(?<=://)[^/@]*@")
"""A user name and a password in an address; they must not appear in error messages."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """A complete, valid model name. Parts keep their case; names are the same model if their ``key`` is equal."""

    model: str
    tag: str = DEFAULT_TAG
    namespace: str = DEFAULT_NAMESPACE
    host: str = DEFAULT_HOST
    scheme: str = "https"

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Parse a model name. Raises InvalidName with the part that is wrong and the reason."""
        name = cls._split(text)
        if why := name._fault():
            text = _LOGIN.sub("***@", text)[:_MAX_SHOWN]
            shown = f": {text}" if text.isprintable() else f": {text!r}"
            raise InvalidName(f"invalid model name{shown if text else ''} ({why})")
        return name

    @classmethod
    def fault(cls, text: str) -> str:
        """Why a name is not valid and what is allowed; empty for a valid one."""
        return cls._split(text)._fault()

    @classmethod
    def _split(cls, text: str) -> ModelName:
        scheme, found, rest = text.partition("://")
        if not found:
            scheme, rest = "https", text
        tag, host, namespace = DEFAULT_TAG, DEFAULT_HOST, DEFAULT_NAMESPACE
        if rest.rfind(":") > rest.rfind("/"):
            rest, _, tag = rest.rpartition(":")
        front, slash, model = rest.rpartition("/")
        if slash:
            host_text, slash, namespace = front.rpartition("/")
            host = host_text if slash else DEFAULT_HOST
        return cls(model, tag, namespace, host, scheme)

    def _fault(self) -> str:
        for part, pattern in _PART.items():
            text = getattr(self, part)
            if not pattern.fullmatch(text):
                return _fault(part, text)
        return ""

    @property
    def full(self) -> str:
        """``host/namespace/model:tag``, with all defaults."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The shortest form for display; it always has model and tag."""
        if self.host.lower() != DEFAULT_HOST:
            return self.full
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """Equal for names of the same model, in any letter case."""
        return self.full.lower()

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The folder names below ``manifests/``: host, namespace, model, tag."""
        return (self.host, self.namespace, self.model, self.tag)

    def with_parts(self, host: str, namespace: str, model: str, tag: str) -> ModelName:
        return replace(self, host=host, namespace=namespace, model=model, tag=tag)

    def __str__(self) -> str:
        return self.short


def _fault(part: str, text: str) -> str:
    """Why ``text`` is not valid as that part of a name."""
    allowed = _PART[part]
    if not text:
        return f"the {part} part is empty"
    if part == "host" and "/" in text:
        return 'too many "/": a name is [host/][namespace/]model[:tag]'
    for mark in text:
        if not allowed.fullmatch("_" + mark):
            shown = f'"{mark}"' if mark.isprintable() else repr(mark)
            marks = _MARKS.get(part, '"_", "-" and "."')
            return f"the {part} part may hold only A-Z, a-z, 0-9, {marks}, not {shown}"
    if not allowed.match(text):
        return f'the {part} part must begin with a letter, a digit or "_", not with "{text[0]}"'
    return f"the {part} part is too long: {len(text)} characters"


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest of a blob's content."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise BadRequest("invalid digest format")
        return cls(match[1].lower())

    @property
    def filename(self) -> str:
        return f"sha256-{self.hex}"

    @property
    def short(self) -> str:
        """The first twelve hex digits, as progress lines show them."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"
