"""Programs that run in a mount namespace of their own, on a small, full, read-only or copy-on-write disk.

``python -m support.small_disk full|work|batch|readonly|served|share FOLDER`` with a file system mounted at
FOLDER; prints the results as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from support.chaos_registry import chaos_registry, held
from support.checkpoints import make_checkpoint
from support.ggufs import gguf
from support.servers import clean_env, standalone
from support.service_harness import PLAIN, ServiceHarness, collect, content
from support.stores import check_sound, digest_of
from support.transfers import noise
from support.transfers import pull as pulled

from ollama_nb.api.events import Progress
from ollama_nb.api.requests import CreateRequest, GenerateRequest
from ollama_nb.client.files import SharedStore, file_digest
from ollama_nb.errors import OllamaError
from ollama_nb.server.keys import KeyFile
from ollama_nb.service import local
from ollama_nb.service.batch_store import BatchStore
from ollama_nb.service.batch_worker import BatchWorker
from ollama_nb.service.batches import BatchJob, BatchLine, LineResult
from ollama_nb.store.blobs import BlobStore, digest_in_name

BIG = gguf(data=bytes(6 << 20))
SHARED_SIZE = 32 << 20  # bytes


def outcome_of(work: Callable[[], object]) -> dict[str, Any]:
    """Run ``work``; return its error, status and duration, or nothing if it succeeded."""
    began = time.monotonic()
    try:
        work()
    except OllamaError as error:
        return {"error": error.message, "status": error.status, "seconds": time.monotonic() - began}
    return {}


def drained(lines: AsyncIterator[Any]) -> list[Any]:
    async def run() -> list[Any]:
        return await collect(lines)

    return asyncio.run(run())


class Program:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.harness = ServiceHarness(folder, lambda prompt, format: ["still", " served"])
        self.harness.make("tales", template=PLAIN)
        self.service = self.harness.service

    def still_works(self) -> dict[str, Any]:
        async def look() -> dict[str, Any]:
            reply = await collect(self.service.generate(GenerateRequest(model="tales", prompt="x")))
            listed = [listed.model.name.short for listed in await self.service.list()]
            shown = await self.service.show("tales")
            return {"reply": content(reply), "listed": listed, "shown": shown.template == PLAIN}

        return asyncio.run(look())

    def create(self, data: bytes = BIG, name: str = "big") -> dict[str, Any]:
        """Upload a file and create a model from it, as a client does."""
        blobs = self.service.blobs

        def work() -> None:
            with blobs.writer() as writer:
                for start in range(0, len(data), 1 << 20):
                    writer.write(data[start : start + (1 << 20)])
                writer.commit(digest_of(data))
            request = CreateRequest(model=name, files={"m.gguf": str(digest_of(data))}, system=name)
            drained(self.service.create(request))

        return outcome_of(work)

    def check(self) -> None:
        never = threading.Event()
        local.fsck(self.harness.settings, repair=False, report=lambda line: None, cancelled=never)

    def pad(self, leave: int) -> Path:
        """Fill the disk until ``leave`` bytes are free."""
        filler = self.folder / "filler"
        with (
            filler.open("wb", buffering=0) as file,
            suppress(OSError),
        ):  # another write may take the last byte
            free = shutil.disk_usage(self.folder).free
            file.write(bytes(max(0, free - leave)))
        return filler

    def full(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        filler = self.pad(leave=3 << 20)
        found["upload"] = self.create()
        outside = self.folder.parent / "models.tar"
        filler.unlink()
        small = gguf(data=bytes(1 << 20))
        self.create(small, "small")
        local.export_models(self.service.store, ["small"], outside, report=lambda line: None)
        asyncio.run(self.service.delete("small"))
        filler = self.pad(leave=64 << 10)
        found["import"] = outcome_of(lambda: local.import_models(self.service.store, outside, report=lambda line: None))
        filler.unlink()
        filler = self.pad(leave=0)
        found["copy"] = outcome_of(lambda: asyncio.run(self.service.copy("tales", "twin")))
        found["texts"] = outcome_of(
            lambda: drained(self.service.create(CreateRequest(model="new", from_="tales", system="你" * 30_000)))
        )
        found["key"] = outcome_of(lambda: KeyFile(self.harness.settings.home).add("a"))
        found["while full"] = self.still_works()
        check_sound(self.service.store.root)
        names = [path.name for path in self.service.store.root.rglob("sha256-*")]
        found["left over"] = [name for name in names if digest_in_name(name) is None]
        filler.unlink()
        found["freed"] = self.create()
        found["imported"] = outcome_of(
            lambda: (
                asyncio.run(self.service.delete("big"))
                or local.import_models(self.service.store, outside, report=lambda line: None)
            )
        )
        check_sound(self.service.store.root)
        return found

    def work(self) -> dict[str, Any]:
        """The disk fills up while a pull, a quantisation and a conversion are under way."""
        found: dict[str, Any] = {"pull": self.pull()}
        self.harness.make("base", "stories260K-f32.gguf", template=PLAIN)
        checkpoint = make_checkpoint("llama", self.folder.parent / "checkpoint")
        files = {path.name: str(self.service.blobs.add_file(path)) for path in checkpoint.iterdir()}
        works = {
            "quantise": CreateRequest(model="new", from_="base", quantize="Q8_0"),
            "convert": CreateRequest(model="new", files=files),
        }
        for name, request in works.items():
            filler = self.pad(leave=40 << 10)
            found[f"{name} at first"] = outcome_of(lambda request=request: drained(self.service.create(request)))
            filler.unlink()
            with self.filling_up() as fillers:
                full = outcome_of(lambda request=request: drained(self.service.create(request)))
            left = [path.name for path in self.service.blobs.root.iterdir() if digest_in_name(path.name) is None]
            found[name] = {**full, "left over": left, **self.still_works()}
            fillers[0].unlink()
            found[name]["freed"] = outcome_of(lambda request=request: drained(self.service.create(request)))
            check_sound(self.service.store.root)
            asyncio.run(self.service.delete("new"))
        return found

    @contextmanager
    def filling_up(self) -> Iterator[list[Path]]:
        """Fill the disk right after each check for free space."""
        fillers: list[Path] = []
        check = BlobStore.require_space

        def check_and_fill(blobs: BlobStore, size: int) -> None:
            check(blobs, size)
            fillers.append(self.pad(leave=0))

        with patch.object(BlobStore, "require_space", check_and_fill):
            yield fillers

    def pull(self) -> dict[str, Any]:
        """A download for which there was space when it began."""
        store, pad = self.service.store, self.pad
        fillers: list[Path] = []
        filled = threading.Event()

        class Filling(list[Progress]):
            def append(self, line: Progress) -> None:
                if not fillers and line.completed:
                    fillers.append(pad(leave=0))
                    filled.set()

        with chaos_registry() as registry:
            name = registry.publish("a/m:latest", model=noise(5 << 20))
            registry.always = held(filled)
            full = outcome_of(lambda: pulled(store, name, self.folder, lines=Filling()))
            asked = [(one.path, one.headers.get("Range")) for one in registry.of("GET", "/blobs/")]
            full |= {"pulled": [str(name) for name in store.names()], "again": len(asked) - len(set(asked))}
            full |= self.still_works()
            fillers[0].unlink()
            full["freed"] = outcome_of(lambda: pulled(store, name, self.folder))
        check_sound(store.root)
        asyncio.run(self.service.delete(name))
        return full

    def batch(self) -> dict[str, Any]:
        """The disk is full when the results of a batch arrive, and has space later."""
        store = BatchStore(self.harness.settings.home)
        lines = [json.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/x", "body": {}}) for n in range(4)]
        upload = store.upload()
        upload.write("\n".join(lines).encode())
        job = store.create(upload.commit("input", "batch").id, "/v1/x", "24h", 3600.0, {})
        filler = self.pad(leave=64 << 10)
        ran: list[str] = []

        class Dialect:
            async def run(self, endpoint: str, body: bytes, request_id: str) -> bytes:
                ran.append(request_id)
                return json.dumps({"text": "你" * 30_000}).encode()

            def encode_error(self, error: OllamaError) -> bytes:
                return b"{}"

            def encode_result(self, job: BatchJob, result: LineResult) -> bytes:
                return bytes(result.body) + b"\n"

            def encode_unfinished(self, job: BatchJob, line: BatchLine, status: str) -> bytes:
                return b"unfinished"

        async def until(condition: Callable[[], bool]) -> None:
            while True:
                if condition():
                    return
                await asyncio.sleep(0.02)

        async def run() -> dict[str, Any]:
            worker = BatchWorker(self.harness.settings.home, lambda model: 2)
            worker.start(Dialect())
            try:
                await until(lambda: len(ran) >= 2)
                await asyncio.sleep(1.5)
                waiting = store.batch(job.id)
                filler.unlink()
                await until(lambda: store.batch(job.id).status == "completed")
            finally:
                await worker.stop()
            with store.open_data(store.file(store.batch(job.id).output_file)) as data:
                lines = data.read().count(b"\n")
            return {"full": [waiting.status, waiting.completed], "ran": len(ran), "lines": lines}

        return asyncio.run(run())

    def readonly(self) -> dict[str, Any]:
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        found = {
            "create": self.create(),
            "texts": outcome_of(
                lambda: drained(self.service.create(CreateRequest(model="n", from_="tales", system="s")))
            ),
            "copy": outcome_of(lambda: asyncio.run(self.service.copy("tales", "twin"))),
            "delete": outcome_of(lambda: asyncio.run(self.service.delete("tales"))),
            "start": outcome_of(lambda: asyncio.run(self.service.start())),
            "works": self.still_works(),
            "fsck": outcome_of(self.check),
            "df": outcome_of(lambda: local.df(self.harness.settings)),
        }
        check_sound(self.service.store.root)
        return found

    def served(self) -> dict[str, Any]:
        """A real server whose models folder is on a read-only disk."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        models = {"OLLAMA_MODELS": str(self.folder / "models")}
        with standalone(self.folder.parent / "home", env=models) as server:
            env = clean_env(server.home, **models, OLLAMA_HOST=server.url.removeprefix("http://"))
            command = [sys.executable, "-P", "-m", "ollama_nb.cli.main", "list"]
            listed = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

            def ask(method: str, path: str, **body: Any) -> list[Any]:
                reply = httpx.request(method, server.url + path, json=body, timeout=120, trust_env=False)
                return [reply.status_code, reply.json() if reply.content else {}]

            options = {"num_predict": 4}
            found: dict[str, Any] = {"cli": [listed.returncode, listed.stdout, listed.stderr]}
            found["reads"] = {
                "tags": ask("GET", "/api/tags"),
                "show": ask("POST", "/api/show", model="tales"),
                "generate": ask("POST", "/api/generate", model="tales", prompt="Once", stream=False, options=options),
            }
            found["writes"] = {
                "create": ask("POST", "/api/create", model="new", stream=False, **{"from": "tales", "system": "s"}),
                "copy": ask("POST", "/api/copy", source="tales", destination="twin"),
                "delete": ask("DELETE", "/api/delete", model="tales"),
                "blob": ask("POST", f"/api/blobs/{digest_of(b'{}')}"),
                "pull": ask("POST", "/api/pull", model="sprout", stream=False),
            }
            found["bundled"] = {
                "show": ask("POST", "/api/show", model="sprout"),
                "generate": ask("POST", "/api/generate", model="sprout", prompt="x", stream=False, options=options),
                "chat": ask("POST", "/api/chat", model="sprout", messages=[{"role": "user", "content": "x"}]),
                "create": ask("POST", "/api/create", model="new", stream=False, **{"from": "sprout"}),
            }
        return found


def share(folder: Path) -> dict[str, Any]:
    """Put a file of this disk into a store on it: the bytes this took, and whether a later write reached the blob."""
    file, store = folder / "m.gguf", SharedStore(BlobStore(folder / "models" / "blobs"))
    file.write_bytes(noise(SHARED_SIZE))
    digest = file_digest(file)
    os.sync()
    before = shutil.disk_usage(folder).used
    store.add(file, digest, lambda done, total: None)
    os.sync()
    cost = shutil.disk_usage(folder).used - before
    with file.open("r+b") as writing:
        writing.write(b"changed")
    (blob,) = (folder / "models" / "blobs").iterdir()
    same = f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}" == digest
    return {"cost": cost, "same": same, "name": blob.name == digest.replace(":", "-")}


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(share(place) if what == "share" else getattr(Program(place), what)()))
