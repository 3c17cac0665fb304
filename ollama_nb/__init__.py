"""ollama-nb: Ollama where people work with data.

In a notebook: ``%load_ext ollama_nb``. In a terminal: ``ollama``. Over HTTP: any Ollama client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ollama_nb.client.connect import connect

__version__ = "0.1.0"
__all__ = ["__version__", "connect", "load_ipython_extension"]


def __getattr__(name: str) -> Any:
    # PEP 562: `import ollama_nb` stays light; what is asked for is imported then.
    if name == "connect":
        from ollama_nb.client.connect import connect

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%load_ext ollama_nb`` calls."""
    from ollama_nb.notebook.magics import register

    register(shell)
