"""Errors as a notebook shows them: the message with a hint, and tracebacks that end at the user's own code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any

from IPython.core.getipython import get_ipython

from ollama_nb.errors import (
    Busy,
    CompletionUnsupported,
    ConnectError,
    ContextOverflow,
    InvalidDuration,
    InvalidName,
    ModelNotFound,
    NotFound,
    OllamaError,
    ReplyCutOff,
    ThinkingUnsupported,
    ToolsUnsupported,
)

_HINTS: tuple[tuple[type[OllamaError], str], ...] = (
    (ReplyCutOff, "Run the cell again; it finds or starts a server."),
    (ConnectError, "`ollama serve` in a terminal starts a server; `OLLAMA_HOST` sets the address of another one."),
    (ModelNotFound, "`%ollama list` shows the installed models, `%ollama pull` downloads one."),
    (ThinkingUnsupported, "Leave `--think` out for this model."),
    (ToolsUnsupported, "Leave `--tools` out for this model; `%ollama show` lists a model's capabilities."),
    (CompletionUnsupported, "`%ollama embed` makes vectors of texts; `%ollama show` lists a model's capabilities."),
    (InvalidDuration, "`--keepalive` takes a time such as 10m or 1h; -1m keeps the model loaded indefinitely."),
    (InvalidName, "The first word is the model: `%ollama run MODEL PROMPT`; `%ollama list` shows the names."),
    (ContextOverflow, "Shorten the text, or widen the context with `--num-ctx`."),
    (Busy, "The server has too many requests; try again in a moment."),
)
"""The first class that an error is an instance of gives its hint."""

_PACKAGE = str(Path(__file__).parents[1])


def explain(error: OllamaError, asked: Iterable[str] = (), installed: Callable[[], Iterable[str]] = tuple) -> str:
    """The error's message, with a hint on the next line if there is one.

    ``asked`` are the models that the command names. If one of them does not exist, the most similar name among the
    ``installed`` models is suggested.
    """
    text = error.message or type(error).__name__
    models = [name.removesuffix(":latest") for name in asked]
    kind = type(error)
    if isinstance(error, NotFound) and models:
        kind = ModelNotFound  # servers without error codes report a missing model with status 404 alone
        known = set(installed())
        if similar := next(filter(None, (nearest(name, known) for name in models if name not in known)), ""):
            return text + similar
    hint = next((hint for parent, hint in _HINTS if issubclass(kind, parent)), "")
    return f"{text}\n{hint}" if hint else text


def nearest(word: str, known: Iterable[str]) -> str:
    """``, did you mean `list`?``, or an empty string if no known word is similar."""
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean `{near[0]}`?" if near else ""


def install() -> None:
    """Shorten the tracebacks of this package's errors to the frames before this package's first.

    ``%tb`` shows the short traceback too; ``%debug`` and ``sys.last_value`` have the complete one.
    """
    setattr(OllamaError, "_render_traceback_", _short_traceback)  # noqa: B010  # a hook that IPython calls


def _short_traceback(error: OllamaError) -> list[str]:
    shell: Any = get_ipython()
    trace = outside(error.__traceback__) or error.__traceback__
    alone = copy(error)  # without its causes, which are internal
    return list(shell.InteractiveTB.structured_traceback(type(error), alone, trace))


def outside(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback before the first frame of this package."""
    if trace is None or trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        return None
    return TracebackType(outside(trace.tb_next), trace.tb_frame, trace.tb_lasti, trace.tb_lineno)
