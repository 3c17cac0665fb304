"""Which models have another version in their registry, with a real HTTP registry."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.chaos_registry import ChaosRegistry, status
from support.ggufs import gguf
from support.servers import free_port
from support.service_harness import ServiceHarness

from ollama_nb.api.names import ModelName
from ollama_nb.errors import ModelNotFound
from ollama_nb.service.bundled import register_bundled
from ollama_nb.service.local import CURRENT, LOCAL, OUTDATED, UNKNOWN, VersionCheck, outdated


def take(harness: ServiceHarness, registry: ChaosRegistry, name: str) -> str:
    """Put a model of the registry into the store, byte for byte; return the digest of its manifest."""
    store = harness.service.store
    for data in registry.blobs.values():
        store.blobs.add(data)
    raw = registry.manifests[f"/v2/{name.replace(':', '/manifests/')}"]
    store.put_manifest(ModelName.parse(f"{registry.host}/{name}"), raw)
    return hashlib.sha256(raw).hexdigest()


def test_compared(tmp_path: Path, registry: ChaosRegistry) -> None:
    harness = ServiceHarness(tmp_path)
    for name in ("a/same:latest", "a/newer:q4", "a/gone:latest"):
        registry.publish(name, model=gguf(), system=name.encode())
    digests = {name: take(harness, registry, name) for name in ("a/same:latest", "a/newer:q4", "a/gone:latest")}
    registry.publish("a/newer:q4", model=gguf(data=bytes(64)))
    registry.manifests.pop("/v2/a/gone/manifests/latest")
    register_bundled(harness.service.store)
    before = len(registry.asked)
    found = {c.name: c for c in outdated(harness.settings, harness.service.store, (), insecure=True)}
    there = hashlib.sha256(registry.manifests["/v2/a/newer/manifests/q4"]).hexdigest()
    host = registry.host
    assert found == {
        f"{host}/a/gone:latest": VersionCheck(f"{host}/a/gone:latest", digests["a/gone:latest"], "", LOCAL),
        f"{host}/a/newer:q4": VersionCheck(f"{host}/a/newer:q4", digests["a/newer:q4"], there, OUTDATED),
        f"{host}/a/same:latest": VersionCheck(
            f"{host}/a/same:latest", digests["a/same:latest"], digests["a/same:latest"], CURRENT
        ),
        "sprout:latest": VersionCheck("sprout:latest", found["sprout:latest"].here, "", LOCAL),
    }
    assert len(registry.asked) == before + 3
    (one,) = outdated(harness.settings, harness.service.store, [f"{host}/a/newer:q4"], insecure=True)
    assert one.state == OUTDATED
    with pytest.raises(ModelNotFound):
        list(outdated(harness.settings, harness.service.store, ["none"]))


def test_a_failing_registry(tmp_path: Path, registry: ChaosRegistry) -> None:
    harness = ServiceHarness(tmp_path)
    registry.publish("a/m:latest", model=gguf())
    take(harness, registry, "a/m:latest")
    registry.gate = status(500)
    (found,) = outdated(harness.settings, harness.service.store, (), insecure=True)
    assert found.state == UNKNOWN and found.why


def test_an_unreachable_registry_is_contacted_once(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    host = f"127.0.0.1:{free_port()}"
    for name in ("a/m", "a/n"):
        harness.make(f"{host}/{name}")
    found = list(outdated(harness.settings, harness.service.store, (), insecure=True))
    assert [compared.state for compared in found] == [UNKNOWN, UNKNOWN]
    assert found[0].why == found[1].why != ""
