"""``%ollama code`` and ``%ollama explain``: code from an answer, and questions about the last exception."""

from __future__ import annotations

import ast
import linecache
import re
import sys
import textwrap
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ollama_nb.errors import BadRequest
from ollama_nb.notebook import talk
from ollama_nb.notebook.line import Line
from ollama_nb.notebook.session import MagicsSession

CODE_SYSTEM = (
    "You write Python for a Jupyter notebook. Answer with one block of code between ```python and ```, nothing else."
)
EXPLAIN_SYSTEM = (
    "You help people who work in a Jupyter notebook. Say in a few sentences why the error came about, then show the "
    "corrected code."
)
MAX_QUOTED = 6_000
"""Characters of a traceback, and of a cell, that are sent. The middle of longer ones is left out."""

_FENCE = re.compile(r"^[ ]{0,3}(```+|~~~+)[ ]*([\w+-]*)[^\n]*\n(.*?)(?:^[ ]{0,3}\1[ ]*$|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("", "python", "python3", "py", "ipython")
_LIBRARIES = ("site-packages", "dist-packages", "<frozen")


def code(session: MagicsSession, line: Line, cell: str | None) -> Any:
    """Put the code of an answer into a new cell below, without running it.

    With a model and a prompt the model is asked first; without a prompt the last answer is used.
    """
    if (prompt := talk.text_of(line, cell)) and line.words:
        question = talk.parse_question(session, line)
        answer = talk.ask(session, line, prompt, question if question.system else question.with_system(CODE_SYSTEM))
    elif prompt or cell is not None or line.text is not None:
        raise BadRequest("no prompt: write it below `%%ollama code MODEL`")
    else:
        answer = session.variables.get("_ollama")
        if not isinstance(answer, str):
            raise BadRequest("there is no answer yet: `%ollama code MODEL what the code should do`")
    session.shell.set_next_input(code_of(answer), replace=False)
    return answer if prompt else None


def code_of(answer: str) -> str:
    """The Python code in an answer: its fenced blocks, or the whole answer if it is valid Python.

    Raises BadRequest if there is no code.
    """
    found = [
        textwrap.dedent(body).rstrip() for _, language, body in _FENCE.findall(answer) if language.lower() in _PYTHON
    ]
    if any(found):
        return "\n\n\n".join(filter(None, found))
    if answer.strip() and _is_python(answer):
        return answer.strip()
    raise BadRequest("the answer contains no code: rephrase the prompt, or ask a model that writes code")


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def explain(session: MagicsSession, line: Line, cell: str | None) -> Any:
    """Ask a model about the last exception. Text after the model's name is appended to the question."""
    error = getattr(sys, "last_value", None)
    if not isinstance(error, BaseException):
        raise BadRequest("no cell of this notebook has raised an exception yet")
    question = talk.parse_question(session, line)
    prompt = describe_error(error)
    if more := talk.text_of(line, cell):
        prompt = f"{prompt}\n\n{more}"
    return talk.ask(session, line, prompt, question if question.system else question.with_system(EXPLAIN_SYSTEM))


def describe_error(error: BaseException) -> str:
    """The exception as a prompt: the code of the cell, and the traceback from the cell on."""
    frames = traceback.extract_tb(from_cell(error.__traceback__))
    formatted = "".join(_formatted(error, frames)).rstrip()
    source = _cell_source(error, frames)
    parts = (
        [f"This cell of a notebook:\n\n```python\n{_shortened(source)}\n```\n\nraised this error:"] if source else []
    )
    return "\n\n".join([*(parts or ["A notebook raised this error:"]), f"```\n{_shortened(formatted)}\n```"])


def from_cell(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback from the first frame outside installed libraries; IPython's own frames precede it."""
    at = trace
    while at is not None and any(part in at.tb_frame.f_code.co_filename for part in _LIBRARIES):
        at = at.tb_next
    return at or trace


def _formatted(error: BaseException, frames: traceback.StackSummary) -> list[str]:
    last = traceback.format_exception_only(type(error), error)
    return ["Traceback (most recent call last):\n", *traceback.format_list(frames), *last] if frames else last


def _cell_source(error: BaseException, frames: Sequence[traceback.FrameSummary]) -> str:
    """The source of the cell, which IPython stores in `linecache`."""
    raised_in = frames[0].filename if frames else ""
    return "".join(linecache.getlines((isinstance(error, SyntaxError) and error.filename) or raised_in)).strip()


def _shortened(text: str) -> str:
    if len(text) <= MAX_QUOTED:
        return text
    return f"{text[: MAX_QUOTED // 3]}\n…\n{text[-2 * MAX_QUOTED // 3 :]}"
