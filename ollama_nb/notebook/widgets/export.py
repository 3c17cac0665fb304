"""A conversation to go on with elsewhere: as a notebook of magics with their answers, or as code.

Pictures are left out: a cell refers to files or variables, and here are none.
"""

from __future__ import annotations

import re
from typing import Any

from ollama_nb.notebook.render import reply_html, reply_plain
from ollama_nb.notebook.widgets.conversation import Conversation, Exchange

LOAD = "%load_ext ollama_nb"
_MARK = re.compile(r"\{\{(?=[^\W\d]\w*\}\})")


def code(conversation: Conversation, model: str) -> str:
    """Python that asks the same questions, in one cell."""
    settings = conversation.settings
    words = [repr(model), *([f"system={settings.system!r}"] if settings.system.strip() else [])]
    words += [f"{name}={value!r}" for name, value in settings.request().items() if name != "options"]
    words += [f"{name}={value!r}" for name, value in settings.options().items()]
    asked = [f"print(chat.ask({exchange.text!r}))" for exchange in _answered(conversation)]
    return "\n".join(["import ollama_nb", "", f"chat = ollama_nb.connect().chat_session({', '.join(words)})", *asked])


def notebook(conversation: Conversation) -> dict[str, Any]:
    """A notebook (nbformat 4.5) of magics and the answers that were given."""
    found: list[tuple[str, list[dict[str, Any]]]] = [(LOAD, [])]
    found += [(_magic(conversation, exchange), [_output(exchange)]) for exchange in _answered(conversation)]
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
            "language_info": {"name": "python"},
        },
        "cells": [
            {
                "id": f"chat-{number}",
                "cell_type": "code",
                "source": source,
                "outputs": outputs,
                "execution_count": None,
                "metadata": {},
            }
            for number, (source, outputs) in enumerate(found)
        ],
    }


def _answered(conversation: Conversation) -> list[Exchange]:
    return [exchange for exchange in conversation.exchanges if exchange.answered]


def _magic(conversation: Conversation, exchange: Exchange) -> str:
    first = _answered(conversation)[0] is exchange
    words = [f"%%ollama chat {exchange.reply.model}"]
    if first:
        words.append("--reset")
        if system := conversation.settings.system.strip():
            words.append(f"--system {_quoted(system)}")
    words += [f"--{name.replace('_', '-')} {value}" for name, value in conversation.settings.options().items()]
    return f"{' '.join(words)}\n{_literal(exchange.text)}"


def _literal(text: str) -> str:
    """A cell would take ``{{name}}`` for a variable of the notebook; with a blank it is text."""
    return _MARK.sub("{{ ", text)


def _quoted(text: str) -> str:
    """One line, in quotes: a magic's first line has no other place for it."""
    line = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{line}"'


def _output(exchange: Exchange) -> dict[str, Any]:
    data = {"text/html": reply_html(exchange.reply), "text/plain": reply_plain(exchange.reply)}
    return {"output_type": "display_data", "data": data, "metadata": {}}
