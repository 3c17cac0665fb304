"""``{{name}}`` in a text becomes the value of that variable; every other character stays what it is.

Rule: inserted once. A value that itself holds ``{{…}}`` is data and is never looked at again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ollama_nb.errors import BadRequest

_MARK = re.compile(r"\{\{([^\W\d]\w*)\}\}")


def insert(text: str, variables: Mapping[str, Any]) -> str:
    """Raise BadRequest for a name that is not among ``variables``, or whose text cannot be sent as UTF-8.

    A value is written as ``str`` writes it. ``{x}``, ``$x``, JSON and ``{{ .Prompt }}`` are no marks.
    """
    return _MARK.sub(lambda mark: _value(mark[1], variables), text)


def names(text: str) -> tuple[str, ...]:
    """The names that ``text`` would insert, each once, in their order."""
    return tuple(dict.fromkeys(_MARK.findall(text)))


def _value(name: str, variables: Mapping[str, Any]) -> str:
    if name not in variables:
        near = difflib.get_close_matches(name, [str(known) for known in variables], n=1)
        hint = (
            f"did you mean `{{{{{near[0]}}}}}`?"
            if near
            else "set it in a cell above, or write a space inside the braces."
        )
        raise BadRequest(f"`{{{{{name}}}}}` is no variable here; {hint}")
    text = str(variables[name])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"`{{{{{name}}}}}` cannot be sent: its character {error.start} is half of a pair") from None
    return text
