"""Uploads over HTTP: aborted, with a wrong digest, and of one blob by many clients at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from support.aio import in_loop
from support.service_harness import ServiceHarness, serve_harness
from support.stores import snapshot

from ollama_nb.api.names import Digest
from ollama_nb.server.streams import UploadedBlob
from ollama_nb.store.blobs import BlobStore

DATA = os.urandom(9 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()


@in_loop
async def test_the_same_blob_from_many_clients(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    async with serve_harness(harness) as client:
        uploads = [client.post(f"/api/blobs/sha256:{DIGEST}", content=DATA) for _ in range(6)]
        codes = [reply.status_code for reply in await asyncio.gather(*uploads)]
        assert set(codes) <= {200, 201} and 201 in codes
        assert snapshot(harness.settings.models) == {f"blobs/sha256-{DIGEST}": DATA}
        assert (await client.post(f"/api/blobs/sha256:{DIGEST}", content=DATA)).status_code == 200
        assert (await client.head(f"/api/blobs/sha256:{DIGEST}")).status_code == 200


@in_loop
async def test_uploads_with_a_wrong_digest(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    async with serve_harness(harness) as client:
        false = DATA[:-1] + bytes([DATA[-1] ^ 1])
        bodies = [false, DATA, DATA[:-1], false]
        replies = await asyncio.gather(*(client.post(f"/api/blobs/sha256:{DIGEST}", content=body) for body in bodies))
        assert [reply.status_code for reply in replies] == [400, 201, 400, 400]
        assert "digest mismatch" in replies[0].json()["error"]
        assert snapshot(harness.settings.models) == {f"blobs/sha256-{DIGEST}": DATA}


@in_loop
async def test_cut_off_anywhere(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    async with serve_harness(harness) as client:
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
