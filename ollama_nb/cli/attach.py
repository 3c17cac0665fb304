"""Paths of pictures and sounds in a message: loaded, and taken out of the text (models that see or hear only)."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollama_nb.errors import BadRequest

MOST_BYTES = 100 * 1024 * 1024
_PATH = re.compile(r"(?:[a-zA-Z]:)?(?:\./|/|\\)[\S\\ ]+?\.(?:jpg|jpeg|png|webp|wav)\b", re.IGNORECASE)
# What a terminal puts a backslash before when a file is dropped on it.
_ESCAPED = re.compile(r"\\([ ()\[\]{}$&;'\\*?~])")
_SNIFFED = 512


def takes_files(info: Mapping[str, Any]) -> bool:
    """Whether the model that ``/api/show`` describes sees or hears."""
    known = {"vision", "audio"} & {*(info.get("capabilities") or ())}
    return bool(known or info.get("projector_info") or any(".vision." in key for key in info.get("model_info") or ()))


def begins_with_path(text: str) -> bool:
    """Whether a line that looks like a command is a path."""
    return _PATH.match(text) is not None


def extract(text: str) -> tuple[str, list[str]]:
    """The text without the paths of existing files, and those files in base64. Raises BadRequest for other kinds."""
    files = []
    for written in dict.fromkeys(_PATH.findall(text)):
        path = Path(_ESCAPED.sub(r"\1", written))
        if not path.is_file():
            continue
        kind, data = _load(path)
        print(f"Added {kind} '{path}'", file=sys.stderr)
        text = text.replace(f"'{path}'", "").replace(f"'{written}'", "").replace(written, "")
        files.append(base64.b64encode(data).decode("ascii"))
    return (text.strip() if files else text), files


def _load(path: Path) -> tuple[str, bytes]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadRequest("file size exceeds maximum limit (100MB)")
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f'Couldn\'t process file: "{path}: {error.strerror}"') from None
    return _kind(data[:_SNIFFED]), data


def _kind(start: bytes) -> str:
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (start[:4] == b"RIFF" and start[8:14] == b"WEBPVP"):
        return "image"
    if start[:4] == b"RIFF" and start[8:12] == b"WAVE":
        return "audio"
    looks = "text/plain; charset=utf-8" if b"\0" not in start else "application/octet-stream"
    raise BadRequest(f"invalid file type: {looks}")
