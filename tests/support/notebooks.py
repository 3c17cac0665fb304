"""What the example notebooks run with: a real server with an empty store, and answers shown once, at their end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from support.servers import clean_env, standalone

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"


@contextlib.contextmanager
def notebook_env(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of kernels, while a server below ``folder`` runs.

    The server keeps this user's home, so that pip finds its configuration and its cache there.
    """
    own = {
        "HOME": str(Path.home()),
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_NB_HOME": str(folder / "state"),
    }
    with standalone(folder / "server", env=own) as server:
        yield clean_env(folder, OLLAMA_HOST=server.url, OLLAMA_NB_STREAM="0")
