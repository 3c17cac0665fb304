"""Generated requests to every operation of the API description, against a real server with real models.

schemathesis makes requests that follow the description and requests that do not. None may end in an internal error, and
every reply must be described. ``SCHEMATHESIS_CASES`` sets the number of requests per operation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.openapi import DOCUMENT, JSON, OPERATIONS, Operation, check_reply, code_of
from support.servers import RunningServer, standalone

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.model

CASES = int(os.environ.get("SCHEMATHESIS_CASES", "8"))  # requests per operation
EXPECTED = {
    "source_error",
    "registry_unreachable",
    "access_denied",
    "credentials_required",
    "busy",
}  # codes of 5xx replies that the server is not to blame for
MODELS = ("stories", "sprout", "minilm")
LIMITS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict", "n", "best_of"}
MOST = 4  # value of the fields in LIMITS, so that a reply takes milliseconds
SCHEMA = schemathesis.openapi.from_dict({**DOCUMENT, "servers": [{"url": "/"}]})
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
CHANGES_MODELS = {"deleteModel", "createModel", "copyModel"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RunningServer]:
    """A server with three models, which can reach neither a registry nor a package index."""
    nowhere = "http://127.0.0.1:9"
    env = {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "PIP_NO_INDEX": "1", "OLLAMA_CONTEXT_LENGTH": "256"}
    with standalone(tmp_path_factory.mktemp("target"), env=env) as server:
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
            for name, file in (("stories", "stories260K-f32.gguf"), ("minilm", "all-MiniLM-L6-v2-q8_0.gguf")):
                create(client, name, (models / file).read_bytes())
            client.post("/api/pull", json={"model": "sprout", "stream": False}).raise_for_status()
        yield server


def create(client: httpx.Client, name: str, data: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    client.post(f"/api/blobs/{digest}", content=data).raise_for_status()
    body = {"model": name, "files": {"model.gguf": digest}, "stream": False}
    client.post("/api/create", json=body).raise_for_status()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_no_generated_request_breaks_the_server(target: RunningServer, operation: Operation) -> None:
    described = SCHEMA[operation.path][operation.method]
    cases = st.one_of(*(described.as_strategy(generation_mode=mode) for mode in MODES))

    @settings(max_examples=CASES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=cases, model=st.sampled_from((*MODELS, *MODELS, "")))
    def check(case: Any, model: str) -> None:
        if operation.id not in CHANGES_MODELS:
            case.body = runnable(case.body, model)
        reply = case.call(base_url=target.url, timeout=120)
        assert_described(operation, reply.status_code, reply.headers, reply.content)

    check()


def runnable(body: Any, model: str) -> Any:
    """The body with a model that exists, unless ``model`` is empty, and with short replies."""
    if not isinstance(body, dict):
        return body
    found = {**body, "model": model} if model and "model" in body else dict(body)
    for name in LIMITS & found.keys():
        if isinstance(found[name], int):
            found[name] = min(found[name], MOST)
    if isinstance(found.get("options"), dict):
        found["options"] = {**runnable(found["options"], ""), "num_predict": MOST, "num_ctx": 256}
    return found


def assert_described(operation: Operation, status: int, headers: Any, content: bytes) -> None:
    kind = headers.get("content-type", [""])
    content_type = kind[0] if isinstance(kind, list) else kind
    if not content_type.startswith((JSON, "text/event-stream", "application/x-ndjson")) and status in (
        301,
        307,
        404,
        405,
    ):
        return  # a path parameter with dots or slashes leads to another path
    (*_, last) = check_reply(operation, status, content_type, content) or [None]
    if status >= 500:
        assert code_of(last) in EXPECTED, f"{operation.id}: {status} {content[:500]!r}"
