"""The parts that the use cases work with, in one object that each of them gets."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ollama_nb import families
from ollama_nb.runner.converter import ModelConverter
from ollama_nb.runner.pool import Pool
from ollama_nb.runner.renderer import Renderer
from ollama_nb.runner.vocabularies import Vocabularies
from ollama_nb.service.requests import Meter, NoMeter, Requests
from ollama_nb.settings import Settings
from ollama_nb.store.sources import CreateTools
from ollama_nb.store.store import Store
from ollama_nb.template.builtin import recognise


@dataclass(slots=True)
class Backend:
    settings: Settings
    store: Store
    pool: Pool
    renderer: Renderer
    requests: Requests
    vocabularies: Vocabularies
    meter: Meter = field(default_factory=NoMeter)

    def tools(self, cancelled: threading.Event) -> CreateTools:
        """What the store needs to make a model for one request; setting ``cancelled`` ends a conversion."""
        temp = self.settings.home / "tmp"
        return CreateTools(ModelConverter(cancelled), recognise, families.create_defaults, temp, cancelled)
