"""The Jupyter server extension: Ollama's HTTP API at ``<base_url>/ollama``, behind Jupyter's authentication."""

from __future__ import annotations

from typing import Any

from ollama_nb_ext.extension import OllamaExtension


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Called by Jupyter to find the extension."""
    return [{"module": "ollama_nb_ext", "app": OllamaExtension}]
