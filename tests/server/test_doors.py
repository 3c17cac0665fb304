"""The doors beyond Ollama's API, on a real socket in front of a scripted service."""

from __future__ import annotations

from pathlib import Path

from support.aio import in_loop
from test_handlers import house


@in_loop
async def test_tokens_and_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        reply = await h.client.post("/api/tokenize", json={"model": "m", "prompt": "x"})
        assert (reply.status_code, reply.text) == (200, '{"model":"m","tokens":[1,2,3]}')
        reply = await h.client.post("/api/detokenize", json={"model": "m", "tokens": [5, 6]})
        assert reply.json() == {"model": "m", "content": "天 & <x>"}
        assert h.service.asked[1] == ("m", (5, 6))
        for wrong in ("5", [1.5], ["a"], [1 << 64]):
            reply = await h.client.post("/api/detokenize", json={"model": "m", "tokens": wrong})
            assert reply.status_code == 400 and "DetokenizeRequest.tokens" in reply.json()["error"]
        assert (await h.client.get("/api/tokenize")).status_code == 405
