"""Tokens that would write a character of JSON text as ``\\u0061``: a name written so passes for another one.

The constraint compares names as they are written, a parser reads them first: ``{"\\u0061": 1}`` would get past what a
schema says of the property ``a``. Text needs such escapes only for some control characters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class UnicodeEscapes:
    """For each token, after text that ends in an open backslash (row 1) or not (row 0)."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.writes: npt.NDArray[np.bool_] = np.zeros((2, len(pieces)), np.bool_)
        self.opens: npt.NDArray[np.bool_] = np.zeros((2, len(pieces)), np.bool_)
        for token, piece in enumerate(pieces):
            if b"\\" in piece or piece.startswith(b"u"):
                for opened in (0, 1):
                    self.writes[opened, token], self.opens[opened, token] = _scan(piece, bool(opened))
            elif not piece:
                self.opens[1, token] = True


def _scan(piece: bytes, opened: bool) -> tuple[bool, bool]:
    """Does it write such an escape, and does it end in an open backslash?"""
    writes = False
    for byte in piece:
        writes |= opened and byte == ord("u")
        opened = not opened and byte == ord("\\")
    return writes, opened
