"""What the use cases work with: one value that is handed to each of them."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_nb.runner.pool import Pool
from ollama_nb.runner.renderer import Renderer
from ollama_nb.runner.vocabularies import Vocabularies
from ollama_nb.service.requests import Requests
from ollama_nb.settings import Settings
from ollama_nb.store.store import Store


@dataclass(frozen=True, slots=True)
class Backend:
    settings: Settings
    store: Store
    pool: Pool
    renderer: Renderer
    requests: Requests
    vocabularies: Vocabularies
