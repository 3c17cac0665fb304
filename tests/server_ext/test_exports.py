"""The environment of kernels, without a running server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ollama_nb_ext.exports import Exports, own_address

URL = "http://127.0.0.1:8888/ollama"


def server(**traits: Any) -> Any:
    return SimpleNamespace(**{"ip": "localhost", "port": 8888, "base_url": "/", "sock": "", "certfile": "", **traits})


@pytest.mark.parametrize(
    ("traits", "url"),
    [
        ({}, URL),
        ({"ip": ""}, URL),
        ({"ip": "*"}, URL),
        ({"ip": "0.0.0.0"}, URL),
        ({"ip": "::"}, "http://[::1]:8888/ollama"),
        ({"ip": "::1"}, "http://[::1]:8888/ollama"),
        ({"ip": "10.0.0.5"}, "http://10.0.0.5:8888/ollama"),
        ({"base_url": "/user/ä%40b/", "port": 8889}, "http://127.0.0.1:8889/user/ä%40b/ollama"),
        ({"certfile": "cert.pem"}, None),
        ({"sock": "/run/jupyter.sock", "port": 0}, None),
        ({"port": 0}, None),
    ],
)
def test_own_address(traits: dict[str, Any], url: str | None) -> None:
    assert own_address(server(**traits), "/ollama") == url


def test_address_and_key_are_exported_together_and_undone() -> None:
    env = {"PATH": "/bin", "OLLAMA_API_KEY": "the user's key for ollama.com"}
    exports = Exports(env)
    assert exports.apply(URL, "k")
    assert env["OLLAMA_HOST"] == URL and env["OLLAMA_API_KEY"] == "k" and env["OLLAMA_NB_EXPORTED"] == "1"
    assert "NO_PROXY" not in env
    exports.undo()
    assert env == {"PATH": "/bin", "OLLAMA_API_KEY": "the user's key for ollama.com"}


def test_an_address_of_the_user_stays_and_no_key_is_exported() -> None:
    env = {"OLLAMA_HOST": "gpu.example:11434"}
    exports = Exports(env)
    assert not exports.apply(URL, "k")
    exports.undo()
    assert env == {"OLLAMA_HOST": "gpu.example:11434"}


def test_an_address_that_another_jupyter_exported_is_replaced() -> None:
    env = {"OLLAMA_HOST": "http://127.0.0.1:1/ollama", "OLLAMA_API_KEY": "old", "OLLAMA_NB_EXPORTED": "1"}
    before = dict(env)
    exports = Exports(env)
    assert exports.apply(URL, "k") and env["OLLAMA_HOST"] == URL and env["OLLAMA_API_KEY"] == "k"
    exports.undo()
    assert env == before


@pytest.mark.parametrize(
    ("env", "no_proxy"),
    [
        ({"http_proxy": "http://proxy"}, "127.0.0.1,localhost,::1"),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "a.b, localhost"}, "a.b,localhost,127.0.0.1,::1"),
        ({"all_proxy": "socks5://proxy", "no_proxy": "*"}, "*"),
    ],
)
def test_loopback_addresses_bypass_a_proxy(env: dict[str, str], no_proxy: str) -> None:
    before = dict(env)
    exports = Exports(env)
    exports.apply(URL, "k")
    assert env["no_proxy"] == no_proxy and env.get("NO_PROXY", no_proxy) == no_proxy
    exports.undo()
    assert env == before


def test_the_variables_of_openai_clients_are_exported_on_request_and_undone() -> None:
    env = {"PATH": "/bin", "https_proxy": "http://proxy"}
    exports = Exports(env)
    assert exports.apply_openai(URL, "k")
    assert (env["OPENAI_BASE_URL"], env["OPENAI_API_KEY"]) == (f"{URL}/v1", "k")
    assert env["NO_PROXY"] == "127.0.0.1,localhost,::1"
    nested = Exports(env)  # another Jupyter server, started in a terminal of the first
    assert nested.apply_openai("http://127.0.0.1:9999/ollama", "other")
    assert env["OPENAI_API_KEY"] == "other"
    nested.undo()
    exports.undo()
    assert env == {"PATH": "/bin", "https_proxy": "http://proxy"}


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_BASE_URL"])
def test_values_of_the_user_for_openai_stay(name: str) -> None:
    env = {name: "mine"}
    exports = Exports(env)
    assert not exports.apply_openai(URL, "k")
    assert env == {name: "mine"}
