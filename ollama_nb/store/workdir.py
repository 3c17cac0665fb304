"""Temporary folders of jobs that may be killed: a folder is locked while it is in use, so that others can be removed.

They are in ``tmp`` of this program's state folder, never in a model store.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ollama_nb import disk

PREFIX = "ollama-nb-"  # start of the names of all temporary folders


@contextlib.contextmanager
def locked_workdir(parent: Path, job: str) -> Iterator[Path]:
    """Create a folder in ``parent``, removed at the end of the block; folders of killed processes are removed first.

    Raises StoreError.
    """
    with contextlib.ExitStack() as held:
        with disk.store_errors("work in", parent):
            parent.mkdir(0o700, parents=True, exist_ok=True)
            with disk.folder_lock(parent):  # other processes cannot see the new folder before it is locked
                _sweep(parent)
                created = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{job}-", dir=parent, ignore_cleanup_errors=True)
                folder = Path(held.enter_context(created))
                with contextlib.suppress(OSError):  # a file system without locks
                    held.enter_context(_exclusive(folder))
        yield folder


def remove_stale(parent: Path) -> None:
    """Remove the folders of killed processes. Raises StoreError."""
    if parent.is_dir():
        with disk.store_errors("work in", parent), disk.folder_lock(parent):
            _sweep(parent)


def _sweep(parent: Path) -> None:
    for abandoned in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _exclusive(abandoned):
            shutil.rmtree(abandoned, ignore_errors=True)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock ``folder``. Raises OSError if another process uses it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
