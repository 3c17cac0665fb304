from __future__ import annotations

import pytest
from support.fake_servers import ScriptedServer

from ollama_nb.client.client import Client
from ollama_nb.client.ollama import Ollama


@pytest.fixture
def ollama(server: ScriptedServer) -> Ollama:
    """What users call, connected to the scripted server."""
    return Ollama(Client(server.url))
