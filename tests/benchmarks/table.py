"""Figures, stored as JSON and displayed as a table. A run replaces only what it measured."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from line import Row

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(slots=True)
class Figure:
    """The rounds of one row against one rival. ``load`` is the load average before the first round."""

    line: str
    key: str
    title: str
    unit: str
    better: str
    aim: float
    rival: str
    threads: int
    when: str
    load: float
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        row = Row(self.key, self.title, self.unit, "more" if self.better == "more" else "less", self.aim)
        return [row.ratio(mine, other) for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def cells(self) -> tuple[str, ...]:
        ours, theirs, ratios = statistics.median(self.ours), statistics.median(self.theirs), self.ratios
        return (
            self.title,
            self.rival,
            f"{_short(ours)} {self.unit}",
            f"{_short(theirs)} {self.unit}",
            f"{self.ratio:.2f}",
            f"{min(ratios):.2f}–{max(ratios):.2f}",
            str(len(ratios)),
            f"{self.aim:g}" if self.rival != "ollama" else "> 1",
        )


HEADINGS = ("Line", "Beside", "Ours", "Theirs", "Ratio", "Min–max", "Rounds", "Aim")


def text(figures: list[Figure]) -> str:
    """The table for a terminal."""
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def markdown(figures: list[Figure], facts: dict[str, str]) -> str:
    """The table for a page, with the machine and versions."""
    loads = [figure.load for figure in figures]
    hours = sorted(figure.when for figure in figures)
    lines = [
        *(f"- {name}: {value}" for name, value in facts.items()),
        f"- measured {hours[0]} to {hours[-1]} UTC, load average {min(loads):.1f} to {max(loads):.1f} before each line",
        "",
        "| " + " | ".join((*HEADINGS, "Threads")) + " |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        *("| " + " | ".join((*figure.cells(), str(figure.threads))) + " |" for figure in figures),
    ]
    return "\n".join(lines)


def write_page(page: Path, table: str) -> None:
    """Replace the text between the page's markers. Raises SystemExit if the page has none."""
    old = page.read_text("utf-8")
    new, count = re.subn(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n{END}", old, flags=re.DOTALL)
    if not count:
        raise SystemExit(f"{page} has no markers {BEGIN} and {END}")
    page.write_text(new, "utf-8")


def save(path: Path, figures: list[Figure], facts: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    record = {"facts": facts, "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load(path: Path) -> list[Figure]:
    """Figures of earlier runs; empty if there is no file."""
    try:
        return [Figure(**figure) for figure in json.loads(path.read_text("utf-8"))["figures"]]
    except (OSError, KeyError):
        return []


def load_facts(path: Path) -> dict[str, str]:
    """The machine and versions of earlier runs."""
    try:
        facts: dict[str, str] = json.loads(path.read_text("utf-8"))["facts"]
    except (OSError, KeyError):
        return {}
    return facts


def merged(old: list[Figure], new: list[Figure], order: list[str]) -> list[Figure]:
    """Replace old figures by new ones, in the order of lines and rivals."""
    rows = {(figure.line, figure.key, figure.rival): figure for figure in (*old, *new) if figure.line in order}
    return sorted(rows.values(), key=lambda figure: order.index(figure.line))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
