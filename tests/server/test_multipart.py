"""Forms as clients send them, in pieces of every size, and forms that are not valid."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_nb.errors import BadRequest, OllamaError, RequestTooLarge
from ollama_nb.server import multipart
from ollama_nb.server.multipart import MAX_TEXT, FormBody


class Written:
    def __init__(self) -> None:
        self.data = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.data += data

    def abort(self) -> None:
        self.aborted = True


def form(content: bytes, filename: str = '数据 "1".jsonl', **fields: str) -> tuple[str, bytes]:
    """Content type and body of a form, from the library that OpenAI's client uses."""
    request = httpx.Request("POST", "http://x", data=fields, files={"file": (filename, content)})
    return request.headers["Content-Type"], request.read()


def read(content_type: str, body: bytes, size: int = 0, max_bytes: int = 1 << 20) -> tuple[FormBody[Written], bytes]:
    async def run() -> tuple[FormBody[Written], bytes]:
        sink = FormBody(content_type, Written, max_bytes=max_bytes)
        try:
            for start in range(0, len(body), size or len(body)):
                await sink.write(body[start : start + (size or len(body))])
            return sink, (await sink.finish()).data
        finally:
            await sink.close()

    return asyncio.run(run())


@given(st.binary(max_size=300), st.integers(1, 40))
def test_pieces_of_every_size(content: bytes, size: int) -> None:
    sink, data = read(*form(content, purpose="批"), size=size)
    assert (data, sink.fields) == (content, {"purpose": "批"})
    assert sink.filename.startswith("数据 ") and sink.filename.endswith(".jsonl")


def test_an_empty_file_and_a_file_before_the_texts() -> None:
    assert read(*form(b""))[1] == b""
    kind = "multipart/form-data; boundary=b"
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n1\r\n2\r\n'
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
    )
    sink, data = read(kind, body)
    assert (data, sink.fields, sink.filename) == (b"1\r\n2", {"purpose": "batch"}, "a")


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [
        ("application/json", b"{}", BadRequest),
        ("", b"", BadRequest),
        ("multipart/form-data", PART + b"--b--\r\n", BadRequest),
        ("multipart/form-data; boundary=b", b"", BadRequest),
        ("multipart/form-data; boundary=b", b"not a form", BadRequest),
        ("multipart/form-data; boundary=b", PART, BadRequest),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n", BadRequest),
        ("multipart/form-data; boundary=b", PART + PART + b"--b--\r\n", BadRequest),
        ("multipart/form-data; boundary=b", PART.replace(b'"file"', b'"other"') + b"--b--\r\n", BadRequest),
        ("multipart/form-data; boundary=b", PART.replace(b"file", b"x" * 100_000, 1), OllamaError),
        (
            "multipart/form-data; boundary=b",
            PART.replace(b'"file"', b'"other"').replace(b"\r\nx", b"\r\n" + b"x" * MAX_TEXT),
            RequestTooLarge,
        ),
    ],
)
def test_forms_that_are_not_valid(content_type: str, body: bytes, kind: type[OllamaError]) -> None:
    with pytest.raises(kind):
        read(content_type, body, size=1000)


def test_a_file_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    content_type, body = form(bytes(5 << 20))

    opened: list[Written] = []

    def open_file() -> Written:
        opened.append(Written())
        return opened[0]

    async def run() -> None:
        sink = FormBody(content_type, open_file, max_bytes=3 << 20)
        for start in range(0, len(body), 64 << 10):
            await sink.write(body[start : start + (64 << 10)])
        assert opened[0].aborted and len(opened[0].data) <= 3 << 20
        with pytest.raises(RequestTooLarge):
            await sink.finish()
        monkeypatch.setattr(multipart, "MAX_DISCARDED", 1000)
        with pytest.raises(RequestTooLarge):
            await sink.write(bytes(1001))

    asyncio.run(run())
