"""Large images in JSON bodies. They are cut out and decoded piece by piece before the body is parsed.

The parser reads a string in one step, in which no other thread runs: about a second for the largest images. What is
left of a body without its images is small enough for it.
"""

from __future__ import annotations

import binascii
import re
import secrets
from dataclasses import dataclass
from typing import Any

LARGE = 64 << 10  # characters; shorter strings remain in the body
_STEP = LARGE // 2  # a string of LARGE characters fills a step at least
_PIECE = 1 << 20  # base64 characters that are decoded at once; a multiple of 4
_HEAD = re.compile(rb"(?:data:[\w/+.-]{1,64};base64,)?")
_FIELDS = frozenset({"messages", "images", "content", "source", "image_url", "data", "url"})
"""The fields that lead to images in all APIs. Elsewhere, as in the arguments of a tool call, a text remains a text."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A base64 string of a body: its decoded ``data``, and the ``head`` of a data URL, which may be empty."""

    head: str
    data: bytes

    def text(self) -> str:
        """The string."""
        step = _PIECE // 4 * 3
        pieces = (self.data[at : at + step] for at in range(0, len(self.data), step))
        return self.head + b"".join(binascii.b2a_base64(piece, newline=False) for piece in pieces).decode("ascii")


def cut_images(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, EncodedImage]]:
    """Replace the large base64 strings of a JSON text by short keys; return it, and the strings by key."""
    parts: list[bytes | bytearray] = []
    images: dict[str, EncodedImage] = {}
    mark = secrets.token_hex(16)  # no client can guess a key
    rest = at = 0
    while at + _STEP <= len(body):
        if body.find(b'"', at, at + _STEP) >= 0:
            at += _STEP
            continue
        start, end = body.rfind(b'"', rest, at) + 1, body.find(b'"', at + _STEP)
        if end < 0:
            break
        if start > rest and end - start >= LARGE and body[start - 2] != ord("\\"):
            image = _decoded(body, start, end)
            if image is not None:
                key = f"{mark}{len(images)}"
                images[key] = image
                parts += [body[rest:start], key.encode()]
                rest = end
        at = end + 1
    return (b"".join([*parts, body[rest:]]), images) if images else (body, images)


def put_images(value: Any, images: dict[str, EncodedImage], *, may_be_image: bool = True) -> Any:
    """Put the images back into a parsed value, as objects where the APIs have images and as texts elsewhere."""
    if isinstance(value, str):
        image = images.get(value)
        if image is None:
            return value
        return image if may_be_image else image.text()
    if isinstance(value, dict):
        return {
            put_images(key, images, may_be_image=False): put_images(
                item, images, may_be_image=may_be_image and key.lower() in _FIELDS
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [put_images(item, images, may_be_image=may_be_image) for item in value]
    return value


def _decoded(body: bytes | bytearray, start: int, end: int) -> EncodedImage | None:
    """The image in a string; None if it is not canonical base64, so that it remains a text."""
    head = _HEAD.match(body, start, end)
    first = head.end() if head else start
    data = bytearray()
    for at in range(first, end, _PIECE):
        piece = body[at : min(at + _PIECE, end)]
        is_last = at + _PIECE >= end
        try:
            decoded = binascii.a2b_base64(piece, strict_mode=True)
        except binascii.Error:
            return None
        if b"=" in piece and not (is_last and binascii.b2a_base64(decoded, newline=False) == piece):
            return None
        data += decoded
    return EncodedImage(bytes(body[start:first]).decode("ascii"), data)  # type: ignore[arg-type]
