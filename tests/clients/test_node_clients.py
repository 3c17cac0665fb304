"""Clients in JavaScript: the packages ``openai`` and ``ai`` (Vercel) of npm, which ``make test-clients`` installs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.clients import PARIS, Host

pytestmark = pytest.mark.model
PACKAGES = Path(__file__).parents[2] / ".venv" / "node"
SCRIPT = Path(__file__).parent / "node" / "questions.mjs"


@pytest.fixture
def answers(host: Host) -> dict[str, Any]:
    """What the script printed. It is copied beside the packages, because Node.js looks for them from its folder up."""
    assert (PACKAGES / "node_modules").is_dir(), "the packages of npm are missing: run `make test-clients`"
    script = shutil.copy(SCRIPT, PACKAGES)
    env = {**os.environ, "OPENAI_BASE_URL": host.openai, "OPENAI_API_KEY": host.key}
    done = subprocess.run(["node", script], env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_answers(answers: dict[str, Any]) -> None:
    assert json.loads(answers["call"]["arguments"]) == {"city": "Paris"}
    assert answers["call"]["name"] == "get_weather"
    assert len(answers["streamed"]) > 3 and len(answers["aiStreamed"]) > 3
    assert {answers[name] for name in ("chat", "responses", "ai")} == {PARIS}
    assert "".join(answers["streamed"]) == "".join(answers["aiStreamed"]) == PARIS
    assert answers["thinking"].startswith("The user asks for the capital of France.")
    assert answers["tools"] == "The weather in Paris is sunny, with 18 degrees."
    assert answers["object"] == {"capital": "Paris"}
    assert answers["embedding"] == answers["aiEmbedding"] == 64
    assert answers["missing"] == {"status": 404, "code": "model_not_found"}
