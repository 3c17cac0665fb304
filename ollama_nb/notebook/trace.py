"""Tracebacks of our errors end where this package begins: what a notebook's reader can change stands in the cell.

``%tb`` shows the same; ``%debug`` and ``sys.last_value`` have all of it.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any

from IPython.core.getipython import get_ipython

from ollama_nb.errors import OllamaError

_OURS = str(Path(__file__).parents[1])


def install() -> None:
    """IPython asks an exception's class for its words, if the class has any."""
    setattr(OllamaError, "_render_traceback_", _lines)  # noqa: B010


def _lines(error: OllamaError) -> list[str]:
    shell: Any = get_ipython()
    trace = outside(error.__traceback__) or error.__traceback__
    alone = copy(error)  # without its causes, which are nobody's business but ours
    return list(shell.InteractiveTB.structured_traceback(type(error), alone, trace))


def outside(trace: TracebackType | None) -> TracebackType | None:
    """A traceback up to the first frame that is ours."""
    if trace is None or trace.tb_frame.f_code.co_filename.startswith(_OURS):
        return None
    return TracebackType(outside(trace.tb_next), trace.tb_frame, trace.tb_lasti, trace.tb_lineno)
