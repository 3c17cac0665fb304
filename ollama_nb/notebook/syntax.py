"""A prompt may end with a question mark.

Without this, IPython takes ``%ollama run m Why is the sky blue?`` for a request to look up ``blue``.
``%ollama?`` alone still shows the help of the magic.
"""

from __future__ import annotations

import re
from tokenize import TokenInfo
from typing import Any

from IPython.core.inputtransformer2 import EscapedCommand, MagicAssign
from IPython.core.interactiveshell import InteractiveShell

_MAGIC = re.compile(r"%ollama\s+\S")


class _BeforeHelp:
    """Finds only our own lines, and there comes before IPython's ``…?``."""

    priority = 1

    def __init__(self, start: tuple[int, int]) -> None:
        super().__init__(start)  # type: ignore[call-arg]
        # IPython takes what starts leftmost; its help would start at the name of `name = %ollama …?`.
        self.column, self.start_col = start[1], -1

    @classmethod
    def find(cls, tokens_by_line: list[list[TokenInfo]]) -> Any:
        for tokens in tokens_by_line:
            found = super().find([tokens])  # type: ignore[misc]
            if found is not None and any(
                _MAGIC.match(token.line, found.column)
                for token in tokens
                if token.start == (found.start_line + 1, found.column)
            ):
                return found
        return None

    def transform(self, lines: list[str]) -> Any:
        self.start_col = self.column
        return super().transform(lines)  # type: ignore[misc]


class OllamaLine(_BeforeHelp, EscapedCommand):
    """``%ollama …``"""


class OllamaAssign(_BeforeHelp, MagicAssign):
    """``name = %ollama …``"""


def install(shell: InteractiveShell) -> None:
    """Teach the shell; doing it again changes nothing."""
    transformers = shell.input_transformer_manager.token_transformers
    known = {transformer.__name__ for transformer in transformers}
    transformers[:0] = [kind for kind in (OllamaLine, OllamaAssign) if kind.__name__ not in known]
