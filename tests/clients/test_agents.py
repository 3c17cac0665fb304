"""Real agent programs, started by ``ollama launch``: one turn with a tool call, in each of them.

Their prompts have 5,000 to 40,000 tokens. The model is scripted (``support/scripted_model.py``): it calls the program's
own shell tool, and after the result it writes a closing sentence. ``make test-agents`` installs the programs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.clients import Host, create_model
from support.scripted_model import CLOSING, CONTEXT, scripted_model
from support.servers import clean_env, jupyter, runtime_info, standalone

from ollama_nb.cli.programs import CODEX_PROFILE
from ollama_nb.cli.programs import PROGRAMS as CARDS

pytestmark = [pytest.mark.slow, pytest.mark.model]
PROGRAMS = Path(__file__).parents[2] / ".venv" / "agents" / "node_modules" / ".bin"
WRITTEN = "written by a tool 工具"
COMMAND = f"echo '{WRITTEN}' > made.txt && cat made.txt"
CALLS = {
    "Bash": {"command": COMMAND, "description": "Write a file"},  # Claude Code
    "exec_command": {"cmd": COMMAND},  # Codex
    "bash": {"command": COMMAND, "description": "Write a file"},  # OpenCode, Copilot
    "run_shell_command": {"command": COMMAND, "is_background": False},  # Qwen Code
    "run_commands": {"commands": [COMMAND]},  # Cline
}
QUESTION = "Write a file. 写一个文件。"


def npm_registry() -> str:
    """The host from which npm installs packages."""
    done = subprocess.run(["npm", "config", "get", "registry"], check=True, capture_output=True, text=True)
    return urlsplit(done.stdout.strip()).hostname or ""


LOOKUPS = {"opencode": npm_registry, "cline": lambda: "data.cline.bot"}
"""The host that a program asks for its own parts (plugins, feature flags) without a switch to prevent it."""

TURNS = {
    "claude": ("-p", QUESTION, "--allowedTools", "Bash"),
    "codex": (
        "exec",
        "-c",
        "features.plugins=false",
        "--skip-git-repo-check",
        "--sandbox",
        "danger-full-access",
        QUESTION,
    ),
    "opencode": ("run", QUESTION),
    "qwen": ("--yolo", QUESTION),
    "cline": (QUESTION,),
    "copilot": ("--allow-all-tools", "-p", QUESTION),
}


@pytest.fixture(scope="module", params=["standalone", "jupyter"])
def agent_host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A server with the scripted model in its full context."""
    home = tmp_path_factory.mktemp(request.param)
    data = scripted_model(home / "agent.gguf", CALLS).read_bytes()
    env = {"OLLAMA_CONTEXT_LENGTH": str(CONTEXT)}
    start = standalone(home, env=env) if request.param == "standalone" else jupyter(home, env=env, base_url="/hub/")
    with start as server:
        key = runtime_info(server)["key"] if request.param == "jupyter" else ""
        host = Host(server.url, key)
        with host.http() as http:
            create_model(http, "agent", data)
        yield host


class _Recorder(socketserver.ThreadingTCPServer):
    """Stands for a proxy: it closes every connection, and keeps the first lines of the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        recorder = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                recorder.asked.append(self.rfile.readline().decode("latin-1").strip())

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def proxy() -> Iterator[_Recorder]:
    with _Recorder() as recorder:
        thread = threading.Thread(target=recorder.serve_forever, daemon=True)
        thread.start()
        yield recorder
        recorder.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home folder of a program. Processes that it leaves behind (Cline has a daemon) are ended."""
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"HOME={folder}\0".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGTERM)


@dataclass
class Terminal:
    """Runs programs in a folder, with the address of a recorder as proxy."""

    home: Path
    work: Path
    proxy: _Recorder

    def run(self, *command: str, **variables: str) -> str:
        """The standard output of a program that must succeed."""
        address = f"http://127.0.0.1:{self.proxy.server_address[1]}"
        path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        proxies = {"HTTP_PROXY": address, "HTTPS_PROXY": address}
        env = clean_env(self.home, **{"PATH": path, "PWD": str(self.work), **proxies, **variables})
        done = subprocess.run(
            command, env=env, cwd=self.work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def launch(self, host: Host, *args: str) -> str:
        """Run ``ollama launch``."""
        command = (sys.executable, "-m", "ollama_nb.cli.main", "launch", *args)
        variables = {"NO_PROXY": "", "TERM": "dumb", "COPILOT_OFFLINE": "true"}
        return self.run(*command, OLLAMA_HOST=host.url, OLLAMA_API_KEY=host.key, **variables)


@pytest.fixture
def terminal(home: Path, tmp_path: Path, proxy: _Recorder) -> Terminal:
    work = tmp_path / "工作 folder"
    work.mkdir()
    return Terminal(home, work, proxy)


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_with_a_tool_call(agent_host: Host, name: str, terminal: Terminal) -> None:
    assert (PROGRAMS / name).exists(), "the program is missing: run `make test-agents`"
    output = terminal.launch(agent_host, name, "--model", "agent", "--", *TURNS[name])
    assert (terminal.work / "made.txt").read_text("utf-8") == f"{WRITTEN}\n"
    assert CLOSING in output
    asked = {line.split()[1].partition(":")[0] for line in terminal.proxy.asked}
    assert asked <= {LOOKUPS[name]() if name in LOOKUPS else ""}


@pytest.mark.parametrize("agent_host", ["standalone"], indirect=True)
@pytest.mark.parametrize("name", [name for name, program in CARDS.items() if program.own_files])
def test_a_turn_with_its_own_configuration(agent_host: Host, name: str, terminal: Terminal) -> None:
    """``--config`` writes what the program reads when it is started without us."""
    terminal.launch(agent_host, name, "--model", "agent", "--config")
    profile = ("--profile", CODEX_PROFILE) if name == "codex" else ()
    direct = {"NO_PROXY": "*", "HTTP_PROXY": "", "HTTPS_PROXY": "", "TERM": "dumb"}
    assert CLOSING in terminal.run(name, *profile, *TURNS[name], **direct)
    assert (terminal.work / "made.txt").read_text("utf-8") == f"{WRITTEN}\n"
    assert terminal.launch(agent_host, name, "--restore").startswith("removed ~/")
