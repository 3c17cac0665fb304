"""Concurrent operations on one store: no manifest ever names a missing blob, and the result is linearizable."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.ggufs import gguf
from support.stores import check_sound, create, tiny

from ollama_nb.api.names import ModelName
from ollama_nb.errors import NotFound, StoreError
from ollama_nb.store.manifest import parse_manifest
from ollama_nb.store.store import Store

TESTS = Path(__file__).parent.parent


def watched(root: Path, running: Callable[[], bool]) -> Iterator[str]:
    """During the operations, every blob that an existing manifest names exists."""
    manifests = root / "manifests"
    while running():
        # os.walk skips directories that are removed meanwhile; Path.rglob raises.
        for path in [Path(folder, name) for folder, _, names in os.walk(manifests) for name in names]:
            try:
                raw = path.read_bytes()
            except OSError:
                continue
            manifest = parse_manifest(raw)
            for layer in (manifest.config, *manifest.layers):
                if (root / "blobs" / layer.digest.filename).exists():
                    continue
                try:
                    still = path.read_bytes() == raw
                except OSError:
                    still = False
                if still and not (root / "blobs" / layer.digest.filename).exists() and path.exists():
                    yield f"{path.relative_to(root)}: {layer.digest}"


@pytest.mark.parametrize(
    ("processes", "count"), [(4, 60), pytest.param(8, 600, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])]
)
def test_processes_against_each_other(tmp_path: Path, processes: int, count: int) -> None:
    root = tmp_path / "models"
    command = [sys.executable, "-m", "support.store_races", str(root)]
    running = [
        subprocess.Popen([*command, str(seed), str(count)], cwd=TESTS, stdout=subprocess.PIPE, text=True)
        for seed in range(processes)
    ]
    try:
        missing = list(watched(root, lambda: any(process.poll() is None for process in running)))
    finally:
        outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    done = [json.loads(output) for output in outputs]
    assert missing == []
    check_sound(root)
    total = sum(sum(counts.values()) for counts in done)
    succeeded = sum(n for counts in done for what, n in counts.items() if what not in ("not there", "try again"))
    assert total == processes * count and succeeded > total // 3


Step = tuple[str, str, str]


def play(state: dict[str, str], step: Step) -> tuple[dict[str, str], bool]:
    """The effect of a step on a store, modelled as a table of names, and whether it succeeds."""
    what, first, second = step
    if what == "create":
        return {**state, first: second}, True
    if first not in state:
        return state, False
    if what == "copy":
        return {**state, second: state[first]}, True
    return {name: value for name, value in state.items() if name != first}, True


def outcomes(
    start: dict[str, str], plans: list[list[Step]]
) -> set[tuple[tuple[tuple[str, str], ...], tuple[bool, ...]]]:
    """Every final state and list of successes that a serial order produces."""
    found = set()
    turns = [number for number, plan in enumerate(plans) for _ in plan]
    for order in set(itertools.permutations(turns)):
        state, at, results = start, [0] * len(plans), {}
        for number in order:
            state, results[number, at[number]] = play(state, plans[number][at[number]])
            at[number] += 1
        found.add((tuple(sorted(state.items())), tuple(results[key] for key in sorted(results))))
    return found


def act(store: Store, step: Step) -> bool | None:
    """Whether it succeeded; None if the error asks to try again."""
    what, first, second = step
    try:
        if what == "create":
            create(store, first, files={"m.gguf": gguf()}, system=second)
        elif what == "copy":
            store.copy(ModelName(first), ModelName(second))
        else:
            store.delete(ModelName(first))
    except NotFound:
        return False
    except StoreError:
        return None
    return True


def test_the_same_names_at_once_have_some_order(tmp_path: Path) -> None:
    for seed in range(60):
        chance = random.Random(seed)
        store = Store(tmp_path / str(seed))
        for name in ("a", "b"):
            tiny(store, name, system="start")
        plans = [[random_step(chance) for _ in range(2)] for _ in range(3)]
        results: dict[tuple[int, int], bool | None] = {}
        barrier = threading.Barrier(len(plans))

        def work(
            number: int,
            plans: list[list[Step]] = plans,
            store: Store = store,
            results: dict[tuple[int, int], bool | None] = results,
            barrier: threading.Barrier = barrier,
        ) -> None:
            barrier.wait()
            for at, step in enumerate(plans[number]):
                results[number, at] = act(store, step)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(plans))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_sound(store.root)
        did = [[step for at, step in enumerate(plan) if results[n, at] is not None] for n, plan in enumerate(plans)]
        told = tuple(results[key] for key in sorted(results) if results[key] is not None)
        end = tuple(sorted((name.model, store.resolve(name).system) for name in store.names()))
        assert (end, told) in outcomes({"a": "start", "b": "start"}, did), f"seed {seed}: {plans} {results} {end}"


def random_step(chance: random.Random) -> Step:
    what = chance.choice(("create", "copy", "delete"))
    first, second = chance.choice("ab"), chance.choice("abc")
    return (what, first, chance.choice("123") if what == "create" else second)


def test_clean_up_leaves_an_active_download(tmp_path: Path) -> None:
    """An unfinished blob that was written to within the last hour stays; its pull then succeeds."""
    store = Store(tmp_path / "models")
    tiny(store, "m")
    data = gguf(data=os.urandom(10_000))
    with store.blobs.writer() as writer:
        writer.write(data[:5000])
        assert store.prune() == 0
        writer.write(data[5000:])
        digest = writer.commit(None)
    assert store.prune() == 0
    create(store, "n", files={"m.gguf": data})
    assert store.blobs.has(digest)
