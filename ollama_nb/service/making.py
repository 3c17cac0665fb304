"""What making a model needs from the backend below: a process that converts, and the templates that are known."""

from __future__ import annotations

import threading

from ollama_nb import families
from ollama_nb.runner.converter import Converter
from ollama_nb.service.backend import Backend
from ollama_nb.store.sources import CreateTools
from ollama_nb.template.builtin import recognise


def tools(backend: Backend, cancelled: threading.Event) -> CreateTools:
    """For one request; setting ``cancelled`` ends a conversion."""
    return CreateTools(Converter(cancelled), recognise, families.create_defaults, backend.settings.home / "tmp")
