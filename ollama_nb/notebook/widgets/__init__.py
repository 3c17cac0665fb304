"""The widgets ``Chat``, ``Models`` and ``Activity``: Python with plain JavaScript and CSS, without a build step.

Work runs in threads and reaches the page as messages, so widgets keep working while a cell runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollama_nb.notebook.widgets.activity import Activity
    from ollama_nb.notebook.widgets.chat import Chat
    from ollama_nb.notebook.widgets.manager import Models

__all__ = ["Activity", "Chat", "Models"]


def __getattr__(name: str) -> Any:
    # Importing ipywidgets takes a quarter of a second, so it is left to the first use of a widget.
    if name == "Activity":
        from ollama_nb.notebook.widgets.activity import Activity  # with ipywidgets

        return Activity
    if name == "Chat":
        from ollama_nb.notebook.widgets.chat import Chat  # with ipywidgets

        return Chat
    if name == "Models":
        from ollama_nb.notebook.widgets.manager import Models  # with ipywidgets

        return Models
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
