"""Stop a store operation at every one of its system calls, and look at what is left each time.

Run as a program: ``python -m support.crashes FOLDER [LEAST]``. It forks a child per point, which dies as by kill -9,
and prints a JSON object with the number of points; after the named operations, random ones on random stores follow
until there were ``LEAST``. An unsound store ends it with a traceback.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.ggufs import gguf
from support.stores import check_sound, create, published, tiny

from ollama_nb import disk
from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.store.archive import export, import_models
from ollama_nb.store.store import Store

BASE, CHILD, OTHER = (ModelName.parse(text) for text in ("base", "ns/child", "other"))


def prepare(store: Store) -> None:
    tiny(store, "base", system="base's own", template="shared")
    tiny(store, "other", template="shared")
    store.blobs.path(store.blobs.add(b"old and unused")).touch()
    (store.blobs.root / "sha256-123").write_bytes(b"left by somebody else")
    for path in (store.blobs.root / "sha256-123", store.blobs.path(store.blobs.add(b"old and unused"))):
        os.utime(path, (0, 0))


def create_new(store: Store) -> None:
    create(store, "ns/child", files={"other.gguf": gguf(data=b"\x01" * 64)}, system="new", licenses=("MIT",))


def create_over(store: Store) -> None:
    create(store, "base", base=store.resolve(BASE), system="replaced")


def import_new(store: Store) -> None:
    """From an archive that is made beside the store, once."""
    path = store.root.parent / "archive.tar"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            model = tiny(source := Store(Path(folder)), "ns/child", system="carried", licenses=("MIT", "GPL"))
            export([model], source.blobs, path, report=_silent, cancelled=threading.Event())
    import_models(path, store, as_=None, report=_silent, cancelled=threading.Event())


def _silent(line: Progress) -> None:
    pass


Operation = Callable[[Store], object]

OPERATIONS: dict[str, Operation] = {
    "create": create_new,
    "create over": create_over,
    "copy": lambda store: store.copy(BASE, CHILD),
    "copy over": lambda store: store.copy(BASE, OTHER),
    "import": import_new,
    "delete": lambda store: store.delete(BASE),
    "prune": lambda store: store.prune(),
}


def random_scenario(seed: int) -> tuple[Operation, Operation, bool]:
    """A store of a few models that share this and that, an operation on it, and whether it may be done twice."""
    chance = random.Random(seed)
    names = chance.sample(["base", "other", "ns/child", "host.org/a/b:q4", "Upper:Tag", "third"], chance.randint(2, 5))
    texts = ["shared", "own", "文字"]

    def parts(chance: random.Random) -> dict[str, Any]:
        found: dict[str, Any] = {key: chance.choice(texts) for key in ("system", "template") if chance.random() < 0.6}
        return found | ({"licenses": tuple(texts[: chance.randint(1, 3)])} if chance.random() < 0.4 else {})

    def make(store: Store) -> None:
        chance = random.Random(seed)
        for number, name in enumerate(names):
            base = store.resolve(ModelName.parse(names[0])) if number and chance.random() < 0.4 else None
            weights = None if base else {"m.gguf": gguf(data=chance.randbytes(32 * chance.randint(1, 40)))}
            create(store, name, base=base, files=weights, **parts(chance))
        for number in range(chance.randint(0, 3)):
            os.utime(store.blobs.path(store.blobs.add(f"unused {number}".encode())), (0, 0))

    first, second = (ModelName.parse(name) for name in chance.sample(names, 2))
    wanted = parts(chance)
    weights = gguf(data=chance.randbytes(32 * chance.randint(1, 40)))
    operations: list[tuple[Operation, bool]] = [
        (lambda store: create(store, "new", files={"m.gguf": weights}, **wanted), True),
        (lambda store: create(store, names[0], files={"m.gguf": weights}, **wanted), True),
        (lambda store: create(store, first.full, base=store.resolve(second), **wanted), False),
        (lambda store: store.copy(first, ModelName("new")), True),
        (lambda store: store.copy(first, second), True),
        (lambda store: store.delete(first), False),
        (lambda store: store.prune(), True),
        (import_new, True),
    ]
    return (make, *chance.choice(operations))


def die_at(step: int, operation: Callable[[Store], None], root: Path) -> bool:
    """Run the operation in a child that dies before its ``step``-th call; False when it has fewer."""
    child = os.fork()
    if child == 0:
        left = [step]

        def before(call: str, subject: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os._exit(137)

        disk.before = before
        try:
            operation(Store(root))
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137), f"the operation failed by itself at step {step}"
    return code == 137


def sweep(make: Operation, operation: Operation, folder: Path, *, again: bool = True) -> int:
    """How many points there were. ``again``: the operation may be done on its own outcome."""
    start = folder / "start"
    make(Store(start))
    done = shutil.copytree(start, folder / "done", copy_function=shutil.copy2)
    operation(Store(done))
    allowed = (published(start), published(done))
    step = 0
    while True:
        root = shutil.copytree(start, folder / "crashed", copy_function=shutil.copy2)
        died = die_at(step, operation, root)
        check_sound(root)
        assert published(root) in allowed, f"half visible after step {step}"
        if not died:
            assert published(root) == allowed[1]
            return step
        if again or published(root) == allowed[0]:
            operation(Store(root))  # the next try finds nothing in its way
            check_sound(root)
            assert published(root) == allowed[1]
        shutil.rmtree(root)
        step += 1


def main(folder: Path, least: int) -> None:
    """Every named operation, then random ones until there were ``least`` points."""
    points = {}
    for name, operation in OPERATIONS.items():
        (folder / name).mkdir()
        points[name] = sweep(prepare, operation, folder / name, again=name != "delete")
    seed, found = 0, 0
    while sum(points.values()) + found < least:
        place = folder / str(seed)
        place.mkdir()
        make, operation, again = random_scenario(seed)
        try:
            found += sweep(make, operation, place, again=again)
        except AssertionError as error:
            raise AssertionError(f"random scenario {seed}: {error}") from error
        shutil.rmtree(place)
        seed += 1
    print(json.dumps({"points": points, "random scenarios": seed, "random points": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
