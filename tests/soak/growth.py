"""Memory, descriptors and threads of a server and its children over many requests, and the slope of their growth."""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.processes import command_line
from support.servers import descendants

KIB_PER_MIB = 1024
_MODULE = re.compile(r"-m ollama_nb\.([\w.]+)")


@dataclass(frozen=True, slots=True)
class Size:
    """One process at one moment. ``memory`` is private memory with swap in KiB."""

    pid: int
    role: str
    memory: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of the server while no request ran. ``requests`` is how many it had received by then."""

    seconds: float
    requests: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Growth:
    """The slope of one process in MiB per 1,000 requests, with the half width of its 95 % confidence interval.

    ``files`` and ``threads`` are the differences between the medians of the first and the last quarter of the samples.
    """

    role: str
    pid: int
    samples: int
    requests: int
    first: float
    last: float
    slope: float
    margin: float
    files: int
    threads: int


def take(server: int, seconds: float, requests: int, names: Mapping[str, str]) -> Sample:
    """Measure the server, then its descendants. ``names`` maps digests of weights to the names of their models."""
    found = [size for pid in (server, *sorted(descendants(server))) if (size := _size(pid, server, names))]
    return Sample(seconds, requests, tuple(found))


def _size(pid: int, server: int, names: Mapping[str, str]) -> Size | None:
    with contextlib.suppress(OSError, KeyError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
        memory = sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        role = "server" if pid == server else _role(pid, names)
        return Size(pid, role, memory, files, int(fields["Threads"]))
    return None  # it has just ended


def _role(pid: int, names: Mapping[str, str]) -> str:
    """The module that a child runs, and the model whose weights it has mapped."""
    module = _MODULE.search(command_line(pid))
    maps = Path(f"/proc/{pid}/maps").read_text()
    models = sorted(name for digest, name in names.items() if digest.replace(":", "-") in maps)
    return " ".join([module[1] if module else "child", *models])


def growths(samples: Sequence[Sample], share: float = 0.5) -> list[Growth]:
    """The growth of every process that lived through at least ``share`` of the samples."""
    series: dict[tuple[int, str], list[tuple[Sample, Size]]] = defaultdict(list)
    for sample in samples:
        for size in sample.sizes:
            series[size.pid, size.role].append((sample, size))
    return [_growth(of) for of in series.values() if len(of) >= max(3, share * len(samples))]


def _growth(of: Sequence[tuple[Sample, Size]]) -> Growth:
    slope, margin = regression(
        [sample.requests / 1000 for sample, _ in of], [size.memory / KIB_PER_MIB for _, size in of]
    )
    (_, first), (_, last) = of[0], of[-1]
    return Growth(
        role=first.role, pid=first.pid, samples=len(of), requests=of[-1][0].requests - of[0][0].requests,
        first=first.memory / KIB_PER_MIB, last=last.memory / KIB_PER_MIB, slope=slope, margin=margin,
        files=drift([size.files for _, size in of]), threads=drift([size.threads for _, size in of]),
    )  # fmt: skip


def regression(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line, and the half width of its 95 % confidence interval."""
    n, mean_x, mean_y = len(xs), sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if n < 3 or not spread:
        return 0.0, math.inf
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return slope, _student(n - 2) * math.sqrt(rest / (n - 2) / spread)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution (Cornish-Fisher expansion, exact values for few samples)."""
    exact = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
    if freedom in exact:
        return exact[freedom]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def drift(values: Sequence[int]) -> int:
    """The difference between the medians of the last and the first quarter."""
    quarter = max(1, len(values) // 4)
    return _median(values[-quarter:]) - _median(values[:quarter])


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]
