"""kill -9 during a conversion or quantisation: no partial file gets a name, and a later create works."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import FAMILIES, copy_tokenizer, write_json, write_safetensors
from support.processes import command_line, until
from support.servers import RestClient, RunningServer, standalone
from support.stores import check_sound

from ollama_nb.store.blobs import BlobStore, digest_in_name

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]
WIDTH, INNER, ROWS = 512, 2048, 640
HOURS_AGO = time.time() - 7200


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 million parameters, so that writing takes a while."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config, _, tokenizer = FAMILIES["llama"]
    write_json(folder / "config.json", {**config, "hidden_size": WIDTH, "intermediate_size": INNER})
    copy_tokenizer(tokenizer, folder)
    shapes = {"model.embed_tokens": (ROWS, WIDTH), "lm_head": (ROWS, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        shapes |= {f"{stem}.{norm}_layernorm": (WIDTH,) for norm in ("input", "post_attention")}
        shapes |= {f"{stem}.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qo"}
        shapes |= {f"{stem}.self_attn.{name}_proj": (WIDTH // 2, WIDTH) for name in "kv"}
        shapes |= {f"{stem}.mlp.{name}_proj": (INNER, WIDTH) for name in ("gate", "up")}
        shapes[f"{stem}.mlp.down_proj"] = (WIDTH, INNER)
    tensors = {f"{name}.weight": np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture
def files(checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    """The checkpoint as blobs in the store of the server that is started later."""
    blobs = BlobStore(tmp_path / ".ollama" / "models" / "blobs")
    return {path.name: str(blobs.add_file(path)) for path in checkpoint.iterdir()}


def unfinished(server: RunningServer) -> list[Path]:
    return [path for path in (server.models / "blobs").iterdir() if digest_in_name(path.name) is None]


def working_folders(server: RunningServer) -> list[Path]:
    return list((server.home / ".ollama" / "nb" / "tmp").iterdir())


def converter_of(server: RunningServer) -> int:
    """The conversion process; 0 if there is no such process."""
    for task in Path(f"/proc/{server.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in map(int, task.read_text().split()):
                if "ollama_nb.runner.convert" in command_line(pid):
                    return pid
    return 0


def found_converter(server: RunningServer, asking: threading.Thread) -> int:
    """Wait for the conversion process; 0 if the request ended before it was seen."""
    found: list[int] = []

    def there() -> bool:
        found.append(converter_of(server))
        return found[-1] > 0 or not asking.is_alive()

    until(there)
    return found[-1]


@contextlib.contextmanager
def in_the_middle(server: RunningServer, **body: Any) -> Iterator[tuple[int, list[Any]]]:
    """Stop a create while its file is half written; return its process and the list that receives its result."""
    told: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(OSError, HTTPException):  # a killed server closes the connection
            told.append(RestClient(server).create("new", **body))

    while True:
        asking = threading.Thread(target=ask)
        asking.start()
        pid = found_converter(server, asking)
        if pid and writing(server, pid):
            break
        asking.join()  # the conversion was faster than this test: try again
        told.clear()
    try:
        yield pid, told
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        asking.join()


def writing(server: RunningServer, pid: int) -> bool:
    """Run the process in small steps until it has begun to write; False if it has ended."""
    try:
        while not any(path.stat().st_size for path in unfinished(server)):
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.002)
            os.kill(pid, signal.SIGSTOP)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return bool(command_line(pid) and unfinished(server))


def jobs(files: dict[str, str]) -> list[dict[str, Any]]:
    return [{"files": files}, {"from": "base", "quantize": "q4_K_M"}]


@pytest.mark.parametrize("job", [0, 1], ids=["convert", "quantise"])
def test_kill_9_of_the_server(files: dict[str, str], tmp_path: Path, job: int) -> None:
    body = jobs(files)[job]
    with standalone(tmp_path) as server:
        assert RestClient(server).create("base", files=files) == "success"
        with in_the_middle(server, **body) as (pid, _):
            os.kill(server.pid, signal.SIGKILL)
            server.process.wait()
            until(lambda: not command_line(pid))
        (half,) = unfinished(server)
        check_sound(server.models)
        assert not (server.models / "manifests/registry.ollama.ai/library/new").exists()
    os.utime(half, (HOURS_AGO, HOURS_AGO))  # newer files may belong to another running program
    with standalone(tmp_path) as server:
        until(lambda: not half.exists())
        until(lambda: not (server.home / ".ollama/nb/tmp").exists() or not working_folders(server))
        assert RestClient(server).create("new", **body) == "success"
        assert RestClient(server).post("/api/show", {"model": "new"})["details"]["family"] == "llama"
        assert not unfinished(server)
        check_sound(server.models)


def test_kill_9_of_the_conversion_process(files: dict[str, str], tmp_path: Path) -> None:
    with standalone(tmp_path) as server:
        assert RestClient(server).create("base", files=files) == "success"
        for body in jobs(files):
            with in_the_middle(server, **body) as (pid, told):
                os.kill(pid, signal.SIGKILL)
            assert "the conversion process ended: killed by SIGKILL" in told[0]
            assert not unfinished(server) and not working_folders(server)
            assert not (server.models / "manifests/registry.ollama.ai/library/new").exists()
        check_sound(server.models)
        for body in jobs(files):
            assert RestClient(server).create("new", **body) == "success"
