"""No value of an option ends a runner: extreme numbers against a real server, in requests, Modelfiles and variables."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.servers import RestClient, descendants, standalone

from ollama_nb.api.options import KINDS

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]
STORIES = "stories260K-f32.gguf"
LOADING = {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
"""Options whose change loads the model again."""
NUMBERS = sorted({*(name for name, kind in KINDS.items() if kind in ("int", "float")), "mirostat"} - {"num_predict"})
EDGES = [
    0,
    -1,
    1,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**62,
    2**64,
    -(2**64),
    10**400,
    1e30,
    -1e30,
    1e300,
    4096.7,
    1e-30,
]
WRITTEN = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"]
values = st.sampled_from(EDGES) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
written = values.map(json.dumps) | st.sampled_from(WRITTEN)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RestClient]:
    with standalone(tmp_path_factory.mktemp("home")) as server:
        yield with_model(RestClient(server), models)


def with_model(client: RestClient, models: Path) -> RestClient:
    client.create("m", files={"m.gguf": client.add_blob((models / STORIES).read_bytes())})
    return client


def ask(client: RestClient, options: dict[str, str], **fields: Any) -> tuple[int, dict[str, Any]]:
    """Status and last line for options whose values are written as JSON."""
    body = json.dumps({"model": "m", "prompt": "Once", "stream": False, "options": "?", **fields})
    text = ", ".join(f'"{name}": {value}' for name, value in {"num_predict": "3", **options}.items())
    status, lines = client.request("POST", "/api/generate", body.replace('"?"', f"{{{text}}}").encode())
    return status, lines[-1]


def served(client: RestClient) -> set[int]:
    assert ask(client, {})[0] == 200
    return descendants(client.pid)


def test_numbers_that_need_no_load_leave_the_runner_alone(client: RestClient) -> None:
    """S8: whole numbers, floats, NaN and infinity: 200 or 400, never a 5xx, and the same runner process."""
    before = served(client)
    chosen = st.dictionaries(st.sampled_from(sorted(set(NUMBERS) - LOADING)), written, min_size=1, max_size=4)

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(chosen)
    def check(options: dict[str, str]) -> None:
        status, reply = ask(client, options)
        assert status in (200, 400), reply

    check()
    assert served(client) == before


def test_numbers_that_load_the_model_again_never_end_a_runner(client: RestClient) -> None:
    """S8: as above for the options of a load. Afterwards a plain request is served at once."""
    for name in sorted(LOADING & set(NUMBERS)):
        for value in [*map(json.dumps, EDGES), *WRITTEN]:
            status, reply = ask(client, {name: value})
            assert status in (200, 400), (name, value, reply)
    served(client)


def test_plain_requests_after_and_beside_extreme_ones_are_served(client: RestClient) -> None:
    """F15: what one request asks for never counts against others."""
    for _ in range(3):
        status, reply = ask(client, {"num_thread": "2147483647"})
        assert status == 200 and any("num_thread" in warning for warning in reply["warnings"])
    assert ask(client, {"num_thread": "2147483647"}, keep_alive=0)[0] == 200
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(ask, client, {"num_ctx": "2147483647"} if not n else {}) for n in range(6)]
        assert [future.result()[0] for future in asked] == [200] * 6


def test_a_modelfile_with_extreme_parameters(client: RestClient) -> None:
    """S8: parameters of a model are limited as those of a request."""
    extreme = {
        "num_thread": 2**31 - 1,
        "num_ctx": 2**31 - 1,
        "num_batch": 2**31 - 1,
        "num_gpu": 2**31 - 1,
        "num_keep": -5,
    }
    client.create("x", **{"from": "m", "parameters": extreme})
    status, reply = ask(client, {}, model="x")
    assert status == 200, reply


def test_extreme_variables(tmp_path: Path, models: Path) -> None:
    """S8: numbers of the environment are limited too, and the log names them."""
    huge = {"OLLAMA_NUM_PARALLEL": "2147483647", "OLLAMA_CONTEXT_LENGTH": "9" * 5000, "OLLAMA_MAX_QUEUE": "9" * 30,
            "OLLAMA_MAX_LOADED_MODELS": "9" * 30, "OLLAMA_KEEP_ALIVE": "9" * 400, "OLLAMA_LOAD_TIMEOUT": "9" * 400,
            "OLLAMA_NB_PREFIX_CACHE": "9" * 40}  # fmt: skip
    with standalone(tmp_path, env=huge) as server:
        client = with_model(RestClient(server), models)
        status, reply = ask(client, {})
        assert status == 200, reply
        assert "OLLAMA_NUM_PARALLEL is larger than 255: 255 is used" in server.output()
