"""A pull is killed at random points: it ends with the right bytes, and few of them are fetched twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.chaos_registry import ChaosRegistry, slow, unfinished
from support.stores import check_sound, digest_of
from support.transfers import DIED, left_over, noise, start

from ollama_nb.api.names import ModelName
from ollama_nb.store.store import Store

MIB = 1 << 20
AGAIN = 16 * MIB
"""Bytes that a kill may cost at most."""


def kill_and_finish(registry: ChaosRegistry, folder: Path, data: bytes, kills: int) -> float:
    """Return the bytes that a kill cost on average, and check the maximum."""
    name = registry.publish("a/m:latest", model=data)
    registry.always = unfinished(0.002)  # slow enough that no pull ends before it is killed
    chance = random.Random(7)
    for point in sorted(chance.randrange(len(data) - MIB) for _ in range(kills)):
        process = start(name, folder)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= point:
                break
        process.kill()
        process.stdout.close()
        assert process.wait() == -9
        assert Store(folder / "models").names() == ()
        check_sound(folder / "models")
    registry.always = slow(0.002)
    process = start(name, folder)
    process.communicate()
    assert process.returncode == 0
    store = Store(folder / "models")
    assert store.resolve(ModelName.parse(name)).weights_digest == digest_of(data)
    check_sound(store.root)
    # A kill between writing a journal and renaming it leaves a file that the clean-up removes after an hour.
    assert [name for name in left_over(store) if "partial" in name] == []
    again = registry.sent - len(data)
    assert again <= kills * AGAIN
    return again / kills


def test_a_few_kills(registry: ChaosRegistry, tmp_path: Path) -> None:
    kill_and_finish(registry, tmp_path, noise(40 * MIB), kills=3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_kills(registry: ChaosRegistry, tmp_path: Path) -> None:
    cost = kill_and_finish(registry, tmp_path, noise(200_000_000), kills=50)
    print(f"{cost / MIB:.2f} MiB fetched again a kill")


def crash(registry: ChaosRegistry, folder: Path, name: str, step: int) -> bool:
    """A pull that replaces a model dies at a step; the store is consistent, and the next pull succeeds.

    False if the pull has fewer steps.
    """
    old = registry.publish("a/m:latest", model=b"old", template=b"old")
    assert finished(old, folder) == 0
    registry.publish("a/m:latest", model=noise(3 * MIB), template=b"new")
    died = finished(name, folder, step) == DIED
    root = folder / "models"
    check_sound(root)
    raw = registry.manifests["/v2/a/m/manifests/latest"]
    if not died:
        assert (root / "manifests" / registry.host / "a/m/latest").read_bytes() == raw
    assert finished(name, folder) == 0
    check_sound(root)
    assert (root / "manifests" / registry.host / "a/m/latest").read_bytes() == raw
    return died


def finished(name: str, folder: Path, step: int | None = None) -> int:
    process = start(name, folder, 1, step)
    process.communicate()
    return process.returncode


def test_crashes_at_a_few_steps(registry: ChaosRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/a/m:latest"
    for step in random.Random(3).sample(range(30), 2):
        assert crash(registry, tmp_path / str(step), name, step), step


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_crashes_at_every_step(registry: ChaosRegistry, tmp_path: Path) -> None:
    name, step = f"{registry.host}/a/m:latest", 0
    while crash(registry, tmp_path / str(step), name, step):
        step += 1
    print(f"{step} crash points")
    assert step > 30


def test_twenty_pullers_in_four_processes(registry: ChaosRegistry, tmp_path: Path) -> None:
    data = noise(20 * MIB)
    name = registry.publish("a/m:latest", model=data)
    registry.always = slow(0.002)
    processes = [start(name, tmp_path, 5) for _ in range(4)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    check_sound(tmp_path / "models")
    assert registry.sent <= 1.02 * sum(map(len, registry.blobs.values()))
