"""Calls of Python functions, as a reader sees them: what was called with which arguments, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ollama_nb.client.tools import Called

MOST = 2_000
"""Characters of a result that are shown; the model gets all of them."""

_CALL = (
    "border-left: 3px solid var(--jp-brand-color1, #1976d2); padding: 0.1em 0.8em; margin: 0.6em 0; font-size: 0.9em"
)
_RESULT = "margin: 0.2em 0 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 12em; overflow: auto"
_WRONG = "color: var(--jp-error-color1, #d32f2f)"


@dataclass(slots=True)
class Step:
    """What a model said before it called something, and the call."""

    thinking: str
    text: str
    called: Called


def call_html(called: Called) -> str:
    """Nothing of it is markup: arguments are the model's words, results whatever the function returned."""
    result = "" if called.content is None else _shortened(called.content)
    style = f"{_RESULT}; {_WRONG}" if called.failed else _RESULT
    return (
        f'<div style="{_CALL}"><code>{escape(_shortened(str(called)))}</code>'
        f'<pre style="{style}">{escape(result) if result else "…" if called.content is None else ""}</pre></div>'
    )


def call_plain(called: Called) -> str:
    """The call, and once it has ended ``→`` and its result: a text that only grows."""
    head = _shortened(str(called))
    return head if called.content is None else f"{head} → {_shortened(called.content)}"


def _shortened(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST]} … ({len(text):,} characters)"
