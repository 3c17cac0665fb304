"""``ollama-nb doctor``: report the set-up, its limits and the last crashes, without starting a server.

A *check* is fine or needs attention, and then says what to do. *Facts* describe the set-up for a report to others.
Secrets are removed from everything, and the home folder is shown as ``~``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as jsonlib
import os
import platform
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ollama_nb import __version__, runtime
from ollama_nb.api.units import human_bytes
from ollama_nb.client.client import Client
from ollama_nb.errors import OllamaError
from ollama_nb.net import listening_users
from ollama_nb.redact import HIDDEN, is_secret_name, redact, secrets_of
from ollama_nb.runner.placement import measure
from ollama_nb.server.keys import KeyFile
from ollama_nb.service.crashes import read_crashes
from ollama_nb.service.local import open_store
from ollama_nb.settings import DEFAULT_PORT, Settings
from ollama_nb.store.usage import usage

ENGINE_SECONDS = 60.0  # for the engine's library to load
MIN_FREE_DISK = 1 << 30  # bytes on the disk of the models, below which a pull will soon fail
MIN_FREE_MEMORY = 1 << 30  # bytes, below which only small models load
MIN_FILES = 1024  # file descriptors; a connection takes one
RECENT = timedelta(days=1)  # age of crashes that need attention
SHOWN_CRASHES = 10
PACKAGES = ("llama-cpp-python", "llguidance", "numpy", "tornado", "jupyter-server", "ipykernel", "ipython", "pandas",
            "prometheus-client", "msgspec")  # fmt: skip
_OTHER_VARIABLES = {"OLLAMA_API_KEY", "OLLAMA_EDITOR", "OLLAMA_LAUNCH_KEY", "OLLAMA_NB_EXPORTED",
                    "OLLAMA_NB_EXPORTED_OPENAI", "OLLAMA_NB_EXPORT_OPENAI"}  # fmt: skip
"""Variables that are not settings."""
_PREFIXES = ("OLLAMA", "JPY_", "JUPYTER", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "CUDA", "GGML", "OMP")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked. ``advice`` is empty if it is fine."""

    name: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and the facts by section."""

    checks: tuple[Check, ...]
    facts: dict[str, dict[str, Any]]

    @property
    def attention(self) -> int:
        """The number of checks that need attention."""
        return sum(bool(check.advice) for check in self.checks)


def doctor(*, json: bool = False, save: str = "") -> int:
    """Print a diagnosis, and write it to the file ``save``. Returns exit code 1 if something needs attention."""
    env = dict(os.environ)
    found = diagnose(Settings.from_env(env), env)
    document = {"attention": found.attention, **dataclasses.asdict(found)}
    report = jsonlib.dumps(document, indent=2, ensure_ascii=False) + "\n" if json else describe(found)
    report = clean(report, env)
    sys.stdout.write(report)
    if save and _confirmed(save):
        with os.fdopen(os.open(save, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(report)
        print(f"saved to {save}", file=sys.stderr)
    return 1 if found.attention else 0


def _confirmed(path: str) -> bool:
    """Ask on a terminal whether the report that was just shown may be written."""
    if not sys.stdin.isatty():
        return True
    return input(f"Save this report to {path}? [y/N] ").strip().lower() in ("y", "yes")


def clean(report: str, env: Mapping[str, str]) -> str:
    """The report without secrets, and with ``~`` for the home folder."""
    home = env.get("HOME", "").rstrip("/")
    return redact(report.replace(home, "~") if home else report, secrets_of(env))


def describe(found: Diagnosis) -> str:
    """A diagnosis as text."""
    lines = []
    for check in found.checks:
        lines.append(f"{'!!' if check.advice else 'ok'}  {check.name}: {check.text}")
        lines += [f"      {check.advice}"] if check.advice else []
    for section, facts in found.facts.items():
        lines += ["", f"{section}"]
        lines += [f"  {name}: {_one_line(value)}" for name, value in facts.items()] or ["  none"]
    lines += ["", f"{found.attention} of {len(found.checks)} checks need attention"]
    return "\n".join(lines) + "\n"


def _one_line(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def diagnose(settings: Settings, env: Mapping[str, str]) -> Diagnosis:
    """Run every check. One that fails itself is reported as such."""
    engine = engine_build()
    parts: list[Callable[[], Iterator[Check]]] = [
        lambda: _check_engine(engine),
        lambda: _check_settings(env),
        lambda: _check_store(settings),
        lambda: _check_state(settings),
        lambda: _check_servers(settings, env),
        lambda: _check_limits(),
        lambda: _check_crashes(settings),
    ]
    checks: list[Check] = []
    for part in parts:
        try:
            checks += part()
        except (OllamaError, OSError) as error:
            checks.append(Check("check", f"could not be made: {error}", "Correct this and run the command again."))
    facts = {
        "Versions": _versions(engine),
        "Settings": _settings(settings, env),
        "Environment": _environment(env),
        "Jupyter": _jupyter(env),
        "Limits": _limits(),
        "Last crashes": {crash["time"]: f"{crash['process']}: {crash['cause']}" for crash in _crashes(settings)},
    }
    return Diagnosis(tuple(checks), facts)


def engine_build() -> str:
    """llama.cpp's build and the processor features in use; an error that begins with ``!`` if it does not load."""
    command = [sys.executable, "-P", "-m", "ollama_nb.engine.llama.about"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"! it did not load within {ENGINE_SECONDS:.0f} s"
    if done.returncode:
        return f"! exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    return done.stdout.strip()


def _check_engine(engine: str) -> Iterator[Check]:
    advice = "Reinstall it on this machine: pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
    yield Check("engine", engine.lstrip("! "), advice if engine.startswith("!") else "")


def _check_settings(env: Mapping[str, str]) -> Iterator[Check]:
    known = _Recorder(env)
    Settings.from_env(known)
    names = {name for name in known.names if name.startswith("OLLAMA")} | _OTHER_VARIABLES
    unknown = sorted(name for name in env if name.startswith("OLLAMA") and name not in names)
    advice = "Correct their names: the README lists the variables." if unknown else ""
    yield Check("variables", f"{', '.join(unknown)} have no effect" if unknown else "all are known", advice)


def _check_store(settings: Settings) -> Iterator[Check]:
    store = open_store(settings)
    broken = [found.error for found in store.survey() if found.manifest is None]
    used = usage(store)
    text = f"{len(used.models)} models, {human_bytes(used.blobs.bytes)} in {settings.models}"
    yield Check("models", text + (f"; unreadable: {'; '.join(broken[:3])}" if broken else ""),
                "`ollama-nb fsck --repair` sets broken manifests aside." if broken else "")  # fmt: skip
    advice = "Free some space: `ollama-nb prune`, `ollama rm MODEL`." if used.free < MIN_FREE_DISK else ""
    yield Check("disk", f"{human_bytes(used.free)} free", advice)
    writable = os.access(_existing(settings.models), os.W_OK | os.X_OK)
    yield Check("models folder", "can be written" if writable else "is read-only",
                "" if writable else "No model can be added: set OLLAMA_MODELS to another folder.")  # fmt: skip


def _check_state(settings: Settings) -> Iterator[Check]:
    if settings.home.exists() and stat.S_IMODE(settings.home.stat().st_mode) & 0o022:
        yield Check("state folder", f"{settings.home} can be changed by others", f"chmod go-w {settings.home}")
    else:
        yield Check("state folder", f"{settings.home} belongs to this user only")
    keys = KeyFile(settings.home).read()
    yield Check("API keys", f"{len(keys)}")


def _check_servers(settings: Settings, env: Mapping[str, str]) -> Iterator[Check]:
    found = runtime.running_servers(settings.home, runtime.jupyter_runtime_dir(env))
    for server in found:
        answers = Client(server.url, server.key).answers()
        text = f"version {server.build}, process {server.pid}"
        yield Check(f"server {server.url}", text if answers else f"{text} does not answer",
                    "" if answers else "End this process; the next client starts another server.")  # fmt: skip
    if env.get("OLLAMA_HOST", "").strip():
        answers = Client(settings.host.url, env.get("OLLAMA_API_KEY", "")).answers()
        yield Check(f"OLLAMA_HOST {settings.host.url}", "answers" if answers else "does not answer",
                    "" if answers else "Start a server there, or unset OLLAMA_HOST.")  # fmt: skip
    users = listening_users(DEFAULT_PORT)
    if users and users != {os.getuid()}:
        text = "another user's server listens here, and is not used"
        yield Check(f"port {DEFAULT_PORT}", text, "Set OLLAMA_HOST if it should be used.")
    if not found:
        yield Check("servers", "none runs; a client starts one when it needs it")


def _check_limits() -> Iterator[Check]:
    free = measure().free_memory
    yield Check("memory", f"{human_bytes(free)} free",
                "Large models will be refused: close other programs." if free < MIN_FREE_MEMORY else "")  # fmt: skip
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    low = files != resource.RLIM_INFINITY and files < MIN_FILES
    yield Check("file descriptors", _limit(files), f"Raise the limit: ulimit -n {MIN_FILES}" if low else "")


def _check_crashes(settings: Settings) -> Iterator[Check]:
    since = (datetime.now(UTC) - RECENT).isoformat(timespec="seconds")
    recent = [crash for crash in read_crashes(settings.home) if crash["time"] >= since]
    last = f"; the last one: {recent[-1]['cause']}" if recent else ""
    advice = "The causes are below, and in the server's log." if recent else ""
    yield Check("crashes", f"{len(recent)} within a day{last}", advice)


# Facts


def _versions(engine: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ollama-nb": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
    }
    found |= {"processor": f"{platform.machine()}, {os.cpu_count()} cores", "engine": engine}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _settings(settings: Settings, env: Mapping[str, str]) -> dict[str, Any]:
    """Every setting in force, and whether the environment or the default determines it."""
    default = Settings.from_env({"HOME": env.get("HOME", "")})
    found = {}
    for field in dataclasses.fields(settings):
        value, usual = getattr(settings, field.name), getattr(default, field.name)
        shown = value.url if field.name == "host" else value
        found[field.name] = f"{_one_line(shown)} ({'default' if value == usual else 'environment'})"
    return found


def _environment(env: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: HIDDEN if is_secret_name(name) else redact(value)
        for name, value in sorted(env.items())
        if name.upper().startswith(_PREFIXES)
    }


def _jupyter(env: Mapping[str, str]) -> dict[str, Any]:
    parent = runtime.of_parent_jupyter(env)
    place = f"below the Jupyter server {parent.pid}" if parent else "not below Jupyter"
    from jupyter_core.paths import jupyter_config_path  # slow, and only needed here

    files = [Path(folder) / "jupyter_server_config.d" / "ollama_nb_ext.json" for folder in jupyter_config_path()]
    enabled = [str(file) for file in files if file.exists()]
    missing = "not enabled: jupyter server extension enable ollama_nb_ext"
    return {"this process": place, "extension": enabled or missing}


def _limits() -> dict[str, Any]:
    names = {"file descriptors": "RLIMIT_NOFILE", "processes": "RLIMIT_NPROC", "address space": "RLIMIT_AS",
             "file size": "RLIMIT_FSIZE", "locked memory": "RLIMIT_MEMLOCK"}  # fmt: skip
    found: dict[str, Any] = {
        name: " / ".join(map(_limit, resource.getrlimit(getattr(resource, limit))))
        for name, limit in names.items()
        if hasattr(resource, limit)
    }
    return found | {"free memory, with the control group's limit": human_bytes(measure().free_memory)}


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"


def _crashes(settings: Settings) -> list[dict[str, Any]]:
    return read_crashes(settings.home)[-SHOWN_CRASHES:]


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next((each for each in (path, *path.parents) if each.exists()), path)


class _Recorder(dict[str, str]):
    """An environment that records which variables are read."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__(env)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)
