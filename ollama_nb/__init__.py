"""ollama-nb: Ollama where people work with data.

In a notebook: ``%load_ext ollama_nb``. In a terminal: ``ollama``. Over HTTP: any Ollama client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ollama_nb.notebook.frame.register import watch

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

_HOMES = {
    "Activity": "notebook.widgets.activity",
    "Answer": "client.answer",
    "AsyncOllama": "client.aio",
    "Chat": "notebook.widgets.chat",
    "Client": "client.client",
    "Models": "notebook.widgets.manager",
    "Ollama": "client.ollama",
    "OllamaError": "errors",
    "connect": "client.ollama",
    "connect_async": "client.aio",
}


def __getattr__(name: str) -> Any:
    # PEP 562: `import ollama_nb` stays light; what is asked for is imported then.
    if name in _HOMES:
        return getattr(import_module(f"ollama_nb.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _accessor(rows: Any) -> Any:
    """Models over rows: ``generate``, ``chat``, ``classify``, ``extract``, ``embed``, ``similar``, ``rerank``."""
    from ollama_nb.notebook.frame.accessor import accessor

    return accessor(rows)


watch(_accessor)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%load_ext ollama_nb`` calls."""
    from ollama_nb.notebook.magics import register

    register(shell)
