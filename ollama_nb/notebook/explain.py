"""Errors in words: what was wrong, and one hint on what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

from ollama_nb.errors import Busy, ConnectError, OllamaError

_MODEL = re.compile(r"""model ['"]([^'"]+)['"]""")


def explain(error: OllamaError, models: Callable[[], Iterable[str]] = tuple) -> str:
    """The error's own text, with a hint where there is a good one. ``models``: names of those that are here."""
    text = error.message or type(error).__name__
    if error.status == 404 and (missing := _MODEL.search(text)):
        text += nearest(missing[1].removesuffix(":latest"), models())
    hint = "" if "`" in text else _hint(error, text.lower())
    return f"{text}\n{hint}" if hint else text


def _hint(error: OllamaError, text: str) -> str:
    if isinstance(error, ConnectError) and "was lost" in text:
        return "Run the cell again: a server is found, or started."
    if isinstance(error, ConnectError):
        return "`ollama serve` in a terminal starts a server; `OLLAMA_HOST` says where one is."
    if error.status == 404 and "model" in text:
        return "`%ollama list` shows the models that are here, `%ollama pull` fetches one."
    if error.status == 401:
        return "The server wants a key: set `OLLAMA_API_KEY`."
    if "does not support thinking" in text:
        return "Leave `--think` out for this model."
    if "does not support tools" in text:
        return "Leave `--tools` out for this model; `%ollama show` says what a model can do."
    if "invalid duration" in text:
        return "`--keepalive` takes a time such as 10m or 1h; -1m is for ever."
    if "invalid model name" in text:
        return "The first word names the model: `%ollama run MODEL PROMPT`; `%ollama list` shows the names."
    if "does not support generate" in text or "does not support chat" in text:
        return "`%ollama embed` makes vectors of texts; `%ollama show` says what a model can do."
    if "context" in text and error.status == 400:
        return "Shorten the text, or widen the context with `--num-ctx`."
    if isinstance(error, Busy) or error.status == 503:
        return "The server has too much to do; try again in a moment."
    return ""


def nearest(word: str, known: Iterable[str]) -> str:
    """``, did you mean `list`?`` or nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean `{near[0]}`?" if near else ""
