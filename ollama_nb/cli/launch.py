"""``ollama launch``: start an agent program against this server.

A launch passes addresses, keys and the model in environment variables, arguments and generated files of our own; the
program's own files change only with ``--config``. The parent process stays until the program ends: it keeps a
background server alive, and returns the program's exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from ollama_nb import disk, net
from ollama_nb.cli.backups import PRIVATE, ConfigBackups
from ollama_nb.cli.output import waiting
from ollama_nb.cli.programs import PROGRAMS, AgentModel, AgentServer, GeneratedFile, Program, Setup, find_program, merge
from ollama_nb.cli.terminal import is_terminal
from ollama_nb.cli.transfer import pull
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.errors import BadRequest, NotFound, OllamaError, Unsupported
from ollama_nb.settings import Settings
from ollama_nb.verbs.present import table

MIN_CONTEXT = 32_768  # tokens; the instructions and tools of these programs alone take 10,000 to 25,000
BEAT_SECONDS = 60.0  # between two requests that keep a background server alive
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # the terminal sends these to the program, too
_SIGNAL_EXIT = 128  # plus the number of the signal that ended the program, as in a shell


def launch(
    words: Sequence[str] = (), *, model: str = "", config: bool = False, restore: bool = False, yes: bool = False
) -> int:
    """Start a program with the arguments after its name; ``config``, ``restore``: change or put back its own files."""
    if not words:
        if model or config or restore or yes:
            raise BadRequest("flags need the name of a program, for example: 'ollama launch claude --model qwen3'")
        _print_programs()
        return 0
    program, args = find_program(words[0]), list(words[1:])
    state = LaunchState(Settings.from_env().home / "launch")
    if restore:
        if model or config or args:
            raise BadRequest("--restore cannot be combined with --model, --config or arguments for the program")
        _restore(program, state)
        return 0
    if config and program.own_files is None:
        raise BadRequest(
            f"{program.title} reads its provider from environment variables only: start it with "
            f"'ollama launch {program.name}'"
        )
    command = None if config else find_command(program)
    client = connect()
    chosen = _prepare(client, _choose_model(client, program, model, state, yes=yes), program, yes=yes)
    state.remember(program.name, chosen.name)
    server = AgentServer(client.url, client.key)
    if command is None:
        _configure(program, server, chosen, state)
        return 0
    return _start(program, command, args, client, server, chosen, state)


class LaunchState:
    """Our folder for launches: the model that each program used last, generated files, backups."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models = folder / "models.json"

    def last_model(self, program: str) -> str:
        """The model of the last launch; empty before the first."""
        return str(self._read().get(program, ""))

    def remember(self, program: str, model: str) -> None:
        """Keep the model for the next launch."""
        if self.last_model(program) != model:
            self._write({**self._read(), program: model})

    def forget(self, program: str) -> None:
        """Forget the program's model."""
        models = self._read()
        if models.pop(program, None):
            self._write(models)

    def backups(self, program: str) -> ConfigBackups:
        """The backups of the program's own files."""
        return ConfigBackups(self.folder / "backups", program)

    def write_files(self, program: str, files: Mapping[str, GeneratedFile]) -> None:
        """Write the program's generated files. They may hold a key."""
        for name, file in files.items():
            present = _read_object(Path.home() / file.base) if file.base else {}
            data = json.dumps(merge(present, file.change), indent=2, ensure_ascii=False).encode()
            disk.write(self.folder / program / name, data, PRIVATE)

    def _read(self) -> dict[str, Any]:
        return _read_object(self._models)

    def _write(self, models: Mapping[str, str]) -> None:
        disk.write(self._models, json.dumps(models, ensure_ascii=False).encode(), PRIVATE)


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no valid file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# What is installed


def find_command(program: Program) -> Path:
    """The program's command, from PATH or where its installer puts it. Raises NotFound that names the installation."""
    found = _locate(program)
    if found is None:
        raise NotFound(f"{program.title} is not installed. Install it: {program.install}")
    return found


def _locate(program: Program) -> Path | None:
    if found := shutil.which(program.name):
        return Path(found)
    places = (Path.home() / place for place in program.places)
    return next((path for path in places if os.access(path, os.X_OK) and path.is_file()), None)


def installed_version(command: Path) -> str:
    """The version in the nearest ``package.json`` of the command; empty without one. Runs nothing."""
    for folder in command.resolve().parents[:3]:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return str(json.loads((folder / "package.json").read_bytes())["version"])
    return ""


def _print_programs() -> None:
    rows = []
    for program in PROGRAMS.values():
        path = _locate(program)
        where = disk.display_path(path) if path else f"not installed: {program.install}"
        rows.append((program.name, program.title, installed_version(path) if path else "", where))
    sys.stdout.write(table(("NAME", "PROGRAM", "VERSION", "COMMAND"), rows))
    print("\nStart one with: ollama launch NAME --model MODEL [-- ARGUMENTS]")


# The model


def _choose_model(client: Client, program: Program, named: str, state: LaunchState, *, yes: bool) -> str:
    """``--model``, else the last one, else the user's choice. Raises BadRequest if nothing names one."""
    if named:
        return named
    models = {entry["name"]: entry for entry in client.list()["models"]}
    last = state.last_model(program.name)
    if last in models:
        return last
    able = [name for name, entry in models.items() if "tools" in (entry.get("capabilities") or ["tools"])]
    if not able:
        raise NotFound("no stored model can call tools. Pull one, for example: ollama pull qwen3")
    if yes or not _is_interactive():
        raise BadRequest(f"name a model with --model. Models that can call tools: {', '.join(able)}")
    return _ask_for_model(program, able)


def _ask_for_model(program: Program, names: Sequence[str]) -> str:
    print(f"Model for {program.title}:")
    for number, name in enumerate(names, 1):
        print(f"  {number}. {name}")
    while True:
        answer = _ask("Number [1]: ") or "1"
        if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        print(f"Enter a number from 1 to {len(names)}.")


def _prepare(client: Client, name: str, program: Program, *, yes: bool) -> AgentModel:
    """Check the model and load it, so that errors appear before the program starts. Pulls it if the user agrees."""
    info = _show_or_pull(client, name, yes=yes)
    capabilities = info.get("capabilities") or ()
    if "embedding" in capabilities:
        raise Unsupported(f"{name} makes embeddings and cannot write text: choose another model")
    with waiting():
        client.generate(name, stream=False)
    model = AgentModel(name, _loaded_context(client, name), "vision" in capabilities)
    for warning in warnings_for(model, capabilities, program):
        print(f"Warning: {warning}", file=sys.stderr)
    return model


def warnings_for(model: AgentModel, capabilities: Sequence[str], program: Program) -> list[str]:
    """What will keep the program from working well with this model."""
    found = []
    if "tools" not in capabilities:
        found.append(f"{model.name} cannot call tools: {program.title} can talk with it, and do nothing else")
    if 0 < model.context < MIN_CONTEXT:
        found.append(
            f"{model.name} is loaded with a context of {model.context} tokens, {program.title} needs {MIN_CONTEXT} or "
            "more. Start the server with OLLAMA_CONTEXT_LENGTH=65536, or create a model with PARAMETER num_ctx 65536 "
            "(if it was trained for that length)"
        )
    return found


def _show_or_pull(client: Client, name: str, *, yes: bool) -> dict[str, Any]:
    try:
        return client.show(name)
    except NotFound:
        if not yes and not (_is_interactive() and _confirm(f"{name} is not stored on this server. Pull it?")):
            raise
    pull(client, name)
    return client.show(name)


def _loaded_context(client: Client, name: str) -> int:
    """The context in force of a loaded model, in tokens; 0 if the server does not report it."""
    wanted = {name, f"{name}:latest"}
    for entry in client.ps()["models"]:
        if {entry.get("name"), entry.get("model")} & wanted:
            return int(entry.get("context_length") or 0)
    return 0


def _is_interactive() -> bool:
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def _confirm(question: str) -> bool:
    return _ask(f"{question} [Y/n] ").lower() in ("", "y", "yes")


def _ask(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        raise OllamaError("cancelled") from None


# The program's own files


def _configure(program: Program, server: AgentServer, model: AgentModel, state: LaunchState) -> None:
    backups = state.backups(program.name)
    for file in program.own_files(server, model) if program.own_files else ():
        path = file.locate(os.environ, Path.home())
        backups.change(path, file.change)
        print(f"changed {disk.display_path(path)}")
    how = program.afterwards or f"start it with `{program.name}`"
    print(f"{program.title} uses {model.name} at {server.url}: {how}")
    if not os.environ.get("OLLAMA_HOST") or os.environ.get("OLLAMA_NB_EXPORTED"):
        print(
            "Warning: a server without a fixed address may get another one when it is started again. "
            "Run 'ollama serve' and set OLLAMA_HOST to keep it.",
            file=sys.stderr,
        )


def _restore(program: Program, state: LaunchState) -> None:
    restored = state.backups(program.name).restore()
    state.forget(program.name)
    for file in restored:
        print(f"{'removed' if file.removed else 'restored'} {disk.display_path(file.path)}")
        if file.kept is not None:
            print(f"It had been changed since; that version is in {disk.display_path(file.kept)}", file=sys.stderr)
    if not restored:
        print(f"nothing to restore: no file of {program.title} was changed")


# The process


def _start(
    program: Program,
    command: Path,
    args: Sequence[str],
    client: Client,
    server: AgentServer,
    model: AgentModel,
    state: LaunchState,
) -> int:
    setup = program.setup(server, model, state.folder / program.name)
    state.write_files(program.name, setup.files)
    env = launch_environment(os.environ, setup, server.url)
    with _kept_alive(client):
        return run_program([str(command), *setup.args, *args], env)


def launch_environment(env: Mapping[str, str], setup: Setup, url: str) -> dict[str, str]:
    """The program's environment. It reaches the server as our own client does: through a proxy, or not."""
    found = {**env, **setup.env}
    server = urlsplit(url)
    if net.proxy_for(server, env) is not None:
        return found
    if setup.without_proxy:
        return {name: value for name, value in found.items() if name.lower() not in net.PROXY_VARIABLES}
    exceptions = net.no_proxy_for((*net.LOOPBACK_HOSTS, server.hostname or ""), found)
    return found if exceptions is None else {**found, "no_proxy": exceptions, "NO_PROXY": exceptions}


def run_program(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a program on this terminal and return its exit status, 128 + n if signal n ended it."""
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        if process is not None:
            process.send_signal(number)

    # Functions, because a program would inherit signals that are ignored.
    handlers = {**dict.fromkeys(_FORWARDED, forward), **dict.fromkeys(_FROM_TERMINAL, lambda *_: None)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        process = subprocess.Popen(command, env=dict(env))
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else _SIGNAL_EXIT - status


@contextlib.contextmanager
def _kept_alive(client: Client) -> Iterator[None]:
    """Send a small request regularly: a background server ends when it has been idle for some minutes."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            client.answers()

    threading.Thread(target=beat, daemon=True, name="ollama-nb-launch").start()
    try:
        yield
    finally:
        ended.set()
