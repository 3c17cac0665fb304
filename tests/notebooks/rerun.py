"""``make notebooks``: run the example notebooks (all, or those named) and keep their outputs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.servers import NOTEBOOKS, notebook_env


def main() -> int:
    books = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
    command += ["--ExecutePreprocessor.record_timing=False", "--ExecutePreprocessor.store_widget_state=False"]
    command += map(str, books)
    with tempfile.TemporaryDirectory() as folder, notebook_env(Path(folder)) as env:
        if code := subprocess.run(command, env=env).returncode:
            return code
    for book in books:
        tidy(book)
    return 0


def tidy(book: Path) -> None:
    """Leave what the next run, here or elsewhere, would write again.

    Not which Python ran it, nor into how many pieces its prints were cut. Widgets live as long as their kernel; what
    remains of them is their text.
    """
    content = nbformat.read(book, as_version=4)
    content.metadata["language_info"] = {"name": "python"}
    content, _ = CoalesceStreamsPreprocessor().preprocess(content, {})
    for output in (output for cell in content.cells for output in cell.get("outputs", ())):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(content, book)


if __name__ == "__main__":
    raise SystemExit(main())
