"""Render replies as HTML, as plain text and as a terminal log. Pure functions of a reply's state.

Security: Jupyter runs scripts in fresh output, and model output is untrusted. Raw HTML is therefore escaped, images
become links (an image address could leak data), and links lead to web and mail addresses only. Colours are JupyterLab's
CSS variables, so both themes work.
"""

from __future__ import annotations

import functools
from html import escape
from typing import TYPE_CHECKING, Any

from ollama_nb.client.chunks import INTERRUPTED
from ollama_nb.notebook.reply import BROKEN, ReplyState
from ollama_nb.verbs import present

if TYPE_CHECKING:
    from collections.abc import Callable

    from ollama_nb.client.chunks import Invocation

_LINKS = ("http://", "https://", "mailto:")
_GREY = "color: var(--jp-ui-font-color2, #757575)"
_SMALL = f"{_GREY}; font-size: 0.85em; margin-top: 0.4em"
_THINKING = (
    f"{_GREY}; border-left: 3px solid var(--jp-border-color2, #bdbdbd); padding-left: 0.8em; margin: 0.3em 0 0.8em"
)
_NOTE = (
    "border-left: 3px solid var(--jp-warn-color1, #f57c00); padding: 0.1em 0.8em; margin: 0.6em 0; "
    "color: var(--jp-content-font-color1, inherit); font-size: 0.9em"
)
_CALL = (
    "border-left: 3px solid var(--jp-brand-color1, #1976d2); padding: 0.1em 0.8em; margin: 0.6em 0; font-size: 0.9em"
)
_CALL_RESULT = "margin: 0.2em 0 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 12em; overflow: auto"
_CALL_FAILED = "color: var(--jp-error-color1, #d32f2f)"

_ENDINGS = {INTERRUPTED: "interrupted", BROKEN: "broken off by an error"}
MAX_CALL = 2_000  # characters of a tool call or result that are shown; the model receives all of them
REPEATING = (
    "The model appears to be repeating itself. Interrupt the cell to stop it; `--num-predict` limits an answer, and "
    "`--repeat-penalty 1.2` makes repetition less likely."
)


@functools.cache
def _markdown() -> Callable[[str], Any]:
    import mistune  # 30 ms that `%load_ext` need not wait for

    class SafeRenderer(mistune.HTMLRenderer):
        def link(self, text: str, url: str, title: str | None = None) -> str:
            if not url.lower().startswith(_LINKS):
                return text
            return f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{text}</a>'

        def image(self, text: str, url: str, title: str | None = None) -> str:
            return self.link(f"[image: {text}]" if text else "[image]", url)

    return mistune.create_markdown(renderer=SafeRenderer(escape=True), plugins=["table", "strikethrough"])


def markdown_html(text: str) -> str:
    """Convert Markdown to safe HTML."""
    return str(_markdown()(text))


def reply_html(reply: ReplyState) -> str:
    """Render the whole reply: thinking (collapsed once the answer begins), tool calls, answer, notes, statistics."""
    parts = []
    for step in reply.steps:
        parts += [*_written_html(step.thinking if reply.show_thinking else "", step.text), call_html(step.invocation)]
    busy = not reply.text and not reply.reason
    written = _written_html(reply.thinking if reply.show_thinking else "", reply.text, busy=busy)
    parts += [_index_html(0), *written] if reply.n > 1 else written
    for index, choice in sorted(reply.others.items()):
        thinking = choice.thinking if reply.show_thinking else ""
        parts += [_index_html(index), *_written_html(thinking, choice.text, busy=not (choice.text or reply.reason))]
    notes = [*reply.notes, REPEATING] if reply.is_repeating else reply.notes
    parts += [f'<div style="{_NOTE}">{note_html(note)}</div>' for note in notes]
    if line := footer(reply):
        parts.append(f'<div style="{_SMALL}">{escape(line)}</div>')
    if reply.verbose and (lines := figures(reply)):
        parts.append(f'<pre style="{_SMALL}">{escape(lines)}</pre>')
    return "".join(parts)


def _written_html(thinking: str, text: str, *, busy: bool = False) -> list[str]:
    """``busy``: the model is still thinking, so the thinking is expanded."""
    parts = []
    if thinking.strip():
        parts.append(
            f'<details{" open" if busy else ""}><summary style="{_GREY}">Thinking{"…" if busy else ""}</summary>'
            f'<div style="{_THINKING}">{markdown_html(thinking)}</div></details>'
        )
    return [*parts, markdown_html(text)] if text else parts


def _index_html(index: int) -> str:
    return f'<div style="{_SMALL}">[{index}]</div>'


def note_html(note: str) -> str:
    """Render a line of this package's own text; parts in backticks become code."""
    pieces = escape(note).split("`")
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))


def footer(reply: ReplyState) -> str:
    """``smollm2 · 87 tokens · 45.3 tok/s``; ``smollm2 …`` before the first token."""
    written = reply.text or reply.thinking or reply.steps
    if not reply.reason:
        return "" if written else f"{reply.model} …"
    if reply.reason == BROKEN and not written:
        return ""
    parts = [reply.model]
    if reply.stats is not None and reply.stats.output_tokens:
        parts.append(f"{reply.stats.output_tokens} tokens")
        if reply.stats.output_seconds > 0:
            parts.append(f"{reply.stats.output_tokens / reply.stats.output_seconds:.1f} tok/s")
    if reply.reason in _ENDINGS:
        parts.append(_ENDINGS[reply.reason])
    return " · ".join(parts)


def figures(reply: ReplyState) -> str:
    """Durations and rates, one per line, as ``ollama run --verbose`` prints them."""
    return present.stat_text(reply.stats).rstrip() if reply.stats else ""


def reply_plain(reply: ReplyState) -> str:
    """The text of the reply and its notes. Without statistics, so that saved notebooks can be compared."""
    written = [part for step in reply.steps for part in (step.text, call_plain(step.invocation))]
    return "\n\n".join(filter(None, [*written, _last_plain(reply)]))


def _last_plain(reply: ReplyState) -> str:
    notes = [f"[{note}]" for note in reply.notes]
    if reply.reason == INTERRUPTED or (reply.reason == BROKEN and reply.text):
        notes.append(f"[{reply.reason}]")
    text = reply.text if reply.n == 1 else _choices_plain(reply)
    return "\n\n".join([text, *notes]) if notes else text


def _choices_plain(reply: ReplyState) -> str:
    """The texts of all choices; those after the first one once the reply has ended, as they arrive together."""
    others = sorted(reply.others.items()) if reply.reason else []
    return "\n\n".join([f"[0] {reply.text}", *(f"[{index}] {choice.text}" for index, choice in others)])


def reply_log(reply: ReplyState) -> str:
    """The reply for a terminal. Each later log begins with the earlier one, so only the difference is printed."""
    parts = []
    for step in reply.steps:
        thinking = _thinking_log(step.thinking if reply.show_thinking else "", ended=True)
        gap = "\n\n" if step.text else ""
        after = "" if step.invocation.content is None else "\n\n"
        parts.append(f"{thinking}{step.text}{gap}{call_plain(step.invocation)}{after}")
    parts.append(_thinking_log(reply.thinking if reply.show_thinking else "", ended=bool(reply.text or reply.reason)))
    tail = f"\n\n{figures(reply)}" if reply.verbose and reply.stats else ""
    return "".join(parts) + _last_plain(reply) + tail + ("\n" if reply.reason else "")


def _thinking_log(thinking: str, *, ended: bool) -> str:
    if not thinking:
        return ""
    tail = ("" if thinking.endswith("\n") else "\n") + "...done thinking.\n\n" if ended else ""
    return f"Thinking...\n{thinking}{tail}"


def call_html(invocation: Invocation) -> str:
    """Render a tool call. Arguments and result are untrusted text, never markup."""
    result = "" if invocation.content is None else _shortened(invocation.content)
    style = f"{_CALL_RESULT}; {_CALL_FAILED}" if invocation.failed else _CALL_RESULT
    return (
        f'<div style="{_CALL}"><code>{escape(_shortened(str(invocation)))}</code>'
        f'<pre style="{style}">{escape(result) if result else "…" if invocation.content is None else ""}</pre></div>'
    )


def call_plain(invocation: Invocation) -> str:
    """The call as text, followed by ``→`` and its result once it has returned."""
    head = _shortened(str(invocation))
    return head if invocation.content is None else f"{head} → {_shortened(invocation.content)}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CALL else f"{text[:MAX_CALL]} … ({len(text):,} characters)"
