"""docs/openapi.yaml has the routes, fields and error codes of the server, and its page needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from support.aio import in_loop
from support.openapi import DOCUMENT, JSON, OPERATIONS, Operation, anonymous, validator
from test_handler import serve

from ollama_nb.errors import OllamaError, family
from ollama_nb.server import description
from ollama_nb.server.routes import ROUTES

CLIENT_ONLY = {"connect_error", "reply_cut_off", "shape_mismatch"}


def test_the_routes_are_those_of_the_server() -> None:
    served = {(method, anonymous(pattern)) for pattern, methods in ROUTES.items() for method in methods}
    assert {(op.method, op.pattern) for op in OPERATIONS} == served


def test_the_error_codes_are_those_of_the_server() -> None:
    kinds = [
        kind for kind in family(OllamaError) if kind.__module__.startswith("ollama_nb.") and kind.__name__[0] != "_"
    ]
    codes = {kind.code: str(kind.status) for kind in kinds if kind.code not in CLIENT_ONLY}
    table = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCUMENT["info"]["description"], re.MULTILINE))
    assert table == codes
    assert set(DOCUMENT["components"]["schemas"]["ErrorCode"]["enum"]) == set(codes)


def values(found: Any) -> Iterator[tuple[str, Any]]:
    """Every value of the document, with the path to it."""
    entries = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, inner in entries:
        yield str(key), inner
        for path, deeper in values(inner):
            yield f"{key}/{path}", deeper


def test_the_document_is_sound() -> None:
    """References lead somewhere, schemas are valid, and no text was cut at a comma."""
    for path, value in values(DOCUMENT):
        assert value is not None or "examples" in path, path
        if isinstance(value, dict) and isinstance(value.get("$ref"), str):
            description.resolve(DOCUMENT, value)
    for schema in DOCUMENT["components"]["schemas"].values():
        validator_for(schema, Draft202012Validator).check_schema(schema)
    identifiers = [op.id for op in OPERATIONS]
    assert len(set(identifiers)) == len(identifiers)
    assert {tag for op in OPERATIONS for tag in op.value["tags"]} == {tag["name"] for tag in DOCUMENT["tags"]}


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op.body], ids=lambda op: op.id)
def test_examples_follow_their_schema(operation: Operation) -> None:
    assert operation.examples or JSON not in operation.body
    for example in operation.examples:
        validator(operation.body[JSON]["schema"]).validate(example)


@in_loop
async def test_the_document_over_http(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        reply = await h.client.get("/openapi.json")
        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        assert reply.json() == {**DOCUMENT, "servers": [{"url": "/", "description": "This server"}]}
    assert b'"servers":[{"url":"/user/x/ollama"' in description.as_json("/user/x/ollama")


@in_loop
async def test_the_page(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        reply = await h.client.get("/docs", headers={"Host": f"localhost:{h.port}"})
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        page = reply.text
        assert not re.findall(r"<script|<link|<img|src=|url\(|https?://(?!localhost|127\.0\.0\.1)", page)
        assert f"curl http://localhost:{h.port}/api/chat -d" in page and "Bearer $OLLAMA" not in page
        keyed = await h.client.get("/docs", headers={"Authorization": "Bearer x"})
        assert "Authorization: Bearer $OLLAMA_API_KEY" in keyed.text
    anchors = re.findall(r' id="([^"]+)"', page)
    assert len(set(anchors)) == len(anchors) and {op.id for op in OPERATIONS} <= set(anchors)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(anchors)
    for operation in OPERATIONS:
        for name in operation.fields:
            assert f"<code>{name}</code>" in page, (operation.id, name)
    assert "\0" not in page


def test_the_page_escapes_the_address() -> None:
    page = description.page('http://x"<script>/ollama', with_key=True).decode()
    assert "<script" not in page and "http://x&quot;&lt;script&gt;/ollama/api/chat" in page


def test_shared_fields_follow_those_of_the_schema_itself() -> None:
    fields = list(description.load()["components"]["schemas"]["OpenAIChatRequest"]["properties"])
    assert fields[:2] == ["model", "messages"]
    assert fields.index("messages") < fields.index("num_ctx")
