"""Folders in the environment are absolute once they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_nb.settings import Settings, absolute_folders


def test_folders_are_absolute(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {
        "OLLAMA_MODELS": " 'models' ",
        "OLLAMA_NB_HOME": "~/state",
        "OLLAMA_NB_EXTRA_MODELS": ": a :~/b::/c:~no-such-user/d",
        "HOME": str(home),
    }
    settings = Settings.from_env(env)
    assert (settings.models, settings.home) == (tmp_path / "models", home / "state")
    extra = (tmp_path / "a", home / "b", Path("/c"), tmp_path / "~no-such-user" / "d")
    assert settings.extra_models == extra
    assert settings.key == home / ".ollama" / "id_ed25519"
    changed = {**env, **absolute_folders(env)}
    monkeypatch.chdir("/")
    assert Settings.from_env(changed) == settings
    assert absolute_folders(changed) == {}


def test_nothing_changes_without_relative_folders() -> None:
    assert absolute_folders({"OLLAMA_MODELS": "/m", "OLLAMA_NB_EXTRA_MODELS": "", "OLLAMA_NB_HOME": " "}) == {}
