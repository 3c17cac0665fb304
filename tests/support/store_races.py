"""One of several processes that do random things to one store: ``python -m support.store_races FOLDER SEED COUNT``.

Clean-up has no grace period here, so it meets uploads and creates in every state. Prints the number of operations.
"""

from __future__ import annotations

import collections
import json
import random
import sys
from pathlib import Path

from support.ggufs import gguf
from support.stores import create

from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, NotFound, StoreError
from ollama_nb.store import store as store_module
from ollama_nb.store.store import Store

NAMES = ("a", "b", "ns/c", "d:q4")
WEIGHTS = tuple(gguf(data=bytes([number]) * 4096) for number in range(3))


def step(store: Store, chance: random.Random) -> str:
    name, other = chance.choice(NAMES), chance.choice(NAMES)
    what = chance.choice(("create", "create", "create from", "copy", "delete", "prune"))
    if what == "create":
        create(store, name, files={"m.gguf": chance.choice(WEIGHTS)}, system=chance.choice("xyz"))
    elif what == "create from":
        create(store, name, base=store.resolve(ModelName.parse(other)), template=chance.choice("uvw"))
    elif what == "copy":
        store.copy(ModelName.parse(name), ModelName.parse(other))
    elif what == "delete":
        store.delete(ModelName.parse(name))
    else:
        store.prune()
    return what


def main(folder: Path, seed: int, count: int) -> None:
    store_module.GRACE = 0.0
    chance, done = random.Random(seed), collections.Counter[str]()
    store = Store(folder)
    for _ in range(count):
        try:
            done[step(store, chance)] += 1
        except NotFound:
            done["not there"] += 1
        except (StoreError, BadRequest) as error:
            # Removed before it was finished or used: the error reports it, and nothing was published.
            assert any(word in error.message for word in ("missing", "damaged", "No such file")), error
            done["try again"] += 1
    print(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
