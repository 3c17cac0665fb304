"""Wheels made by hand, valid and invalid, in a folder that pip can use instead of an index."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path


def make_wheel(
    folder: Path,
    members: Mapping[str, bytes],
    *,
    name: str = "tiny-model",
    version: str = "1.0",
    hashes: Mapping[str, bytes | None] | None = None,
    licenses: Mapping[str, bytes] | None = None,
    record: bytes = b"",
) -> Path:
    """Write a wheel with these members.

    ``hashes`` replaces the content that RECORD hashes for a path (None omits its line), ``record`` all of RECORD.
    """
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = dict(members)
    files |= {f"{info}/{path}": text for path, text in (licenses or {}).items()}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    lines = "".join(_line(path, (hashes or {}).get(path, data), len(data)) for path, data in files.items())
    files[f"{info}/RECORD"] = record or (lines + f"{info}/RECORD,,\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    return path


def _line(path: str, content: bytes | None, size: int) -> str:
    if content is None:
        return ""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{path},sha256={digest},{size}\n"
