"""Addresses of this machine, the proxies of the environment, and which users listen on a port.

Nothing here opens a connection.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
"""The usual spellings of this machine, for lists such as ``NO_PROXY``. To test a host use :func:`is_loopback`."""

_UNSPECIFIED = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")  # programs read these names in capitals, too
_TCP_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN = "0A"  # the state LISTEN in those tables


def is_loopback(host: str) -> bool:
    """Whether a host name or an address means this machine. Letter case and an IPv6 zone are ignored.

    >>> is_loopback("127.0.0.1"), is_loopback("LOCALHOST"), is_loopback("example.org")
    (True, True, False)
    """
    host = host.lower()
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_loopback_url(url: str) -> bool:
    """Whether the host of a URL means this machine."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def is_loopback_socket(bound: socket.socket) -> bool:
    """Whether a bound TCP socket can be reached from this machine only."""
    return is_loopback(bound.getsockname()[0])


def connectable(host: str) -> str:
    """The host that a client on this machine connects to: an unspecified address becomes its loopback address."""
    return _UNSPECIFIED.get(host, host)


def host_and_port(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxy_for(url: SplitResult, env: Mapping[str, str]) -> SplitResult | None:
    """The proxy that ``env`` names for a request to ``url``; None for this machine and for exceptions.

    ``NO_PROXY`` lists host names, ``.domains``, ``host:port`` or ``*``, separated by commas.
    """
    host = url.hostname or ""
    proxy = _variable(env, f"{url.scheme}_proxy")
    port = url.port or _DEFAULT_PORTS.get(url.scheme)
    if not proxy or is_loopback(host) or _is_exception(host, port, _variable(env, "no_proxy")):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """The header for a proxy whose address holds a user name and a password; empty for others."""
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}


def no_proxy_for(hosts: Iterable[str], env: Mapping[str, str]) -> str | None:
    """The value of ``NO_PROXY`` with which programs reach ``hosts`` directly.

    None when nothing has to change: no proxy is set, or every host is excepted already.
    """
    if not any(_variable(env, name) for name in PROXY_VARIABLES):
        return None
    values = ",".join(env.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    listed = [part.strip() for part in values.split(",") if part.strip()]
    return None if "*" in listed else ",".join(dict.fromkeys((*listed, *hosts)))


def listening_users(port: int, tables: Iterable[str] = _TCP_TABLES) -> set[int] | None:
    """User ids of the TCP sockets that listen on ``port``; None if the system does not report them (not Linux)."""
    found: set[int] = set()
    readable = False
    for table in tables:
        try:
            rows = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        readable = True
        found |= {int(uid) for local, state, uid in map(_columns, rows) if state == _LISTEN and _port(local) == port}
    return found if readable else None


def _variable(env: Mapping[str, str], name: str) -> str:
    return (env.get(name) or env.get(name.upper()) or "").strip()


def _is_exception(host: str, port: int | None, exceptions: str) -> bool:
    for entry in (part.strip().lower() for part in exceptions.split(",")):
        name, _, only_port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        if only_port and only_port != str(port):
            continue
        domain = name.lstrip(".")
        if name == "*" or (domain and f".{host.lower()}".endswith(f".{domain}")):
            return True
    return False


def _columns(row: str) -> tuple[str, str, str]:
    """Local address, state and user id of a row of ``/proc/net/tcp``."""
    cells = row.split()
    return cells[1], cells[3], cells[7]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
