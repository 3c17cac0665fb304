"""Speed of the whole HTTP stack compared with other servers: the same file and threads, alternating rounds.

    make bench                                     against the peers that are found, else against bare llama.cpp calls
    make bench BENCH="--line greedy --rounds 9"    one line only (--list shows them)
    make bench BENCH="--quick"                     two rounds of everything
    make bench BENCH="--write docs/PERFORMANCE.md" the table and the plot into the page

Peers: --llama-server PATH or LLAMA_SERVER, --llama-bench PATH or LLAMA_BENCH, --ollama PATH or OLLAMA_BIN, or PATH.
Each is measured in pairs with ours, so that at most two models are in memory. Only ratios are meaningful:
absolute figures depend on the machine and its load.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import lines_decode
import lines_frame
import lines_prompt
import lines_server
import table
from line import Line, Round
from models import SHAPES, model_file, words
from peers import Server, Stage, llama_server, ollama, ours
from plot import draw
from streams import answer
from support.servers import clean_env

from ollama_nb.engine.threads import default_threads

LINES = {
    line.name: line for line in (*lines_decode.LINES, *lines_prompt.LINES, *lines_frame.LINES, *lines_server.LINES)
}
RESULTS = Path("bench") / "last.json"
Start = Callable[[Stage], contextlib.AbstractContextManager[Server]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", choices=LINES, action="append", metavar="NAME", help="only this line (repeatable)")
    parser.add_argument("--list", action="store_true", help="name the lines")
    parser.add_argument("--rounds", type=int, help="instead of each line's own number")
    parser.add_argument("--quick", action="store_true", help="at most two rounds of each line")
    parser.add_argument("--threads", type=int, default=default_threads(1 << 30))
    parser.add_argument("--llama-server", default=_found("LLAMA_SERVER", "llama-server"))
    parser.add_argument("--llama-bench", default=_found("LLAMA_BENCH", "llama-bench"))
    parser.add_argument("--ollama", default=_found("OLLAMA_BIN", ""))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the markers of this page")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.list:
        for line in LINES.values():
            print(f"{line.name:12} {' / '.join(row.title for row in line.rows)}")
        return
    lines = [LINES[name] for name in args.line or LINES]
    rivals: dict[str, Start] = {}
    if args.llama_server:
        rivals["llama-server"] = lambda stage: llama_server(args.llama_server, stage)
    if args.ollama:
        rivals["ollama"] = lambda stage: ollama(args.ollama, stage)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # end the servers at the end of their blocks
    bench = Bench(args)
    for rival, start in rivals.items():
        bench.measure([line for line in lines if line.measure and rival in (line.rivals or rivals)], rival, start)
    alone = [line for line in lines if line.pairs and not (line.optional and rivals)]
    bench.measure(alone, "", lambda stage: contextlib.nullcontext())
    print("\n" + table.text(bench.ordered()) + f"\n\nRatio over 1: ours is better. All in {RESULTS}")
    if args.write:
        everything = table.load(RESULTS)
        table.write_page(args.write, table.markdown(everything, bench.facts))
        draw(everything, args.write.with_suffix(".svg"))
    if bench.failed:
        raise SystemExit("not measured: " + ", ".join(bench.failed))


class Bench:
    """One run; results are saved after every line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.facts = args, table.load_facts(RESULTS) | machine(args)
        self.figures: list[table.Figure] = []
        self.failed: list[str] = []

    def measure(self, lines: list[Line], rival: str, start: Start) -> None:
        """Measure lines against one rival; lines with the same servers share them. Failed lines are reported."""
        for stage, group in itertools.groupby(lines, lambda line: _stage(line, self.args.threads)):
            with ours(stage) as mine, start(stage) as other:
                for line in group:
                    try:
                        new = one_line(line, self.args, rival, mine, other)
                    except (RuntimeError, TimeoutError, OSError) as error:
                        print(f"{line.name} beside {rival or line.beside}: {error}", file=sys.stderr)
                        self.failed.append(f"{line.name} beside {rival or line.beside}")
                    else:
                        self._keep(new)

    def ordered(self) -> list[table.Figure]:
        return table.merged([], self.figures, list(LINES))

    def _keep(self, new: list[table.Figure]) -> None:
        self.figures += new
        table.save(RESULTS, table.merged(table.load(RESULTS), new, list(LINES)), self.facts)
        print(table.text(new).split("\n", 1)[1], flush=True)


def one_line(
    line: Line, args: argparse.Namespace, rival: str, mine: Server, other: Server | None
) -> list[table.Figure]:
    """All rounds of a line, after a warm-up round if rounds are short."""
    rounds = min(args.rounds or line.rounds, 2) if args.quick else args.rounds or line.rounds
    name = rival or line.beside
    if name == "limit":
        name = "llama-bench" if args.llama_bench else "bare decode"
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    found = {
        row.key: table.Figure(line.name, row.key, row.title, row.unit, row.better, row.aim, name,
                              mine.stage.threads, now, os.getloadavg()[0])
        for row in line.rows
    }  # fmt: skip
    vocabulary = SHAPES[line.model].vocabulary if line.model in SHAPES else 0
    seeds = itertools.count(time.time_ns() % (1 << 40))
    for server in () if line.warms else filter(None, (mine, other)):
        warm_up(server, vocabulary)
    for index in range(rounds):
        turn = Round(next(seeds), vocabulary, args.llama_bench)
        for key, pair in one_round(line, turn, mine, other, ours_first=index % 2 == 0).items():
            found[key].ours.append(pair[0])
            found[key].theirs.append(pair[1])
    return list(found.values())


def one_round(
    line: Line, turn: Round, mine: Server, other: Server | None, *, ours_first: bool
) -> dict[str, tuple[float, float]]:
    if other is None:
        assert line.pairs is not None
        return line.pairs(mine, turn)
    assert line.measure is not None
    if ours_first:
        my, their = line.measure(mine, turn), line.measure(other, turn)
    else:
        their, my = line.measure(other, turn), line.measure(mine, turn)
    return {key: (my[key], their[key]) for key in my}


def warm_up(server: Server, vocabulary: int) -> None:
    """Load the model and touch its pages."""
    text = words(random.Random(0), 32, vocabulary) if vocabulary else "Once upon a time there was a river."
    answer(server.generate(text, 4))


def machine(args: argparse.Namespace) -> dict[str, str]:
    """The machine and versions that the figures depend on."""
    facts = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores for this process",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "ours": f"ollama-nb {version('ollama-nb')} on llama-cpp-python {version('llama-cpp-python')}",
    }
    for name, program in (("llama-server", args.llama_server), ("ollama", args.ollama)):
        if program:
            facts[name] = " ".join(_version_lines(program))
    return facts


def _version_lines(program: str) -> Iterator[str]:
    """The version output of a program, run in an empty home."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, env=clean_env(Path(home)))
    for line in (done.stdout + done.stderr).splitlines():
        if "version" in line or "built with" in line:
            yield line.strip().removeprefix("Warning: ")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _stage(line: Line, threads: int) -> Stage:
    return Stage(model_file(line.model), line.slots, line.context, line.threads or threads)


def _found(variable: str, program: str) -> str | None:
    return os.environ.get(variable) or (shutil.which(program) if program else None)


if __name__ == "__main__":
    main()
