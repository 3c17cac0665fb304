"""Which local models their registry has in another version by now. Blocking; registries learn the models' names."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ollama_nb.api.names import ModelName
from ollama_nb.errors import OllamaError
from ollama_nb.service import bundled
from ollama_nb.service.resolve import find_in
from ollama_nb.settings import Settings
from ollama_nb.store.registry.client import RegistryAccess, connected
from ollama_nb.store.registry.errors import NotInRegistry, RegistryUnreachable
from ollama_nb.store.store import Store

CURRENT, OUTDATED, LOCAL, UNKNOWN = "current", "outdated", "only here", "unknown"


@dataclass(frozen=True, slots=True)
class Compared:
    """A model here and there, by the digests of its manifests; ``why``: what kept us from knowing."""

    name: str
    here: str
    there: str
    state: str
    why: str = ""


def outdated(settings: Settings, store: Store, texts: Sequence[str], *, insecure: bool = False) -> Iterator[Compared]:
    """Compare the named models, or all that are installed; a registry that does not answer is asked once."""
    models = [find_in(store, text) for text in texts] if texts else store.models()
    access = RegistryAccess.of_user(settings.key, settings.home)
    silent: dict[str, str] = {}
    for model in sorted(models, key=lambda model: model.name):
        yield _compared(model.name, model.digest, access, silent, insecure)


def _compared(name: ModelName, here: str, access: RegistryAccess, silent: dict[str, str], insecure: bool) -> Compared:
    if bundled.is_bundled(name):
        return Compared(name.short, here, "", LOCAL)
    if name.host in silent:
        return Compared(name.short, here, "", UNKNOWN, silent[name.host])
    try:
        with connected(name, access, threading.Event(), insecure=insecure) as registry:
            there = hashlib.sha256(registry.manifest()).hexdigest()
    except NotInRegistry:
        return Compared(name.short, here, "", LOCAL)
    except OllamaError as error:
        if isinstance(error, RegistryUnreachable):
            silent[name.host] = error.message
        return Compared(name.short, here, "", UNKNOWN, error.message)
    return Compared(name.short, here, there, CURRENT if here == there else OUTDATED)
