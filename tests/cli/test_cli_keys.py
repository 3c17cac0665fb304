"""``ollama keys``: a key is shown once, listed without its secret, and removed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.command_line import RunCommand

from ollama_nb.server.keys import KeyFile


def test_a_key_is_shown_once(ollama: RunCommand, home: Path) -> None:
    done = ollama("keys", "add", "Anna", "--scope", "read, infer", "--days", "30")
    assert done.out.startswith("key 'Anna' (infer, read; expires 4 weeks from now):\n\n    onb_")
    assert "From now on `ollama serve` requires a key from every client" in done.out
    (text,) = re.findall(r"onb_\S+", done.out)
    second = ollama("keys", "add", "ci", "--scope=admin", "--json")
    described = json.loads(second.out)
    assert described["key"].startswith("onb_") and described["scopes"] == ["admin"]
    assert described["expires_at"] is None
    listed = ollama("keys", "list")
    assert [line.split()[:2] for line in listed.out.splitlines()] == [
        ["NAME", "SCOPES"],
        ["Anna", "infer,read"],
        ["ci", "admin"],
    ]
    for output in (listed.out, ollama("keys", "list", "--json").out):
        assert text not in output and described["key"] not in output
    assert [key.name for key in KeyFile(home / ".ollama" / "nb").read()] == ["Anna", "ci"]


def test_remove_keys(ollama: RunCommand) -> None:
    for name in ("a", "b"):
        ollama("keys", "add", name)
    assert ollama("keys", "rm", "a").out == "removed 'a'\n"
    assert "No keys remain" in ollama("keys", "rm", "b").out
    assert ollama("keys", "list").out.split() == ["NAME", "SCOPES", "CREATED", "EXPIRES"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("keys",), "requires at least 1 arg(s), only received 0"),
        (("keys", "frob"), 'unknown action "frob" for "ollama keys": use add, list or rm'),
        (("keys", "add"), "keys add takes one name, received 0"),
        (("keys", "add", "a", "--scope", "root"), 'unknown scope "root": choose among infer, read, write, admin'),
        (("keys", "add", "a", "--days", "soon"), 'invalid number of days: "soon"'),
        (("keys", "add", "a", "--days", "-1"), "a key cannot be valid for -1 days"),
        (("keys", "rm"), "keys rm takes at least one name"),
        (("keys", "rm", "none"), "there is no key named 'none'"),
    ],
)
def test_invalid_arguments(ollama: RunCommand, arguments: tuple[str, ...], text: str) -> None:
    done = ollama(*arguments)
    assert (done.code, done.out, done.err) == (1, "", f"Error: {text}\n")
