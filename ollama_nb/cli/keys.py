"""``ollama keys add | list | rm``: the API keys of this machine's server."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import sys
import time
from collections.abc import Sequence

from ollama_nb.api.units import human_time
from ollama_nb.errors import BadRequest
from ollama_nb.server.keys import ApiKey, KeyFile
from ollama_nb.settings import Settings
from ollama_nb.verbs.present import table


def manage_keys(
    action: str, names: Sequence[str] = (), *, scope: str = "infer,read", days: str = "", json: bool = False
) -> None:
    """Add, list or remove keys. ``scope`` is comma separated; ``days`` is the validity of a new key."""
    file = KeyFile(Settings.from_env().home)
    if action == "add":
        _add(file, _single_name(names), scope, days, json=json)
    elif action in ("list", "ls"):
        _list(file, json=json)
    elif action == "rm":
        _remove(file, names)
    else:
        raise BadRequest(f'unknown action "{action}" for "ollama keys": use add, list or rm')


def _add(file: KeyFile, name: str, scope: str, days: str, *, json: bool) -> None:
    is_first = not file.read()
    key, text = file.add(name, [part.strip() for part in scope.split(",")], _days(days))
    if json:
        print(jsonlib.dumps({**_describe(key), "key": text}, ensure_ascii=False))
        return
    print(f"key '{key.name}' ({_describe_validity(key, time.time())}):\n\n    {text}\n")
    print("It is shown only once. Clients send it as `Authorization: Bearer …`; ours read it from OLLAMA_API_KEY.")
    if is_first:
        print("From now on `ollama serve` requires a key from every client; your own clients on this machine have one.")


def _list(file: KeyFile, *, json: bool) -> None:
    keys = file.read()
    if json:
        print(jsonlib.dumps([_describe(key) for key in keys], indent=2, ensure_ascii=False))
        return
    now = time.time()
    rows = [(key.name, ",".join(key.scopes), human_time(key.created_at - now), _expiry(key, now)) for key in keys]
    sys.stdout.write(table(("NAME", "SCOPES", "CREATED", "EXPIRES"), rows))


def _remove(file: KeyFile, names: Sequence[str]) -> None:
    if not names:
        raise BadRequest("keys rm takes at least one name")
    for name in names:
        file.remove(name)
        print(f"removed '{name}'")
    if not file.read():
        print("No keys remain. A running server still requires one; after a restart it accepts every client.")


def _single_name(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise BadRequest(f"keys add takes one name, received {len(names)}")
    return names[0]


def _days(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise BadRequest(f'invalid number of days: "{text}"') from None


def _describe(key: ApiKey) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(key).items() if name != "hash"}


def _describe_validity(key: ApiKey, now: float) -> str:
    return f"{', '.join(key.scopes)}; expires {_expiry(key, now).lower()}"


def _expiry(key: ApiKey, now: float) -> str:
    if key.expires_at is None:
        return "Never"
    return human_time(key.expires_at - now) if key.is_valid(now) else "Expired"
