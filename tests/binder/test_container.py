"""The container file: the files that it copies exist, nothing runs as root, its entry point does what it documents."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "binder/Containerfile").read_text("utf-8")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", TEXT.replace("\\\n", ""), re.MULTILINE)


def test_the_files_that_it_names_exist() -> None:
    copied = [line.split()[-2] for line in instructions("COPY") if "--from" not in line]
    assert copied == [".", "notebooks"] and all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert not {"notebooks", "ollama_nb", "server_ext", "README.md", "LICENSE", "pyproject.toml"} & set(ignored)
    assert 'CMAKE_ARGS="-DGGML_NATIVE=OFF"' in TEXT
    assert instructions("USER") == ["user"] and instructions("VOLUME") == ["/home/user/.ollama"]
    assert TEXT.index("\nVOLUME") > TEXT.index("install -d -o user")  # otherwise root would own the mounted folder


@pytest.mark.parametrize(
    ("command", "env", "told"),
    [
        (("ollama", "serve"), {}, "0.0.0.0|serve"),
        (("ollama", "serve"), {"OLLAMA_HOST": "127.0.0.1:1"}, "127.0.0.1:1|serve"),
        (("jupyter", "lab", "a b"), {}, "|lab,a b"),
    ],
)
def test_only_the_standalone_server_listens_on_all_interfaces(
    tmp_path: Path, command: tuple[str, ...], env: dict[str, str], told: str
) -> None:
    """Kernels must use Jupyter's server; OLLAMA_HOST would lead them to another one."""
    program = tmp_path / command[0]
    program.write_text('#!/bin/sh\nIFS=,\necho "$OLLAMA_HOST|$*"\n')
    program.chmod(0o755)
    (entry,) = (json.loads(line) for line in instructions("ENTRYPOINT"))
    done = subprocess.run(
        [*entry, *command], env={"PATH": f"{tmp_path}:/usr/bin:/bin", **env}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == told
