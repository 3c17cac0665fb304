"""The ``OLLAMA_*`` environment variables, parsed once into a frozen Settings.

Values are parsed as in Ollama: blanks and quotes around them are removed, an invalid boolean is true, and an invalid
number gives the default.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from ollama_nb import net
from ollama_nb.errors import BadRequest, InvalidDuration

_log = logging.getLogger("ollama_nb")

DEFAULT_PORT = 11434
FOREVER = math.inf
SYSTEM_MODELS = (Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models"))
"""Model folders of an Ollama that runs as a system service."""

_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
MAX_DURATION = (1 << 63) / 1e9  # seconds, about 292 years: Go's durations are nanoseconds in 64 bits

_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


def parse_duration(text: str) -> float:
    """The seconds of a Go duration such as ``1h30m`` or ``-1m``. Raises InvalidDuration with Go's error text."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0.0
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    total, position = 0.0, 0
    while position < len(body):
        part = _DURATION_PART.match(body, position)
        if part is None:
            raise InvalidDuration(f"time: invalid duration {quoted}")
        if not part[2]:
            raise InvalidDuration(f"time: missing unit in duration {quoted}")
        if part[2] not in _DURATION_UNITS:
            raise InvalidDuration(f'time: unknown unit "{part[2]}" in duration {quoted}')
        total += float(part[1]) * _DURATION_UNITS[part[2]]
        position = part.end()
    if not body or total >= MAX_DURATION:
        raise InvalidDuration(f"time: invalid duration {quoted}")
    return -total if text[0] == "-" else total


@dataclass(frozen=True, slots=True)
class Host:
    """The address that a server listens on, or that a client connects to."""

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    path: str = ""
    warning: str = ""

    @classmethod
    def parse(cls, text: str) -> Host:
        """Parse a value of OLLAMA_HOST. An invalid port gives the default port and a ``warning``."""
        text = text.strip().strip("\"'").strip()
        scheme, given, rest = text.partition("://")
        if not given:
            scheme, rest = "http", text
        default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if given else DEFAULT_PORT
        if text == "ollama.com":
            scheme, default = "https", 443
        address, slash, path = rest.partition("/")
        host, port_text = _split_host_port(address)
        port, warning = default, ""
        if port_text is not None:
            if port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535:
                port = int(port_text)
            else:
                warning = f'invalid port "{port_text}" in OLLAMA_HOST, using {default}'
        host = "127.0.0.1" if not text or (not host and port_text is None) else host
        return cls(scheme, host, port, (slash + path).rstrip("/"), warning)

    @property
    def address(self) -> str:
        """``host:port`` with IPv6 in brackets."""
        return net.host_and_port(self.host, self.port)

    @property
    def url(self) -> str:
        """The address that a client on this machine connects to: an unspecified host becomes its loopback address."""
        return f"{self.scheme}://{net.host_and_port(net.connectable(self.host), self.port)}{self.path}"


def _split_host_port(address: str) -> tuple[str, str | None]:
    if address.startswith("["):
        host, _, tail = address[1:].partition("]")
        return host, tail[1:] if tail.startswith(":") else None
    if address.count(":") > 1:
        return address, None
    host, colon, port = address.partition(":")
    return host, port if colon else None


NO_KEY = "ollama"
"""Sent to servers that need no key: most clients of OpenAI's and Anthropic's APIs refuse to start without one."""


def openai_variables(url: str, key: str) -> dict[str, str]:
    """The variables that OpenAI's clients read, for a server of ours."""
    return {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key or NO_KEY}


def anthropic_variables(url: str, key: str) -> dict[str, str]:
    """The variables that Anthropic's clients read, for a server of ours."""
    return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": key or NO_KEY}


class EnvironmentChanges:
    """Changes to an environment that can be undone."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._env = env
        self._before: dict[str, str | None] = {}

    def set(self, values: Mapping[str, str]) -> None:
        """Set variables; the values from before the first change are kept."""
        for name, value in values.items():
            self._before.setdefault(name, self._env.get(name))
            self._env[name] = value

    def undo(self) -> list[str]:
        """Put all variables back, and return their names."""
        names = list(self._before)
        for name, value in self._before.items():
            if value is None:
                self._env.pop(name, None)
            else:
                self._env[name] = value
        self._before.clear()
        return names


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a process. Times are seconds, sizes bytes; 0 or None means that the program chooses."""

    host: Host = field(default_factory=Host)
    models: Path = field(default_factory=lambda: Path.home() / ".ollama" / "models")
    home: Path = field(default_factory=lambda: Path.home() / ".ollama" / "nb")
    key: Path = field(default_factory=lambda: Path.home() / ".ollama" / "id_ed25519")
    transfer_streams: int = 4
    keep_alive: float = 300.0
    context_length: int = 0
    num_parallel: int = 0
    max_loaded_models: int = 0
    max_queue: int = 512
    load_timeout: float = 300.0
    noprune: bool = False
    origins: tuple[str, ...] = ()
    debug: int = 0
    flash_attention: bool | None = None
    kv_cache_type: str = "f16"
    go_template: bool | None = None
    no_history: bool = False
    require_key: bool = False
    neighbours: bool = True
    prefix_cache: int = 2 << 30
    stream_in_notebook: bool = True
    extra_models: tuple[Path, ...] = ()

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Parse ``os.environ``, or ``env``. All paths are absolute."""
        read = _Reader(os.environ if env is None else env)
        dot_ollama = _absolute(read.text("HOME") or str(Path.home())) / ".ollama"
        return cls(
            host=Host.parse(read.text("OLLAMA_HOST")),
            models=_absolute(read.text("OLLAMA_MODELS") or dot_ollama / "models"),
            home=_absolute(read.text("OLLAMA_NB_HOME") or dot_ollama / "nb"),
            key=dot_ollama / "id_ed25519",
            transfer_streams=min(64, read.whole("OLLAMA_MAX_TRANSFER_STREAMS", 4) or 4),
            keep_alive=read.seconds("OLLAMA_KEEP_ALIVE", 300.0),
            context_length=read.whole("OLLAMA_CONTEXT_LENGTH", 0, 1 << 24),
            num_parallel=read.whole("OLLAMA_NUM_PARALLEL", 0, 255),
            max_loaded_models=read.whole("OLLAMA_MAX_LOADED_MODELS", 0),
            max_queue=read.whole("OLLAMA_MAX_QUEUE", 512),
            load_timeout=read.seconds("OLLAMA_LOAD_TIMEOUT", 300.0) or FOREVER,
            noprune=read.flag("OLLAMA_NOPRUNE") or False,
            origins=tuple(o.strip() for o in read.text("OLLAMA_ORIGINS").split(",") if o.strip()),
            debug=read.whole("OLLAMA_DEBUG", int(read.flag("OLLAMA_DEBUG") or 0)),
            flash_attention=read.flag("OLLAMA_FLASH_ATTENTION"),
            kv_cache_type=read.text("OLLAMA_KV_CACHE_TYPE") or "f16",
            go_template=read.flag("OLLAMA_GO_TEMPLATE"),
            no_history=read.flag("OLLAMA_NOHISTORY") or False,
            require_key=read.flag("OLLAMA_NB_REQUIRE_KEY") or False,
            neighbours=read.flag("OLLAMA_NB_NEIGHBOURS") is not False,
            prefix_cache=read.whole("OLLAMA_NB_PREFIX_CACHE", 2 << 30),
            extra_models=read.folders("OLLAMA_NB_EXTRA_MODELS", SYSTEM_MODELS),
            stream_in_notebook=read.flag("OLLAMA_NB_STREAM") is not False,
        )


def absolute_folders(env: Mapping[str, str]) -> dict[str, str]:
    """The variables in ``env`` that name folders by relative paths, with absolute ones.

    Later reads and child processes, which may have another working directory, then find the same folders.
    """
    read = _Reader(env)
    found = {name: str(_absolute(read.text(name))) for name in ("OLLAMA_MODELS", "OLLAMA_NB_HOME") if read.text(name)}
    if read.text("OLLAMA_NB_EXTRA_MODELS"):
        found["OLLAMA_NB_EXTRA_MODELS"] = os.pathsep.join(map(str, read.folders("OLLAMA_NB_EXTRA_MODELS", ())))
    return {name: value for name, value in found.items() if value != env[name]}


def _absolute(path: str | Path) -> Path:
    """The path from the root, with ``~`` for the home folder; of a user that does not exist, ``~user`` is a name."""
    path = Path(path)
    with contextlib.suppress(RuntimeError):
        path = path.expanduser()
    return path.absolute()


class _Reader:
    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str:
        return self._env.get(name, "").strip().strip("\"'")

    def folders(self, name: str, default: tuple[Path, ...]) -> tuple[Path, ...]:
        """Paths, separated as in ``PATH``. Folders of the default are left out if they cannot be read."""
        if name not in self._env:
            return tuple(path for path in default if os.access(path / "manifests", os.R_OK | os.X_OK))
        return tuple(_absolute(part.strip()) for part in self.text(name).split(os.pathsep) if part.strip())

    def flag(self, name: str) -> bool | None:
        """A boolean as Go's ParseBool reads it. Unset gives None, any other text True."""
        value = self.text(name)
        if not value:
            return None
        return value not in {"0", "f", "F", "false", "FALSE", "False"}

    def whole(self, name: str, default: int, most: int = 1 << 53) -> int:
        """A whole number, at most ``most``; a larger one is logged."""
        value = self.text(name)
        if not (value.isascii() and value.isdigit()):
            return default
        digits = value.lstrip("0")
        if len(digits) > len(str(most)) or int(digits or 0) > most:
            _log.warning("%s is larger than %d: %d is used", name, most, most)
            return most
        return int(digits or 0)

    def seconds(self, name: str, default: float) -> float:
        """A Go duration or a whole number of seconds; a negative value means forever."""
        value = self.text(name)
        if not value:
            return default
        try:
            seconds = float(int(value)) if re.fullmatch(r"[+-]?\d+", value) else parse_duration(value)
        except (BadRequest, OverflowError, ValueError):  # a number with hundreds of digits
            return default
        return FOREVER if seconds < 0 else seconds
