"""A mixed load for a given time: every answer is checked, and memory, descriptors and threads must not grow.

    make soak                                       ten minutes
    make soak SOAK="--minutes 60"                   an hour, more than 50,000 requests
    make soak SOAK="--minutes 60 --rate 16"         the same with at most about 16 requests a second

One server with an empty store and five tiny models gets chats, completions, structured output, embeddings, rankings
and tables through all dialects, from several clients. At least a fifth of the requests are abandoned at a random
moment. One client creates, copies, removes, pulls, pushes, loads, unloads and kills. Another one reads slowly. Every
answer is compared with the one that the idle server gave. Every few seconds the clients pause, the server must become
idle, and all its processes are measured. The program prints a report, writes it as JSON, and exits with 1 if a limit
is exceeded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from soak import clients, growth, questions
from soak.clients import Soak
from soak.growth import Growth, Sample
from support.chaos_registry import chaos_registry
from support.servers import standalone

MODELS = Path(__file__).parent.parent / "models"
RESULT = Path("bench") / "soak.json"
MAX_SLOPE = 0.5  # MiB per 1,000 requests, of the server and of every runner
MAX_DRIFT = 2  # descriptors, threads or children
MIN_ABANDONED = 0.2  # share of the requests that were meant to be abandoned and were
IDLE_SECONDS = 30.0  # for the clients to finish, and for the server to become idle
ENV = {
    "OLLAMA_NUM_PARALLEL": "4",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_MAX_LOADED_MODELS": "8",
    "OLLAMA_CONTEXT_LENGTH": "512",
}
_LOGGED = re.compile(r" INFO [A-Z]+ /\S* (\d+) [\d.]+s (soak-\d+)$", re.MULTILINE)


@dataclasses.dataclass
class Report:
    """What a soak found. ``problems`` is empty if every limit was kept."""

    began: str
    minutes: float
    requests: int
    per_second: float
    kinds: dict[str, int]
    outcomes: dict[str, int]
    growths: list[Growth]
    children: tuple[int, int]
    samples: list[Sample]
    problems: list[str]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="duration of the load, warm-up included (10)")
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the time that is not measured (0.2)")
    parser.add_argument("--every", type=float, default=10, help="seconds between two measurements (10)")
    parser.add_argument("--clients", type=int, default=6, help="clients that ask questions (6)")
    parser.add_argument(
        "--rate", type=float, default=0, help="questions a second of all clients (0: as many as possible)"
    )
    parser.add_argument("--abandon", type=float, default=0.5, help="share of questions that may be abandoned (0.5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help=f"where the report goes ({RESULT})")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = run(Path(folder), args, print)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(dataclasses.asdict(report), indent=1))
    print(text(report))
    return 1 if report.problems else 0


def run(folder: Path, args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Start a server in ``folder``, load it for ``args.minutes``, and report."""
    os.environ |= {"OLLAMA_NB_HOME": str(folder / "client")}  # where tables keep their ledgers
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with chaos_registry() as registry, standalone(folder / "server", env=ENV) as server:
        pace = args.clients / args.rate if args.rate else 0.0
        soak = Soak(server, registry, MODELS, args.abandon, pace)
        soak.setup()
        wire = soak.wire()
        soak.questions = questions.make(lambda path, body: soak.call(wire, "reference", "POST", path, body)[1])
        wire.close()
        tell(f"{len(soak.questions)} questions; load for {args.minutes} minutes")
        samples = _load(soak, args, tell)
        problems = list(soak.ledger.failures)
        problems += _logged(soak, server.output())
        registry.released.set()
    measured = [sample for sample in samples if sample.seconds >= args.minutes * 60 * args.warm_up]
    return _report(soak, began, args, measured, problems)


def _load(soak: Soak, args: argparse.Namespace, tell: Callable[[str], None]) -> list[Sample]:
    roles = [(clients.ask_questions, number) for number in range(args.clients)]
    roles += [(clients.change_models, 101), (clients.fill_tables, 102), (clients.read_slowly, 103)]
    crew = [threading.Thread(target=_guarded, args=(soak, role, args.seed * 1000 + number)) for role, number in roles]
    for thread in crew:
        thread.start()
    began, samples = time.monotonic(), list[Sample]()
    while (spent := time.monotonic() - began) < args.minutes * 60 and not soak.stop.is_set():
        soak.stop.wait(min(args.every, args.minutes * 60 - spent))
        if not soak.gate.close(IDLE_SECONDS) or not clients.is_idle(soak, IDLE_SECONDS):
            soak.ledger.fail(f"requests do not end within {IDLE_SECONDS} s")
        samples.append(growth.take(soak.server.pid, time.monotonic() - began, soak.ledger.sent, soak.digests))
        soak.gate.open()
        if len(samples) % 6 == 1:
            server = samples[-1].sizes[0]
            tell(f"{samples[-1].seconds:6.0f} s  {samples[-1].requests:7,} requests  {dict(soak.ledger.outcomes)}  "
                 f"server {server.memory / 1024:.1f} MiB {server.files} files {server.threads} threads")  # fmt: skip
    soak.stop.set()
    for thread in crew:
        thread.join()
    return samples


def _guarded(soak: Soak, role: Callable[[Soak, int], None], seed: int) -> None:
    try:
        role(soak, seed)
    except BaseException as error:
        soak.ledger.fail(f"{role.__name__} ended: {type(error).__name__}: {error}")
        soak.stop.set()
        raise


def _logged(soak: Soak, log: str) -> list[str]:
    """Every complete reply must have exactly one line in the server's log, and none may have two."""
    lines = Counter(found[1] for found in _LOGGED.findall(log))
    missing = [request for request in soak.ledger.answered if not lines[request]]
    double = [request for request, count in lines.items() if count > 1]
    found = [f"{len(missing)} answered requests are not in the log: {missing[:3]}"] if missing else []
    found += [f"{len(double)} requests are in the log more than once: {double[:3]}"] if double else []
    if "Traceback" in log:
        found.append("the log has a traceback: " + log[log.index("Traceback") :][:3000])
    return found


def _report(soak: Soak, began: str, args: argparse.Namespace, samples: list[Sample], problems: list[str]) -> Report:
    outcomes = soak.ledger.outcomes
    found = growth.growths(samples)
    problems += [
        f"{of.role} ({of.pid}) grows by {of.slope:.2f} ± {of.margin:.2f} MiB per 1,000 requests"
        for of in found if of.slope + of.margin > MAX_SLOPE
    ]  # fmt: skip
    problems += [
        f"{of.role} ({of.pid}): {of.files:+} descriptors, {of.threads:+} threads"
        for of in found if max(abs(of.files), abs(of.threads)) > MAX_DRIFT
    ]  # fmt: skip
    counts = [len(sample.sizes) - 1 for sample in samples] or [0]
    if growth.drift(counts) > MAX_DRIFT:
        problems.append(f"{growth.drift(counts):+} children")
    if outcomes["abandoned"] < MIN_ABANDONED * soak.ledger.sent:
        problems.append(f"only {outcomes['abandoned']} of {soak.ledger.sent} requests were abandoned")
    seconds = args.minutes * 60
    return Report(
        began, args.minutes, soak.ledger.sent, round(soak.ledger.sent / seconds, 1), dict(soak.ledger.counts),
        dict(outcomes), found, (min(counts), max(counts)), samples, problems,
    )  # fmt: skip


def text(report: Report) -> str:
    """The report for a terminal."""
    lines = [f"{report.requests:,} requests in {report.minutes} minutes, {report.per_second} per second"]
    lines += [f"  {count:8,}  {kind}" for kind, count in sorted(report.kinds.items(), key=lambda pair: -pair[1])]
    lines += ["outcomes", *(f"  {count:8,}  {outcome}" for outcome, count in report.outcomes.items())]
    lines.append(f"{'process':32} {'samples':>7} {'first':>8} {'last':>8}  MiB per 1,000 requests   files threads")
    lines += [
        f"{of.role:32} {of.samples:7} {of.first:8.1f} {of.last:8.1f}  {of.slope:+8.3f} ± {of.margin:5.3f}"
        f"        {of.files:+5} {of.threads:+7}"
        for of in report.growths
    ]
    lines.append(f"children: {report.children[0]} to {report.children[1]}")
    lines += ["every limit kept"] if not report.problems else ["exceeded:", *(f"  {p}" for p in report.problems)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
