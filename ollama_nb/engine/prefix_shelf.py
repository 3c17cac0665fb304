"""The kept prefixes of a model under one set of adapters: what is known of them, and their files. For any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ollama_nb.engine.llama import Bytes
from ollama_nb.engine.prefix import Prefix, superseded
from ollama_nb.engine.prefix_files import PrefixFiles


class Shelf:
    """``cuttable`` False: a longer prefix does not serve for a shorter one."""

    def __init__(self, files: PrefixFiles, *, cuttable: bool) -> None:
        self._files, self._cuttable = files, cuttable
        self._known = files.scan()
        self._lock = threading.Lock()

    @property
    def known(self) -> tuple[Prefix, ...]:
        with self._lock:
            return tuple(self._known)

    def read(self, prefix: Prefix) -> Bytes | None:
        """The state of a prefix; None: its file is not as it was written, and gone."""
        return self._files.read(prefix)

    def write(self, tokens: list[int], state: Bytes, pace: float, give_way: Callable[[], object]) -> bool:
        """Keep a state; those that it continues go. False: it could not be written."""
        prefix = self._files.write(tokens, state, pace, give_way)
        if prefix is None:
            return False
        with self._lock:
            shorter = superseded(self._known, tokens, cuttable=self._cuttable)
            gone = {prefix.name, *(old.name for old in shorter)}
            self._known = [old for old in self._known if old.name not in gone] + [prefix]
        for old in shorter:
            self._files.remove(old.name)
        return True

    def forget(self, prefix: Prefix) -> None:
        """It cannot be used."""
        with self._lock:
            self._known = [other for other in self._known if other.name != prefix.name]

    def remove(self, prefix: Prefix) -> None:
        """It cannot be used, nor by anybody else."""
        self.forget(prefix)
        self._files.remove(prefix.name)
