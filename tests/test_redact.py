"""Secrets are removed from texts, and nothing else is."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ollama_nb.redact import RedactingFormatter, hide_folders, redact, secrets_of


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://anna:secret@host/v2", "https://***@host/v2"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ('{"authorization": "Basic YWJj"}', '{"authorization": "Basic ***"}'),
        ("sent Bearer abcdef123", "sent Bearer ***"),
        ("GET /api/tags?x=1&token=abc&y=2", "GET /api/tags?x=1&token=***&y=2"),
        ("key onb_abcdefgh and sk-abcdefghij and hf_abcdefgh", "key *** and *** and ***"),
        ("POST /api/chat 200 0.005s e868f1398f21bf8d", "POST /api/chat 200 0.005s e868f1398f21bf8d"),
        ("pull registry.example:5000/a/b:1@sha256:0a", "pull registry.example:5000/a/b:1@sha256:0a"),
        ("mail anna@example.com, 3 tokens, key: value", "mail anna@example.com, 3 tokens, key: value"),
    ],
)
def test_secrets_by_their_shape(text: str, clean: str) -> None:
    """S25: passwords in addresses, headers, query arguments and keys."""
    assert redact(text) == clean
    assert redact(clean) == clean


def test_secret_values_of_an_environment() -> None:
    env = {
        "MY_API_KEY": "abcdef-long",
        "TOKEN": "abcdef",
        "SHORT_KEY": "abc",
        "PATH": "/usr/bin",
        "OPENAI_API_KEY": "ollama",
    }
    assert secrets_of(env) == ["abcdef-long", "abcdef"]
    assert redact("x abcdef-long abcdef y", secrets_of(env)) == "x *** *** y"


def test_log_lines_and_tracebacks_have_no_secrets() -> None:
    """S25: the log has no secret, whatever is logged."""
    formatter = RedactingFormatter("%(levelname)s %(message)s", ["my-secret"])
    try:
        raise ValueError("https://anna:secret@host my-secret")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed with %s", ("my-secret",), info)
    text = formatter.format(record)
    assert text.startswith("ERROR failed with ***\nTraceback")
    assert "secret@" not in text and "my-secret" not in text.replace('"https://anna:secret@host my-secret"', "")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot read /data/models/blobs/sha256-0a: denied", "cannot read blobs/sha256-0a: denied"),
        ("cannot write in /data/models: denied", "cannot write in models: denied"),
        ("cannot read ~/nb/keys.json, or /home/anna/nb/keys.json", "cannot read keys.json, or keys.json"),
        ("no such file: '/home/anna/secret/x' file:///home/anna/x", "no such file: '~/secret/x' file://~/x"),
        (
            "/data/models-evil/x /other/data/models/x /home/annabel",
            "/data/models-evil/x /other/data/models/x /home/annabel",
        ),
        ("/home/anna.", "~."),
    ],
)
def test_folders_are_hidden(text: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S25: errors have paths relative to the store."""
    monkeypatch.setenv("HOME", "/home/anna")
    assert hide_folders(text, [Path("/data/models"), Path("/home/anna/nb")]) == clean
    assert hide_folders(clean, [Path("/data/models"), Path("/home/anna/nb")]) == clean
