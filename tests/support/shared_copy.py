"""``python -m support.shared_copy FOLDER``, on a disk of its own: a file of that disk goes into a store there.

Prints as JSON what the blob cost, and whether it is still itself after the file was written to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from support.transfers import noise

from ollama_nb.client.files import file_digest
from ollama_nb.client.shared import SharedStore
from ollama_nb.store.blobs import BlobStore

SIZE = 32 << 20


def main(folder: Path) -> None:
    file, store = folder / "m.gguf", SharedStore(BlobStore(folder / "models" / "blobs"))
    file.write_bytes(noise(SIZE))
    digest = file_digest(file)
    os.sync()
    before = shutil.disk_usage(folder).used
    store.take(file, digest, lambda done, total: None)
    os.sync()
    cost = shutil.disk_usage(folder).used - before
    with file.open("r+b") as writing:
        writing.write(b"changed")
    (blob,) = (folder / "models" / "blobs").iterdir()
    same = f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}" == digest
    print(json.dumps({"cost": cost, "same": same, "name": blob.name == digest.replace(":", "-")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
