"""Warnings that name the line of the caller outside of this package, also of a caller that awaits a thread."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

R = TypeVar("R")

_SKIPPED = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(asyncio.__file__).parent))
"""Folders whose frames are not the caller's."""

Held = list[tuple[str, type[Warning]]]
_held: ContextVar[Held | None] = ContextVar("ollama_nb_held_warnings", default=None)


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line that called this package; inside of :func:`hold`, keep the warning for later."""
    held = _held.get()
    if held is not None:
        held.append((message, category))
        return
    frame, level = sys._getframe(1), 2
    while frame.f_code.co_filename.startswith(_SKIPPED) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def hold(call: Callable[[], R], held: Held) -> R:
    """Run ``call`` in a thread on behalf of another one; its warnings are added to ``held``."""
    token = _held.set(held)
    try:
        return call()
    finally:
        _held.reset(token)
