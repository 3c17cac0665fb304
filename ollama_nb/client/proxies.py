"""Which proxy a request goes through: the environment's, and never one for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from ollama_nb.store.registry.urls import is_loopback


def proxy_for(target: SplitResult, env: Mapping[str, str]) -> SplitResult | None:
    """The proxy for ``target``, or None. ``NO_PROXY`` holds host names, ``.domains``, ``host:port`` or ``*``."""
    host = target.hostname or ""
    proxy = _variable(env, f"{target.scheme}_proxy")
    if not proxy or is_loopback(host) or _excepted(host, target.port, _variable(env, "no_proxy")):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _variable(env: Mapping[str, str], name: str) -> str:
    return (env.get(name) or env.get(name.upper()) or "").strip()


def _excepted(host: str, port: int | None, exceptions: str) -> bool:
    for entry in (part.strip().lower() for part in exceptions.split(",")):
        name, _, only_port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        if only_port and only_port != str(port):
            continue
        domain = name.lstrip(".")
        if name == "*" or (domain and f".{host.lower()}".endswith(f".{domain}")):
            return True
    return False
