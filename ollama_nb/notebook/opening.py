"""``run`` without a prompt, ``manager`` and ``activity``: commands that open a widget."""

from __future__ import annotations

from typing import Any

from ollama_nb.errors import BadRequest
from ollama_nb.notebook import inputs, widgets
from ollama_nb.notebook.display import is_notebook
from ollama_nb.notebook.parse import Line
from ollama_nb.notebook.session import Session

_SETTINGS = ("temperature", "num_ctx")
_THINK = {"": "on", "true": "on", "false": "off", "max": "high"}


def open_chat(session: Session, line: Line) -> Any:
    """The chat widget, with the line's settings."""
    model = line.words[0]
    if not is_notebook(session.shell):
        raise BadRequest(f"no prompt: `%ollama run {model} your question` (the chat widget needs a notebook)")
    options = inputs.model_options(line, {})
    if other := [name for name in options if name not in _SETTINGS]:
        raise BadRequest(f"the chat widget has no setting for `--{other[0].replace('_', '-')}`")
    defaults = session.defaults
    think = line.get("--think")
    think = defaults.think or "auto" if think is None else think
    settings = {name: value for name, value in {**defaults.options, **options}.items() if name in _SETTINGS}
    form = inputs.form(line.get("--format") or "", session.variables)[0] if line.has("--format") else ""
    return widgets.Chat(
        model,
        system=line.get("--system") or defaults.system,
        think=_THINK.get(think, think),
        format=form,
        find_server=session.connect,
        **settings,
    )


def manager(session: Session, line: Line, cell: str | None) -> Any:
    """Models on the disk and in memory."""
    _check_notebook(session, "manager")
    return widgets.Models(session.connect)


def activity(session: Session, line: Line, cell: str | None) -> Any:
    """What the server works on just now."""
    _check_notebook(session, "activity")
    return widgets.Activity(session.connect)


def _check_notebook(session: Session, name: str) -> None:
    if not is_notebook(session.shell):
        raise BadRequest(f"`{name}` is a widget and needs a notebook; `%ollama list` and `%ollama ps` work anywhere")
