"""A model's words as HTML that cannot do anything: no script, no fetch, no form.

Jupyter trusts fresh output, so whatever a model writes would run. Raw HTML is escaped, images become links that a
reader may click, and links go to web and mail addresses only. Colours are JupyterLab's variables, so both themes work.
"""

from __future__ import annotations

import functools
from html import escape
from typing import TYPE_CHECKING, Any

from ollama_nb.notebook.calls import call_html, call_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from ollama_nb.notebook.reply import Reply

_LINKS = ("http://", "https://", "mailto:")
_GREY = "color: var(--jp-ui-font-color2, #757575)"
_SMALL = f"{_GREY}; font-size: 0.85em; margin-top: 0.4em"
_THOUGHT = (
    f"{_GREY}; border-left: 3px solid var(--jp-border-color2, #bdbdbd); padding-left: 0.8em; margin: 0.3em 0 0.8em"
)
_NOTE = (
    "border-left: 3px solid var(--jp-warn-color1, #f57c00); padding: 0.1em 0.8em; margin: 0.6em 0; "
    "color: var(--jp-content-font-color1, inherit); font-size: 0.9em"
)

ROUND = (
    "The model says the same again and again. Interrupt the cell to stop it; `--num-predict` limits an answer, and "
    "`--repeat-penalty 1.2` makes repetition less likely."
)


def is_notebook(shell: Any) -> bool:
    """Whether the shell is a kernel with a front end that shows HTML, rather than a terminal."""
    return getattr(shell, "kernel", None) is not None


@functools.cache
def _markdown() -> Callable[[str], Any]:
    import mistune  # 30 ms, and `%load_ext` should not wait for it

    class Harmless(mistune.HTMLRenderer):
        def link(self, text: str, url: str, title: str | None = None) -> str:
            if not url.lower().startswith(_LINKS):
                return text
            return f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{text}</a>'

        def image(self, text: str, url: str, title: str | None = None) -> str:
            return self.link(f"[image: {text}]" if text else "[image]", url)

    return mistune.create_markdown(renderer=Harmless(escape=True), plugins=["table", "strikethrough"])


def markdown_html(text: str) -> str:
    """Markdown as harmless HTML."""
    return str(_markdown()(text))


def reply_html(reply: Reply) -> str:
    """The whole reply: thinking folded away once the answer begins, calls, the answer, notes, a line of figures."""
    parts = []
    for step in reply.steps:
        parts += [*_said_html(step.thinking if reply.show_thinking else "", step.text), call_html(step.called)]
    busy = not reply.text and not reply.reason
    parts += _said_html(reply.thinking if reply.show_thinking else "", reply.text, busy=busy)
    notes = [*reply.notes, ROUND] if reply.goes_round else reply.notes
    parts += [f'<div style="{_NOTE}">{note_html(note)}</div>' for note in notes]
    if line := footer(reply):
        parts.append(f'<div style="{_SMALL}">{escape(line)}</div>')
    if reply.verbose and (lines := figures(reply)):
        parts.append(f'<pre style="{_SMALL}">{escape(lines)}</pre>')
    return "".join(parts)


def _said_html(thinking: str, text: str, *, busy: bool = False) -> list[str]:
    """``busy``: the thinking still goes on, so it is open."""
    parts = []
    if thinking.strip():
        parts.append(
            f'<details{" open" if busy else ""}><summary style="{_GREY}">Thinking{"…" if busy else ""}</summary>'
            f'<div style="{_THOUGHT}">{markdown_html(thinking)}</div></details>'
        )
    return [*parts, markdown_html(text)] if text else parts


def note_html(note: str) -> str:
    """A line of our own: text with `code` in backticks."""
    pieces = escape(note).split("`")
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))


def footer(reply: Reply) -> str:
    """``smollm2 · 87 tokens · 45.3 tok/s``; while nothing has come yet, that the model is being waited for."""
    said = reply.text or reply.thinking or reply.steps
    if not reply.reason:
        return "" if said else f"{reply.model} …"
    if reply.reason == "broken" and not said:
        return ""
    parts = [reply.model]
    if reply.stats is not None and reply.stats.output_tokens:
        parts.append(f"{reply.stats.output_tokens} tokens")
        if reply.stats.output_seconds > 0:
            parts.append(f"{reply.stats.output_tokens / reply.stats.output_seconds:.1f} tok/s")
    if reply.reason in ("interrupted", "broken"):
        parts.append({"interrupted": "interrupted", "broken": "broken off by an error"}[reply.reason])
    return " · ".join(parts)


def figures(reply: Reply) -> str:
    """Times and speeds under the command line's names, a line each; those that are zero are left out."""
    if (stats := reply.stats) is None:
        return ""
    computed = stats.prompt_tokens - stats.cached_tokens
    rows = [
        ("total duration", stats.total_seconds, "s"),
        ("load duration", stats.load_seconds, "s"),
        ("prompt eval count", stats.prompt_tokens, "token(s)"),
        ("prompt eval duration", stats.prompt_seconds, "s"),
        ("prompt eval rate", computed / stats.prompt_seconds if stats.prompt_seconds else 0, "tokens/s"),
        ("eval count", stats.output_tokens, "token(s)"),
        ("eval duration", stats.output_seconds, "s"),
        ("eval rate", stats.output_tokens / stats.output_seconds if stats.output_seconds else 0, "tokens/s"),
    ]
    lines = [
        f"{name + ':':22}{value if isinstance(value, int) else f'{value:.3f}'} {unit}"
        for name, value, unit in rows
        if value
    ]
    if stats.drafted_tokens:
        rate = f"{stats.accepted_tokens / stats.drafted_tokens:.0%}"
        of = f"({stats.accepted_tokens} of {stats.drafted_tokens} tokens)"
        lines.append(f"{'draft accept rate:':22}{rate} {of}")
    return "\n".join(lines)


def reply_plain(reply: Reply) -> str:
    """The answer's text, as it came, with what must not be missed beneath it. No figures: they differ each time."""
    said = [part for step in reply.steps for part in (step.text, call_plain(step.called))]
    return "\n\n".join(filter(None, [*said, _last_plain(reply)]))


def _last_plain(reply: Reply) -> str:
    notes = [f"[{note}]" for note in reply.notes]
    if reply.reason == "interrupted" or (reply.reason == "broken" and reply.text):
        notes.append(f"[{reply.reason}]")
    return "\n\n".join([reply.text, *notes]) if notes else reply.text


def reply_log(reply: Reply) -> str:
    """For a terminal: a text that only ever grows at its end."""
    parts = []
    for step in reply.steps:
        thought = _thought_log(step.thinking if reply.show_thinking else "", ended=True)
        gap = "\n\n" if step.text else ""
        after = "" if step.called.content is None else "\n\n"
        parts.append(f"{thought}{step.text}{gap}{call_plain(step.called)}{after}")
    parts.append(_thought_log(reply.thinking if reply.show_thinking else "", ended=bool(reply.text or reply.reason)))
    tail = f"\n\n{figures(reply)}" if reply.verbose and reply.stats else ""
    return "".join(parts) + _last_plain(reply) + tail + ("\n" if reply.reason else "")


def _thought_log(thinking: str, *, ended: bool) -> str:
    if not thinking:
        return ""
    tail = ("" if thinking.endswith("\n") else "\n") + "...done thinking.\n\n" if ended else ""
    return f"Thinking...\n{thinking}{tail}"
