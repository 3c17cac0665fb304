"""Pulls and creations as they go: one line a step, a bar where bytes are counted, one line when all is done."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ollama_nb.api.units import human_bytes
from ollama_nb.notebook.render import note_html


class Step:
    """One thing that the server does; ``total`` is 0 while its size is unknown."""

    def __init__(self, status: str) -> None:
        self.status, self.total, self.completed = status, 0, 0

    @property
    def percent(self) -> int:
        return min(100, self.completed * 100 // self.total) if self.total else 0


class Progress:
    """A page that follows a stream of ``{"status", "digest"?, "total"?, "completed"?}``.

    ``done`` is the line that stays when the stream has ended well.
    """

    def __init__(self, done: str) -> None:
        self._done, self._ended, self._note = done, False, ""
        self.steps: list[Step] = []
        self._lines: list[str] = []

    def feed(self, chunk: Mapping[str, Any]) -> None:
        status = str(chunk.get("status", ""))
        if status == "success":
            self._ended = True
            self._lines.append(self._finished())
            return
        step = next((step for step in self.steps if step.status == status), None)
        if step is None:
            step = Step(status)
            self.steps.append(step)
            self._lines.append(status)
        before = step.percent
        step.total = chunk.get("total") or step.total
        step.completed = chunk.get("completed") or step.completed
        if step.percent // 10 > before // 10:
            self._lines.append(f"{status} {step.percent}%")

    def interrupt(self) -> None:
        self._note = "interrupted"

    def fail(self) -> None:
        self._note = "failed"

    def html(self) -> str:
        if self._ended:
            return f"<div>{note_html(self._finished())}</div>"
        lines = [_step_html(step, last=step is self.steps[-1] and not self._note) for step in self.steps]
        if self._note and lines:
            lines.append(f"<div>{self._note}</div>")
        return "".join(lines)

    def plain(self) -> str:
        if self._ended:
            return self._finished()
        return "\n".join([step.status for step in self.steps] + ([self._note] if self._note else []))

    def log(self) -> str:
        lines = [*self._lines, self._note] if self._note else self._lines
        return "".join(f"{line}\n" for line in lines)

    def _finished(self) -> str:
        size = sum(step.total for step in self.steps)
        return f"{self._done} ({human_bytes(size)})" if size else self._done


_ROW = "display: flex; align-items: center; gap: 0.8em"
_FIGURES = "color: var(--jp-ui-font-color2, #757575); font-variant-numeric: tabular-nums"


def _step_html(step: Step, *, last: bool) -> str:
    if not step.total:
        return f"<div>{escape(step.status)}{' …' if last else ''}</div>"
    return (
        f'<div style="{_ROW}"><span>{escape(step.status)}</span>'
        f'<progress max="{step.total}" value="{step.completed}" style="width: 16em"></progress>'
        f'<span style="{_FIGURES}">{step.percent}% · '
        f"{human_bytes(step.completed)} / {human_bytes(step.total)}</span></div>"
    )
