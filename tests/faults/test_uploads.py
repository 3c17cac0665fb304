"""Uploads over HTTP: aborted, with a wrong digest, and of one blob by many clients at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from support.aio import in_loop
from support.service_harness import ServiceHarness
from support.stores import snapshot
from tornado import netutil

from ollama_nb.api.names import Digest
from ollama_nb.server.access import Keys
from ollama_nb.server.standalone import listen
from ollama_nb.server.state import ServerState
from ollama_nb.server.streams import UploadedBlob
from ollama_nb.store.blobs import BlobStore

DATA = os.urandom(9 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[ServiceHarness, httpx.AsyncClient]]:
    harness = ServiceHarness(folder)
    state = ServerState(harness.service)
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server = listen(state, sockets, keys=Keys())
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            yield harness, client
    finally:
        server.stop()
        await state.drain(5)
        await server.close_all_connections()
        await harness.service.close()


@in_loop
async def test_the_same_blob_from_many_clients(tmp_path: Path) -> None:
    async with served(tmp_path) as (harness, client):
        uploads = [client.post(f"/api/blobs/sha256:{DIGEST}", content=DATA) for _ in range(6)]
        codes = [reply.status_code for reply in await asyncio.gather(*uploads)]
        assert set(codes) <= {200, 201} and 201 in codes
        assert snapshot(harness.settings.models) == {f"blobs/sha256-{DIGEST}": DATA}
        assert (await client.post(f"/api/blobs/sha256:{DIGEST}", content=DATA)).status_code == 200
        assert (await client.head(f"/api/blobs/sha256:{DIGEST}")).status_code == 200


@in_loop
async def test_uploads_with_a_wrong_digest(tmp_path: Path) -> None:
    async with served(tmp_path) as (harness, client):
        false = DATA[:-1] + bytes([DATA[-1] ^ 1])
        bodies = [false, DATA, DATA[:-1], false]
        replies = await asyncio.gather(*(client.post(f"/api/blobs/sha256:{DIGEST}", content=body) for body in bodies))
        assert [reply.status_code for reply in replies] == [400, 201, 400, 400]
        assert "digest mismatch" in replies[0].json()["error"]
        assert snapshot(harness.settings.models) == {f"blobs/sha256-{DIGEST}": DATA}


@in_loop
async def test_cut_off_anywhere(tmp_path: Path) -> None:
    async with served(tmp_path) as (harness, client):
        port = client.base_url.port
        for length in (0, 1, 1 << 20, len(DATA) - 1):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /api/blobs/sha256:{DIGEST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(DATA)}\r\n\r\n"
            writer.write(head.encode() + DATA[:length])
            await writer.drain()
            writer.close()
            await reader.read()
        assert (await client.post(f"/api/blobs/sha256:{DIGEST}", content=DATA)).status_code == 201
    assert snapshot(harness.settings.models) == {f"blobs/sha256-{DIGEST}": DATA}


@in_loop
async def test_an_upload_that_ends_early_frees_its_bytes(tmp_path: Path) -> None:
    upload = UploadedBlob(BlobStore(tmp_path / "blobs").writer(), Digest(DIGEST))
    await upload.write(DATA[: 3 << 20])
    await upload.close()
    assert not upload._pending
