"""The routes of files and batches on a real socket; the lines of result files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.aio import in_loop
from support.fake_service import FakeService
from test_handler import ServedService, serve, until

from ollama_nb.errors import ModelNotFound
from ollama_nb.server.dialects.openai import batches as dialect
from ollama_nb.server.dialects.openai.batches import OpenAIBatches
from ollama_nb.service.batches import BatchJob, BatchLine, LineResult

CHAT = "/v1/chat/completions"
NAME = "请求 one.jsonl"


async def upload(h: ServedService, content: bytes, **fields: str) -> httpx.Response:
    return await h.client.post("/v1/files", data={"purpose": "batch", **fields}, files={"file": (NAME, content)})


@in_loop
async def test_a_file_from_upload_to_delete(tmp_path: Path) -> None:
    content = "第一行\n".encode() + os.urandom(3 << 20)
    async with serve(tmp_path) as h:
        reply = await upload(h, content, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
        file = reply.json()
        assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
        assert file.items() >= {
            "object": "file", "bytes": len(content), "filename": NAME, "purpose": "batch", "status": "processed",
        }.items()  # fmt: skip
        assert file["expires_at"] - file["created_at"] in (3599, 3600, 3601)
        path = f"/v1/files/{file['id']}"
        assert (await h.client.get(path)).json() == file
        sent = await h.client.get(f"{path}/content")
        assert sent.content == content and sent.headers["content-length"] == str(len(content))
        assert sent.headers["content-disposition"].endswith("%20one.jsonl")
        assert (await h.client.delete(path)).json() == {"id": file["id"], "object": "file", "deleted": True}
        for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/content")):
            gone = await h.client.request(method, where)
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


@in_loop
async def test_lists_in_pages(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        assert (await h.client.get("/v1/files")).json() == {
            "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
        }  # fmt: skip
        ids = [(await upload(h, b"x", purpose=purpose)).json()["id"] for purpose in ("batch", "vision", "batch")]

        async def listed(query: str) -> tuple[list[str], bool]:
            page = (await h.client.get(f"/v1/files{query}")).json()
            found = [one["id"] for one in page["data"]]
            assert (page["first_id"], page["last_id"]) == ((found[0], found[-1]) if found else (None, None))
            return found, page["has_more"]

        assert await listed("") == (ids[::-1], False)
        assert await listed("?order=asc&limit=2") == (ids[:2], True)
        assert await listed(f"?order=asc&limit=2&after={ids[1]}") == (ids[2:], False)
        assert await listed("?purpose=vision") == ([ids[1]], False)
        batches = [
            (await h.client.post("/v1/batches", json={"input_file_id": ids[0], "endpoint": CHAT})).json()["id"]
            for _ in range(3)
        ]
        page = (await h.client.get(f"/v1/batches?limit=1&after={batches[2]}")).json()
        assert ([one["id"] for one in page["data"]], page["has_more"]) == ([batches[1]], True)
        for path in ("/v1/files", "/v1/batches"):
            more = "order=up" if path == "/v1/files" else "limit=101"
            for query in ("limit=0", "limit=x", "limit=10001", "after=file-1", more):
                wrong = await h.client.get(f"{path}?{query}")
                assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "bad_request"), query
                assert wrong.json()["error"]["param"] == query.partition("=")[0]


@in_loop
async def test_uploads_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "MAX_UPLOAD", 1 << 20)
    async with serve(tmp_path) as h:
        for fields, field in (
            ({"purpose": ""}, "purpose"),
            ({"purpose": "x"}, "purpose"),
            ({"expires_after[seconds]": "60"}, "expires_after.seconds"),
            ({"expires_after[seconds]": "3600", "expires_after[anchor]": "now"}, "expires_after.anchor"),
        ):
            wrong = await upload(h, b"x", **fields)
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, field)
        for size in ((1 << 20) + 1, 3 << 20):
            wrong = await upload(h, bytes(size))
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (413, "request_too_large")
        for kind in ("application/json", "multipart/form-data"):
            wrong = await h.client.post("/v1/files", content=b"{}", headers={"Content-Type": kind})
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "bad_request")
        root = h.service.batches.store.root
        assert not root.exists(), "refused before anything is written"
        head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
        part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + bytes(1 << 20)
        async with h.raw(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + part):
            await until(lambda: [*root.glob(".part-*")])
        await until(lambda: not [*root.iterdir()])


@in_loop
async def test_a_batch_from_create_to_cancel(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        file = (await upload(h, b"{}\n")).json()["id"]
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", "metadata": {"名": "值"}}
        reply = await h.client.post("/v1/batches", json=body)
        batch = reply.json()
        created = batch["created_at"]
        assert (reply.status_code, batch) == (200, {
            "id": batch["id"], "object": "batch", "endpoint": CHAT, "model": None, "errors": None,
            "input_file_id": file, "completion_window": "24h", "status": "validating", "output_file_id": None,
            "error_file_id": None, "created_at": created, "expires_at": created + 86400, "in_progress_at": None,
            "finalizing_at": None, "completed_at": None, "failed_at": None, "expired_at": None, "cancelling_at": None,
            "cancelled_at": None, "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": {"名": "值"},
        })  # fmt: skip
        path = f"/v1/batches/{batch['id']}"
        assert (await h.client.get(path)).json() == batch
        assert (await h.client.get("/v1/batches")).json()["data"] == [batch]
        used = await h.client.delete(f"/v1/files/{file}")
        assert used.status_code == 400 and batch["id"] in used.json()["error"]["message"]
        entry = (await h.client.get("/api/queue")).json()
        assert entry["requests"] == [] and entry["batches"][0].items() >= {
            "id": batch["id"], "endpoint": CHAT, "status": "validating", "total": 0, "completed": 0, "failed": 0,
        }.items()  # fmt: skip
        assert "ollama_nb_batches_unfinished 1.0" in (await h.client.get("/metrics")).text
        cancelled = (await h.client.post(f"{path}/cancel")).json()
        assert cancelled["status"] == "cancelling" and cancelled["cancelling_at"] >= created
        store = h.service.batches.store
        store.end(store.batch(batch["id"]).enter("cancelled", created + 5.0))
        again = await h.client.post(f"{path}/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (400, "bad_request")
        assert (await h.client.get("/api/queue")).json() == {"requests": []}
        assert "ollama_nb_batches_unfinished 0.0" in (await h.client.get("/metrics")).text
        assert h.state.working == 0


@in_loop
async def test_batches_that_are_refused(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        body = {"input_file_id": (await upload(h, b"{}")).json()["id"], "endpoint": CHAT}
        for change, status, field in (
            ({"input_file_id": None}, 400, "input_file_id"),
            ({"input_file_id": "file-1"}, 404, None),
            ({"endpoint": "/v1/models"}, 400, "endpoint"),
            ({"completion_window": "8000h"}, 400, "completion_window"),
            ({"completion_window": "-1h"}, 400, "completion_window"),
            ({"completion_window": "soon"}, 400, "completion_window"),
            ({"metadata": {"a": 1}}, 400, "metadata"),
        ):
            wrong = await h.client.post("/v1/batches", json={**body, **change})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (status, field), change
        loose = (await h.client.post("/v1/batches", json={**body, "endpiont": 1})).json()
        assert loose["warnings"] == ['ignored field "endpiont", did you mean "endpoint"?']
        strict = await h.client.post("/v1/batches", json={**body, "x": 1}, headers={"X-Ollama-Strict": "true"})
        assert strict.status_code == 400
        for method, path in (("GET", "/v1/batches/batch_1"), ("POST", "/v1/batches/..%2f/cancel")):
            assert (await h.client.request(method, path)).status_code == 404


def test_lines_of_result_files(tmp_path: Path) -> None:
    job = BatchJob(id="batch_ab", endpoint=CHAT, input_file="f", window="24h", created_at=0, expires_at=1)
    writer = OpenAIBatches(FakeService(tmp_path))  # type: ignore[arg-type]

    def encoded(status: int, body: bytes) -> Any:
        line = writer.encode_result(job, LineResult(status, 7, '天"x', "r", msgspec.Raw(body)))
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        return json.loads(line)

    good = encoded(200, b'{"a":[1]}')
    assert good == {
        "id": "batch_req_ab_7", "custom_id": '天"x',
        "response": {"status_code": 200, "request_id": "r", "body": {"a": [1]}}, "error": None,
    }  # fmt: skip
    failure = writer.encode_error(ModelNotFound("没有"))
    bad = encoded(404, failure.strip())
    assert bad["response"]["body"]["error"]["code"] == "model_not_found" and bad["line"] == 7
    for status in ("cancelled", "expired"):
        line = json.loads(writer.encode_unfinished(job, BatchLine(3, 0, 1, None), status))
        assert (line["line"], line["response"], line["error"]["code"]) == (3, None, f"batch_{status}")
