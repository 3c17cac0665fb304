"""`ollama launch`: what a program receives, its exit status, the model, and its own files."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_line import RunCommand
from support.fake_servers import Answer, ScriptedServer, Seen, error, ndjson, ok

from ollama_nb.cli import launch as launching
from ollama_nb.cli.launch import LaunchState, installed_version, launch_environment, run_program, warnings_for
from ollama_nb.cli.programs import PROGRAMS, AgentModel, AgentServer, Setup, merge

SERVER = AgentServer("http://127.0.0.1:8888/hub/ollama", "secret-key")
MODEL = AgentModel("小模型:7b", 65_536, vision=True)
REPORT = """\
import json, os, sys
json.dump({"args": sys.argv[1:], "env": dict(os.environ)}, open(os.environ["REPORT"], "w"))
sys.exit(int(os.environ.get("EXIT", "0")))
"""


@pytest.fixture
def agent(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program into PATH that reports its arguments and environment, as JSON in the returned file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    report = tmp_path / "report.json"
    monkeypatch.setenv("REPORT", str(report))

    def install(name: str) -> Path:
        (folder / "report.py").write_text(REPORT, "utf-8")
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{folder}/report.py" "$@"\n', "utf-8")
        command.chmod(0o755)
        return report

    return install


@pytest.fixture
def model_server(server: ScriptedServer) -> ScriptedServer:
    """Has one model with tools, loaded with a context of 65536 tokens."""
    entry = {"name": "m:latest", "model": "m:latest", "context_length": 65_536}
    server.routes["POST /api/show"] = ok({"capabilities": ["completion", "tools"]})
    server.routes["POST /api/generate"] = ok({"done": True, "done_reason": "load"})
    server.routes["GET /api/ps"] = ok({"models": [entry]})
    server.routes["GET /api/tags"] = ok({"models": [{"name": "m:latest", "capabilities": ["completion", "tools"]}]})
    return server


def report_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


# Pure set-ups


@pytest.mark.parametrize("name", PROGRAMS)
def test_keys_are_never_arguments(name: str, tmp_path: Path) -> None:
    setup = PROGRAMS[name].setup(SERVER, MODEL, tmp_path)
    assert not any("secret-key" in arg for arg in setup.args)
    passed = json.dumps([dict(setup.env), [file.change for file in setup.files.values()]])
    assert "secret-key" in passed


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_learns_address_and_model(name: str, tmp_path: Path) -> None:
    setup = PROGRAMS[name].setup(SERVER, MODEL, tmp_path)
    files = [file.change for file in setup.files.values()]
    passed = json.dumps([dict(setup.env), setup.args, files], ensure_ascii=False)
    assert SERVER.url in passed
    assert MODEL.name in passed


def test_claude_code_uses_the_anthropic_api(tmp_path: Path) -> None:
    env = PROGRAMS["claude"].setup(SERVER, MODEL, tmp_path).env
    assert env["ANTHROPIC_BASE_URL"] == SERVER.url
    assert (env["ANTHROPIC_AUTH_TOKEN"], env["ANTHROPIC_API_KEY"]) == ("secret-key", "")
    named = {value for key, value in env.items() if key.endswith("_MODEL")}
    assert named == {MODEL.name}
    assert env["DISABLE_TELEMETRY"] == env["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"


def test_codex_arguments_are_toml(tmp_path: Path) -> None:
    setup = PROGRAMS["codex"].setup(SERVER, MODEL, tmp_path)
    assert setup.args[::2] == ("-c",) * (len(setup.args) // 2)
    config = tomllib.loads("\n".join(setup.args[1::2]))
    provider = config["model_providers"][config["model_provider"]]
    assert config["model"] == MODEL.name
    assert (provider["base_url"], provider["wire_api"]) == (f"{SERVER.url}/v1", "responses")
    assert setup.env[provider["env_key"]] == "secret-key"


def test_without_a_key_a_placeholder_is_sent(tmp_path: Path) -> None:
    env = PROGRAMS["qwen"].setup(AgentServer("http://127.0.0.1:11434"), MODEL, tmp_path).env
    assert env["OPENAI_API_KEY"] == "ollama"


def test_merging_keeps_what_it_does_not_change() -> None:
    present = {"a": {"b": 1, "c": [1]}, "d": 2, "键": "值"}
    assert merge(present, {"a": {"c": [2], "e": 3}, "d": {"f": 4}}) == {
        "a": {"b": 1, "c": [2], "e": 3},
        "d": {"f": 4},
        "键": "值",
    }


def test_the_server_is_excepted_from_a_proxy() -> None:
    proxies = {"HTTP_PROXY": "http://proxy:3128", "all_proxy": "socks5://proxy"}
    local, remote = "http://127.0.0.1:1/hub/ollama", "http://lab.example:11434"
    env = launch_environment({**proxies, "A": "1"}, Setup({"A": "2"}), local)
    assert env["A"] == "2"
    assert env["NO_PROXY"] == env["no_proxy"] == "127.0.0.1,localhost,::1"
    assert launch_environment({}, Setup({"A": "2"}), local) == {"A": "2"}
    assert launch_environment(proxies, Setup(), remote) == proxies


def test_programs_that_ignore_exceptions_get_no_proxy() -> None:
    env = {"HTTP_PROXY": "http://proxy:3128", "all_proxy": "socks5://proxy", "NO_PROXY": "127.0.0.1,localhost,::1"}
    deaf = Setup(without_proxy=True)
    assert launch_environment(env, deaf, "http://127.0.0.1:1") == {"NO_PROXY": env["NO_PROXY"]}
    assert launch_environment(env, deaf, "http://lab.example:11434") == env


def test_warnings() -> None:
    claude = PROGRAMS["claude"]
    assert warnings_for(MODEL, ["completion", "tools"], claude) == []
    assert warnings_for(AgentModel("m"), ["tools"], claude) == []
    no_tools, short = warnings_for(AgentModel("m", 4096), ["completion"], claude)
    assert "cannot call tools" in no_tools
    assert "4096 tokens" in short


# Starting a program


def test_a_program_is_started(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = agent("claude")
    monkeypatch.setenv("EXIT", "7")
    result = ollama("launch", "claude", "--model", "m", "--", "-p", "你好", "--model", "x")
    assert (result.code, result.err) == (7, "")
    started = report_of(report)
    assert started["args"] == ["-p", "你好", "--model", "x"]
    assert started["env"]["ANTHROPIC_BASE_URL"] == model_server.url
    assert started["env"]["ANTHROPIC_MODEL"] == "m"
    assert started["env"]["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "65536"
    assert model_server.asked("POST /api/generate") == [{"model": "m", "prompt": "", "stream": False}]


def test_the_key_reaches_the_program(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = agent("codex")
    monkeypatch.setenv("OLLAMA_API_KEY", "mine")
    assert ollama("launch", "codex", "--model", "m", "--", "exec", "hello").code == 0
    started = report_of(report)
    assert started["args"][-2:] == ["exec", "hello"]
    assert "mine" in started["env"].values()
    assert not any("mine" in arg for arg in started["args"])


def test_generated_files_are_private(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path], home: Path
) -> None:
    report = agent("cline")
    own = home / ".cline" / "data" / "settings" / "global-settings.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"mine": "键", "telemetryOptOut": false}', "utf-8")
    assert ollama("launch", "cline", "--model", "m").code == 0
    env = report_of(report)["env"]
    assert json.loads(Path(env["CLINE_GLOBAL_SETTINGS_PATH"]).read_text("utf-8")) == {
        "mine": "键",
        "telemetryOptOut": True,
    }
    assert own.read_text("utf-8") == '{"mine": "键", "telemetryOptOut": false}'
    file = Path(env["CLINE_PROVIDER_SETTINGS_PATH"])
    assert file.stat().st_mode & 0o777 == 0o600
    settings = json.loads(file.read_text("utf-8"))["providers"]["openai-compatible"]["settings"]
    assert (settings["model"], settings["baseUrl"]) == ("m", f"{model_server.url}/v1")


def test_the_server_is_kept_alive_while_the_program_runs(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent("claude")
    monkeypatch.setattr(launching, "BEAT_SECONDS", 0.01)
    beats = threading.Event()

    def count(_request: Seen) -> Answer:
        if len([seen for seen in model_server.seen if seen.method == "HEAD"]) > 4:
            beats.set()
        return Answer()

    model_server.routes["HEAD /"] = count
    monkeypatch.setattr(launching, "run_program", lambda _command, _env: 0 if beats.wait(30) else 1)
    assert ollama("launch", "claude", "--model", "m").code == 0


def test_a_missing_program_is_reported_before_anything_else(
    server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path]
) -> None:
    result = ollama("launch", "opencode", "--model", "m")
    assert (result.code, result.out) == (1, "")
    assert result.err == "Error: OpenCode is not installed. Install it: npm install -g opencode-ai\n"
    assert server.seen == []


def test_a_program_outside_path_is_found(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path], home: Path, tmp_path: Path
) -> None:
    report = agent("claude")
    place = home / ".local" / "bin"
    place.mkdir(parents=True)
    (tmp_path / "bin" / "claude").rename(place / "claude")
    assert ollama("launch", "claude", "--model", "m").code == 0
    assert report_of(report)["env"]["ANTHROPIC_MODEL"] == "m"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["emacs"], "unknown program \"emacs\": 'ollama launch' knows claude, codex, opencode, qwen, cline, copilot"),
        (["--model", "m"], "flags need the name of a program, for example: 'ollama launch claude --model qwen3'"),
        (
            ["claude", "--restore", "--model", "m"],
            "--restore cannot be combined with --model, --config or arguments for the program",
        ),
    ],
)
def test_usage_errors_of_launch(ollama: RunCommand, line: list[str], text: str) -> None:
    result = ollama("launch", *line)
    assert (result.code, result.err) == (1, f"Error: {text}\n")


def test_the_list_of_programs(ollama: RunCommand, agent: Callable[[str], Path], tmp_path: Path) -> None:
    agent("codex")
    (tmp_path / "bin" / "package.json").write_text('{"version": "1.2.3"}', "utf-8")
    lines = ollama("launch").out.splitlines()
    codex = next(line for line in lines if line.startswith("codex"))
    assert codex.split() == ["codex", "Codex", "1.2.3", str(tmp_path / "bin" / "codex")]
    claude = next(line for line in lines if line.startswith("claude"))
    assert "not installed: npm install -g @anthropic-ai/claude-code" in claude
    assert lines[-1] == "Start one with: ollama launch NAME --model MODEL [-- ARGUMENTS]"


def test_the_version_is_that_of_the_package_behind_a_link(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "agent"
    (package / "bin").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "3.1"}', "utf-8")
    (package / "bin" / "agent.js").touch()
    (tmp_path / "agent").symlink_to(package / "bin" / "agent.js")
    assert installed_version(tmp_path / "agent") == "3.1"
    assert installed_version(package / "package.json") == "3.1"
    assert installed_version(tmp_path / "none" / "x") == ""


# The model


def test_the_last_model_is_used_again(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path]
) -> None:
    report = agent("claude")
    ollama("launch", "claude", "--model", "m:latest")
    report.unlink()
    assert ollama("launch", "claude").code == 0
    assert report_of(report)["env"]["ANTHROPIC_MODEL"] == "m:latest"


def test_without_a_terminal_a_model_must_be_named(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path]
) -> None:
    report = agent("claude")
    result = ollama("launch", "claude")
    assert result.err == "Error: name a model with --model. Models that can call tools: m:latest\n"
    assert not report.exists()


def test_the_user_chooses_among_models_with_tools(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = agent("claude")
    names = ("a:1", ["completion"]), ("b:1", ["tools"]), ("文:1", ["tools"])
    model_server.routes["GET /api/tags"] = ok({"models": [{"name": n, "capabilities": c} for n, c in names]})
    monkeypatch.setattr(launching, "is_terminal", lambda _stream: True)
    answers = iter(["0", "x", "2"])
    monkeypatch.setattr("builtins.input", lambda _question: next(answers))
    result = ollama("launch", "claude")
    assert result.out == (
        "Model for Claude Code:\n  1. b:1\n  2. 文:1\nEnter a number from 1 to 2.\nEnter a number from 1 to 2.\n"
    )
    assert report_of(report)["env"]["ANTHROPIC_MODEL"] == "文:1"


def test_no_model_with_tools(model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path]) -> None:
    agent("claude")
    model_server.routes["GET /api/tags"] = ok({"models": [{"name": "a:1", "capabilities": ["completion"]}]})
    assert ollama("launch", "claude").err.startswith("Error: no stored model can call tools.")


def test_a_missing_model_is_an_error_or_pulled(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path]
) -> None:
    report = agent("claude")
    model_server.routes["POST /api/show"] = error(404, "model 'm' not found", "model_not_found")
    assert ollama("launch", "claude", "--model", "m").err == "Error: model 'm' not found\n"
    assert not report.exists()
    model_server.routes["POST /api/show"] = [error(404, "model 'm' not found"), ok({"capabilities": ["tools"]})]
    model_server.routes["POST /api/pull"] = ndjson({"status": "success"})
    assert ollama("launch", "claude", "--model", "m", "-y").code == 0
    assert model_server.asked("POST /api/pull")[0]["model"] == "m"
    assert report.exists()


def test_an_embedding_model_is_refused(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path]
) -> None:
    agent("claude")
    model_server.routes["POST /api/show"] = ok({"capabilities": ["embedding"]})
    assert ollama("launch", "claude", "--model", "m").err.startswith("Error: m makes embeddings")


def test_a_short_context_is_a_warning(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path]
) -> None:
    agent("claude")
    entry = {"name": "m:latest", "context_length": 4096}
    model_server.routes["GET /api/ps"] = ok({"models": [entry]})
    result = ollama("launch", "claude", "--model", "m")
    assert result.code == 0
    assert result.err.startswith("Warning: m is loaded with a context of 4096 tokens, Claude Code needs 32768 or more.")


# The program's own files


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.own_files])
def test_config_and_restore(
    model_server: ScriptedServer,
    ollama: RunCommand,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    for variable in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "CLINE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OLLAMA_API_KEY", "mine")
    own_files = PROGRAMS[name].own_files
    assert own_files is not None
    (file,) = own_files(SERVER, MODEL)
    path = file.locate({}, home)
    before = b'{ "mine":\t"\xe9\x94\xae" }'  # neither our indentation nor our line end
    path.parent.mkdir(parents=True)
    path.write_bytes(before)
    path.chmod(0o644)
    for model in ("m", "m:latest"):
        result = ollama("launch", name, "--config", "--model", model)
        assert result.code == 0, result.err
        written = path.read_text("utf-8")
        assert f"{model_server.url}" in written
        assert "mine" in written
        assert path.stat().st_mode & 0o777 == 0o600
    if path.suffix == ".json":
        assert json.loads(written)["mine"] == "键"
    restored = ollama("launch", name, "--restore")
    assert (restored.code, restored.err) == (0, "")
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644
    assert ollama("launch", name, "--restore").out.startswith("nothing to restore")


def test_a_file_that_did_not_exist_is_removed(model_server: ScriptedServer, ollama: RunCommand, home: Path) -> None:
    path = home / ".claude" / "settings.json"
    ollama("launch", "claude", "--config", "--model", "m")
    ollama("launch", "claude", "--config", "--model", "m")
    assert path.exists()
    assert ollama("launch", "claude", "--restore").out == "removed ~/.claude/settings.json\n"
    assert not path.exists()


def test_later_changes_are_kept_as_a_copy(model_server: ScriptedServer, ollama: RunCommand, home: Path) -> None:
    path = home / ".claude" / "settings.json"
    ollama("launch", "claude", "--config", "--model", "m")
    path.write_text('{"later": "改"}', "utf-8")
    result = ollama("launch", "claude", "--restore")
    assert not path.exists()
    (kept,) = (home / ".ollama" / "nb" / "launch" / "backups").glob("claude-settings.json-*")
    assert kept.read_text("utf-8") == '{"later": "改"}'
    assert str(kept.name) in result.err


def test_a_link_stays_a_link(model_server: ScriptedServer, ollama: RunCommand, home: Path, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles.json"
    target.write_text("{}", "utf-8")
    (home / ".claude").mkdir()
    (home / ".claude" / "settings.json").symlink_to(target)
    ollama("launch", "claude", "--config", "--model", "m")
    assert (home / ".claude" / "settings.json").is_symlink()
    assert "ANTHROPIC_MODEL" in target.read_text("utf-8")
    ollama("launch", "claude", "--restore")
    assert target.read_text("utf-8") == "{}"


def test_a_file_that_is_not_json_is_left_alone(model_server: ScriptedServer, ollama: RunCommand, home: Path) -> None:
    path = home / ".qwen" / "settings.json"
    path.parent.mkdir()
    path.write_text("// 注释\n{}", "utf-8")
    result = ollama("launch", "qwen", "--config", "--model", "m")
    assert result.code == 1
    assert result.err.startswith("Error: ~/.qwen/settings.json is not valid JSON")
    assert path.read_text("utf-8") == "// 注释\n{}"


def test_a_program_without_own_files(model_server: ScriptedServer, ollama: RunCommand) -> None:
    result = ollama("launch", "copilot", "--config", "--model", "m")
    assert model_server.seen == []
    assert result.err.startswith("Error: GitHub Copilot CLI reads its provider from environment variables only")


def test_damaged_state_is_no_obstacle_for_a_launch(
    model_server: ScriptedServer, ollama: RunCommand, agent: Callable[[str], Path], home: Path
) -> None:
    agent("claude")
    folder = home / ".ollama" / "nb" / "launch"
    folder.mkdir(parents=True)
    (folder / "models.json").write_text("[", "utf-8")
    assert ollama("launch", "claude", "--model", "m").code == 0
    assert LaunchState(folder).last_model("claude") == "m"


# Signals


def test_a_signal_that_ends_the_program_is_its_status() -> None:
    assert run_program([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], dict(os.environ)) == 128 + 9


def test_a_termination_is_forwarded(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"

    def terminate() -> None:
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    assert run_program([sys.executable, "-c", code], dict(os.environ)) == 128 + signal.SIGTERM
    killer.join()


def test_an_interrupt_is_left_to_the_program(tmp_path: Path) -> None:
    """Control-C reaches both processes; the program decides what it means."""
    started = tmp_path / "started"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        f"pathlib.Path({str(started)!r}).write_text(str(__import__('os').getpid()))\n"
        "time.sleep(60)"
    )

    def interrupt() -> None:
        while not started.exists() or not started.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(int(started.read_text()), signal.SIGUSR1)

    killer = threading.Thread(target=interrupt)
    killer.start()
    assert run_program([sys.executable, "-c", code], dict(os.environ)) == 5
    killer.join()
