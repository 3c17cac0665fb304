"""Runtime files: where a private server listens and with which key, for clients of the same user."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ollama_nb import __version__, disk


def write(path: Path, url: str, key: str) -> None:
    """Write ``{"url", "key", "pid", "build"}``, mode 0600. Raises StoreError."""
    described = {"url": url, "key": key, "pid": os.getpid(), "build": __version__}
    disk.write(path, json.dumps(described).encode(), mode=0o600)
