"""``%ollama code``: the code of an answer becomes a cell below. It is never run by itself: that is for its reader."""

from __future__ import annotations

import ast
import re
import textwrap
from typing import Any

from ollama_nb.errors import BadRequest
from ollama_nb.notebook import talk
from ollama_nb.notebook.parse import Line
from ollama_nb.notebook.session import Session

SYSTEM = (
    "You write Python for a Jupyter notebook. Answer with one block of code between ```python and ```, nothing else."
)
_FENCE = re.compile(r"^[ ]{0,3}(```+|~~~+)[ ]*([\w+-]*)[^\n]*\n(.*?)(?:^[ ]{0,3}\1[ ]*$|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("", "python", "python3", "py", "ipython")


def code(session: Session, line: Line, cell: str | None) -> Any:
    """With a model and a prompt, ask for code first; without a prompt, take it from the last answer."""
    if (prompt := talk.text_of(line, cell)) and line.words:
        question = talk.read(session, line)
        answer = talk.ask(session, line, prompt, question if question.system else question.with_system(SYSTEM))
    elif prompt or cell is not None or line.text is not None:
        raise BadRequest("no prompt: write it below `%%ollama code MODEL`")
    else:
        answer = session.variables.get("_ollama")
        if not isinstance(answer, str):
            raise BadRequest("there is no answer yet: `%ollama code MODEL what the code should do`")
    session.shell.set_next_input(code_of(answer), replace=False)
    return answer if prompt else None


def code_of(answer: str) -> str:
    """The Python between fences, or all of an answer that is nothing but Python. Raises BadRequest where is none."""
    found = [
        textwrap.dedent(body).rstrip() for _, language, body in _FENCE.findall(answer) if language.lower() in _PYTHON
    ]
    if any(found):
        return "\n\n\n".join(filter(None, found))
    if answer.strip() and _is_python(answer):
        return answer.strip()
    raise BadRequest("there is no code in the answer: ask for it in other words, or ask a model that writes code")


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True
