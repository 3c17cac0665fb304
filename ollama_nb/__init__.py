"""ollama-nb: Ollama for Jupyter.

In a notebook: ``%load_ext ollama_nb``. In a terminal: ``ollama``. Over HTTP: any Ollama client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ollama_nb.notebook.frame import watch

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ollama_nb.client.aio import AsyncOllama, connect_async
    from ollama_nb.client.answer import Answer
    from ollama_nb.client.client import Client
    from ollama_nb.client.ollama import Ollama, connect
    from ollama_nb.errors import OllamaError
    from ollama_nb.notebook.widgets.activity import Activity
    from ollama_nb.notebook.widgets.chat import Chat
    from ollama_nb.notebook.widgets.manager import Models

__version__ = "0.1.0"
__all__ = [
    "Activity",
    "Answer",
    "AsyncOllama",
    "Chat",
    "Client",
    "Models",
    "Ollama",
    "OllamaError",
    "__version__",
    "connect",
    "connect_async",
    "load_ipython_extension",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that ``import ollama_nb`` stays fast."""
    found: Any
    match name:
        case "Activity":
            from ollama_nb.notebook.widgets.activity import Activity as found
        case "Answer":
            from ollama_nb.client.answer import Answer as found
        case "AsyncOllama":
            from ollama_nb.client.aio import AsyncOllama as found
        case "Chat":
            from ollama_nb.notebook.widgets.chat import Chat as found
        case "Client":
            from ollama_nb.client.client import Client as found
        case "Models":
            from ollama_nb.notebook.widgets.manager import Models as found
        case "Ollama":
            from ollama_nb.client.ollama import Ollama as found
        case "OllamaError":
            from ollama_nb.errors import OllamaError as found
        case "connect":
            from ollama_nb.client.ollama import connect as found
        case "connect_async":
            from ollama_nb.client.aio import connect_async as found
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return __all__


def _accessor(rows: Any) -> Any:
    """Models over rows: ``generate``, ``chat``, ``classify``, ``extract``, ``embed``, ``similar``, ``rerank``."""
    from ollama_nb.notebook.frame.accessor import accessor

    return accessor(rows)


watch(_accessor)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics; IPython calls this for ``%load_ext ollama_nb``."""
    from ollama_nb.notebook.magics import register

    register(shell)
