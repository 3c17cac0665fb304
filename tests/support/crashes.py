"""Stop a store operation at every one of its system calls, and look at what is left each time.

Run as a program: ``python -m support.crashes FOLDER``. It forks a child per point, which dies as by kill -9, and prints
a JSON object: operation → number of points. An unsound store ends it with a traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from support.ggufs import gguf
from support.stores import check_sound, create, published, tiny

from ollama_nb.api.names import ModelName
from ollama_nb.store import fsops
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


OPERATIONS: dict[str, Callable[[Store], None]] = {
    "create": create_new,
    "create over": create_over,
    "copy": lambda store: store.copy(BASE, CHILD),
    "copy over": lambda store: store.copy(BASE, OTHER),
    "delete": lambda store: store.delete(BASE),
    "prune": lambda store: str(store.prune()) and None,
}


def die_at(step: int, operation: Callable[[Store], None], root: Path) -> bool:
    """Run the operation in a child that dies before its ``step``-th call; False when it has fewer."""
    child = os.fork()
    if child == 0:
        left = [step]

        def before(call: str, subject: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os._exit(137)

        fsops.before = before
        try:
            operation(Store(root))
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137), f"the operation failed by itself at step {step}"
    return code == 137


def sweep(name: str, folder: Path) -> int:
    operation, start = OPERATIONS[name], folder / "start"
    prepare(Store(start))
    done = shutil.copytree(start, folder / "done", copy_function=shutil.copy2)
    operation(Store(done))
    allowed = (published(start), published(done))
    step = 0
    while True:
        root = shutil.copytree(start, folder / "crashed", copy_function=shutil.copy2)
        died = die_at(step, operation, root)
        check_sound(root)
        assert published(root) in allowed, f"{name} is half visible after step {step}"
        if not died:
            assert published(root) == allowed[1]
            return step
        if name != "delete" or published(root) == allowed[0]:
            operation(Store(root))  # the next try finds nothing in its way
            check_sound(root)
            assert published(root) == allowed[1]
        shutil.rmtree(root)
        step += 1


if __name__ == "__main__":
    points = {}
    for number, name in enumerate(OPERATIONS):
        place = Path(sys.argv[1]) / str(number)
        place.mkdir()
        points[name] = sweep(name, place)
    print(json.dumps(points))
