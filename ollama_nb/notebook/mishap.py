"""``%ollama explain``: the last exception, with the code that raised it, goes to a model."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ollama_nb.errors import BadRequest
from ollama_nb.notebook import talk
from ollama_nb.notebook.parse import Line
from ollama_nb.notebook.session import Session

SYSTEM = (
    "You help people who work in a Jupyter notebook. Say in a few sentences why the error came about, then show the "
    "corrected code."
)
MOST = 6_000
"""Characters of a traceback, and of a cell; of longer ones the middle is left out."""
_INSTALLED = ("site-packages", "dist-packages", "<frozen")


def explain(session: Session, line: Line, cell: str | None) -> Any:
    """What is added after the model's name is asked as well."""
    error = getattr(sys, "last_value", None)
    if not isinstance(error, BaseException):
        raise BadRequest("no cell of this notebook has raised an exception yet")
    question = talk.read(session, line)
    prompt = described(error)
    if more := talk.text_of(line, cell):
        prompt = f"{prompt}\n\n{more}"
    return talk.ask(session, line, prompt, question if question.system else question.with_system(SYSTEM))


def described(error: BaseException) -> str:
    """The exception as a question: the cell's code, and the traceback from there on."""
    frames = traceback.extract_tb(own_part(error.__traceback__))
    told = "".join(_told(error, frames)).rstrip()
    source = _cell(error, frames)
    parts = (
        [f"This cell of a notebook:\n\n```python\n{_shortened(source)}\n```\n\nraised this error:"] if source else []
    )
    return "\n\n".join([*(parts or ["A notebook raised this error:"]), f"```\n{_shortened(told)}\n```"])


def own_part(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame that is no installed library's; what ran the cell says nothing about it."""
    at = trace
    while at is not None and any(part in at.tb_frame.f_code.co_filename for part in _INSTALLED):
        at = at.tb_next
    return at or trace


def _told(error: BaseException, frames: traceback.StackSummary) -> list[str]:
    last = traceback.format_exception_only(type(error), error)
    return ["Traceback (most recent call last):\n", *traceback.format_list(frames), *last] if frames else last


def _cell(error: BaseException, frames: Sequence[traceback.FrameSummary]) -> str:
    """The source of the cell, which IPython keeps where tracebacks look for it."""
    raised_in = frames[0].filename if frames else ""
    return "".join(linecache.getlines((isinstance(error, SyntaxError) and error.filename) or raised_in)).strip()


def _shortened(text: str) -> str:
    if len(text) <= MOST:
        return text
    return f"{text[: MOST // 3]}\n…\n{text[-2 * MOST // 3 :]}"
