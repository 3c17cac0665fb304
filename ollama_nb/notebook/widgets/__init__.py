"""Widgets: ``Chat``, ``Models``, ``Activity``. Python beside plain JavaScript and CSS, nothing to build.

Rule: work runs in threads and pages are told by messages, so a widget lives on while a cell runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollama_nb.notebook.widgets.activity import Activity
    from ollama_nb.notebook.widgets.chat import Chat
    from ollama_nb.notebook.widgets.manager import Models

__all__ = ["Activity", "Chat", "Models"]

_HOMES = {"Activity": "activity", "Chat": "chat", "Models": "manager"}


def __getattr__(name: str) -> Any:
    # ipywidgets costs a quarter of a second: only those who open a widget pay it.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
