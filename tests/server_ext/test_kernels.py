"""A new kernel finds the server without configuration, for several configurations of the Jupyter server."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_server.auth import passwd
from support.servers import RunningServer, clean_env, free_port, jupyter, started, until

pytestmark = pytest.mark.model

CHAT = """
import json, os, ollama
reply = ollama.chat("sprout", messages=[{"role": "user", "content": "Why is the sky blue?"}], options={"seed": 1})
pieces = [c.message.content for c in ollama.chat("sprout", messages=[{"role": "user", "content": "hi"}], stream=True)]
names = [m.model for m in ollama.list().models]
print(json.dumps({"host": os.environ["OLLAMA_HOST"], "text": reply.message.content, "pieces": len(pieces),
                  "names": names}))
"""


@contextlib.contextmanager
def logged_in(server: RunningServer, password: str = "", sock: Path | None = None) -> Iterator[httpx.Client]:
    """A client of Jupyter's own API, through a Unix socket if one is given."""
    transport = httpx.HTTPTransport(uds=str(sock)) if sock else httpx.HTTPTransport(verify=False, trust_env=False)
    root = server.url.removesuffix("/ollama")
    with httpx.Client(base_url=root, timeout=120, transport=transport, headers=server.headers) as client:
        if password:
            client.get("/login")
            xsrf = {"_xsrf": client.cookies["_xsrf"]}
            assert client.post("/login", data={"password": password, **xsrf}).status_code == 302
            client.headers["X-XSRFToken"] = client.cookies["_xsrf"]
        yield client


def run_in_kernel(server: RunningServer, code: str, password: str = "", sock: Path | None = None) -> dict[str, Any]:
    """Start a kernel as a notebook does; return what the code prints as JSON."""
    with logged_in(server, password, sock) as client:
        started = client.post("/api/kernels", json={"name": "python3"})
        assert started.status_code == 201, started.text
        kernel_id = started.json()["id"]
        file = server.home / "jupyter_runtime_dir" / f"kernel-{kernel_id}.json"
        until(server, file.exists)
        kernel = BlockingKernelClient(connection_file=str(file))
        kernel.load_connection_file()
        kernel.start_channels(hb=False)  # a kernel that says nothing for a second is not dead, only slow
        try:
            kernel.wait_for_ready(timeout=240)
            text: list[str] = []
            reply = kernel.execute_interactive(code, timeout=240, output_hook=lambda m: text.append(_text(m)))
            assert reply["content"]["status"] == "ok", "".join(text) + server.output()
            found: dict[str, Any] = json.loads("".join(text))
            return found
        finally:
            kernel.stop_channels()
            kernel.context.destroy()
            client.delete(f"/api/kernels/{kernel_id}")


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return str(content.get("text") or "\n".join(content.get("traceback", ())))


def check(server: RunningServer, host: str, password: str = "", sock: Path | None = None) -> None:
    found = run_in_kernel(server, CHAT, password, sock)
    assert found["host"].startswith(host)
    assert found["text"].strip() and found["pieces"] > 1 and "sprout:latest" in found["names"]


def test_a_token_a_base_url_and_a_proxy(tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    env = {"http_proxy": dead, "HTTPS_PROXY": dead, "NO_PROXY": ""}
    with jupyter(tmp_path, base_url="/user/x/", env=env) as server:
        check(server, server.url)


def test_a_password(tmp_path: Path) -> None:
    args = (f"--PasswordIdentityProvider.hashed_password={passwd('secret', 'sha256')}",)
    with jupyter(tmp_path, token=None, args=args) as server:
        assert httpx.get(f"{server.url}/api/tags", timeout=60, trust_env=False).status_code == 401
        check(server, server.url, "secret")


def test_https_with_a_self_signed_certificate(tmp_path: Path) -> None:
    assert shutil.which("openssl"), "this test makes a certificate with openssl"
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    args = (f"--ServerApp.certfile={cert}", f"--ServerApp.keyfile={key}")
    with jupyter(tmp_path, args=args, scheme="https") as server:
        check(server, "http://127.0.0.1:")
        assert httpx.get(f"{server.url}/api/tags", headers=server.headers, timeout=60, verify=False).status_code == 200


def test_a_unix_socket_and_a_folder_with_a_chinese_name_and_a_space(tmp_path: Path) -> None:
    """Kernels get the address of an additional listener on loopback."""
    home, sock = tmp_path / "我的 笔记", tmp_path / "sock"
    home.mkdir()
    command = [
        sys.executable, "-P", "-m", "jupyter_server", "--no-browser", "--allow-root", f"--ServerApp.sock={sock}",
        f"--ServerApp.root_dir={home}", "--IdentityProvider.token=test-token",
        "--ServerApp.jpserver_extensions={'ollama_nb_ext': True}",
    ]  # fmt: skip
    with started(command, home, clean_env(home)) as (process, log):
        headers = {"Authorization": "Bearer test-token"}
        server = RunningServer("http://localhost/ollama", process, home, log, headers)
        until(server, lambda: bool(list((home / "jupyter_runtime_dir").glob("ollama-nb-*.json"))))
        check(server, "http://127.0.0.1:", sock=sock)
        with logged_in(server, sock=sock) as client:
            assert client.get("/ollama/api/tags").json()["models"][0]["name"] == "sprout:latest"


OPENAI = """
import json, os, urllib.request
found = {name: os.environ.get(name) for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY")}
if found["OPENAI_BASE_URL"]:
    key = {"Authorization": "Bearer " + found["OPENAI_API_KEY"]}
    address = found["OPENAI_BASE_URL"].removesuffix("/v1") + "/api/tags"
    found["status"] = urllib.request.urlopen(urllib.request.Request(address, headers=key)).status
print(json.dumps(found))
"""


def test_the_variables_of_openai_clients_are_exported_only_on_request(tmp_path: Path) -> None:
    with jupyter(tmp_path / "off") as server:
        assert run_in_kernel(server, OPENAI) == {"OPENAI_BASE_URL": None, "OPENAI_API_KEY": None}
    with jupyter(tmp_path / "on", args=("--OllamaExtension.export_openai=True",)) as server:
        found = run_in_kernel(server, OPENAI)
        assert found["OPENAI_BASE_URL"] == f"{server.url}/v1"
        assert found["status"] == 200
    env = {"OPENAI_API_KEY": "sk-mine"}
    with jupyter(tmp_path / "user", args=("--OllamaExtension.export_openai=True",), env=env) as server:
        assert run_in_kernel(server, OPENAI) == {"OPENAI_BASE_URL": None, "OPENAI_API_KEY": "sk-mine"}
        assert "is set already and stays" in server.output()


def test_an_interrupted_server_removes_its_runtime_file(tmp_path: Path) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("SIGINT is ignored in this process and its children")
    with jupyter(tmp_path) as server:
        assert list((tmp_path / "jupyter_runtime_dir").glob("ollama-nb-*.json"))
        server.process.send_signal(signal.SIGINT)
        server.process.wait(60)
        assert not list((tmp_path / "jupyter_runtime_dir").glob("ollama-nb-*.json"))


def test_an_open_port_and_an_address_of_the_user(tmp_path: Path) -> None:
    port = free_port()
    args = (f"--OllamaExtension.open_port={port}",)
    with jupyter(tmp_path, args=args, env={"OLLAMA_HOST": "http://gpu.example:1"}) as server:
        reply = httpx.get(f"http://127.0.0.1:{port}/api/tags", timeout=60, trust_env=False)
        assert reply.json() == {"models": []}
        rebound = {"Host": "evil.example.com"}
        assert httpx.get(f"http://127.0.0.1:{port}/", headers=rebound, timeout=60, trust_env=False).status_code == 403
        foreign = {"Origin": "https://evil.example.com"}
        assert (
            httpx.get(f"http://127.0.0.1:{port}/api/tags", headers=foreign, timeout=60, trust_env=False).status_code
            == 403
        )
        assert httpx.get(f"{server.url}/api/tags", timeout=60, trust_env=False).status_code == 401
        asked = {"model": "sprout", "prompt": "What is the capital of France?", "think": False, "stream": False}
        answer = httpx.post(f"http://127.0.0.1:{port}/api/generate", json=asked, timeout=120, trust_env=False)
        assert "Paris" in answer.json()["response"]
        code = "import json, os; print(json.dumps({k: os.environ.get(k) for k in ('OLLAMA_HOST', 'OLLAMA_API_KEY')}))"
        assert run_in_kernel(server, code) == {"OLLAMA_HOST": "http://gpu.example:1", "OLLAMA_API_KEY": None}
