"""``make notebooks``: run the example notebooks (all, or those named) and keep their outputs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.notebooks import NOTEBOOKS, notebook_env


def main() -> int:
    books = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
    command += ["--ExecutePreprocessor.record_timing=False", *map(str, books)]
    with tempfile.TemporaryDirectory() as folder, notebook_env(Path(folder)) as env:
        if code := subprocess.run(command, env=env).returncode:
            return code
    for book in books:
        forget_machine(book)
    return 0


def forget_machine(book: Path) -> None:
    """Leave out which Python ran the notebook, so that running it again elsewhere changes nothing."""
    content = nbformat.read(book, as_version=4)
    content.metadata["language_info"] = {"name": "python"}
    nbformat.write(content, book)


if __name__ == "__main__":
    raise SystemExit(main())
