"""Run the targets of ``fuzz_readers.py`` under atheris, which searches for new code paths: ``guided.py gguf 600``.

Needs ``pip install atheris``. A finding ends the program with a traceback and a file ``crash-…`` in the current folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

with atheris.instrument_imports(include=["ollama_nb"]):
    from fuzz.fuzz_readers import TARGETS, tried


def main(name: str, seconds: str) -> None:
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(target.seeds()):
            Path(corpus, str(number)).write_bytes(data)
        limits = [f"-max_total_time={seconds}", "-max_len=20000", "-rss_limit_mb=512", "-timeout=10"]

        def one(data: bytes) -> None:
            tried(target, data)

        atheris.Setup([sys.argv[0], corpus, "-print_final_stats=1", *limits], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
