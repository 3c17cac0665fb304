"""Texts that are longer than an embedding model reads: reported, or refused when the request is strict."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.clients import create_model
from support.servers import standalone

pytestmark = pytest.mark.model
STRICT = {"X-Ollama-Strict": "true"}


def test_cut_inputs_are_reported(tmp_path: Path, models: Path) -> None:
    """G17: the lengths around the limit, with the model's own limit and with that of num_ctx."""
    with (
        standalone(tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http,
    ):
        create_model(http, "minilm", (models / "all-MiniLM-L6-v2-q8_0.gguf").read_bytes())
        for num_ctx, limit in ((None, 512), (100, 100)):
            body = {"model": "minilm", "options": {} if num_ctx is None else {"num_ctx": num_ctx}}
            for length in range(limit - 2, limit + 3):
                inputs = ["a", "cat " * (length - 2)]  # and [CLS] and [SEP]
                reply = http.post("/api/embed", json={**body, "input": inputs}).json()
                strict = http.post("/api/embed", json={**body, "input": inputs}, headers=STRICT)
                refused = http.post("/api/embed", json={**body, "input": inputs, "truncate": False})
                if length <= limit:
                    assert "truncated" not in reply and "warnings" not in reply
                    assert strict.status_code == refused.status_code == 200
                    continue
                assert reply["truncated"] == {"inputs": [1]}
                (warning,) = reply["warnings"]
                assert warning.startswith(f"input 1: only the first {limit} tokens were used; ")
                assert ("num_ctx" in warning) == (num_ctx is not None), "named only where it helps"
                assert (strict.status_code, strict.json()["error"]) == (400, warning)
                assert refused.status_code == 400
        long = "cat " * 600
        openai = http.post("/v1/embeddings", json={"model": "minilm", "input": ["a", long]}).json()
        assert [text[:7] for text in openai["warnings"]] == ["input 1"]
        rerank = {"model": "minilm", "query": "a cat", "documents": ["a dog", long]}
        assert len(http.post("/api/rerank", json=rerank).json()["warnings"]) == 1
        assert http.post("/api/rerank", json=rerank, headers=STRICT).status_code == 400
