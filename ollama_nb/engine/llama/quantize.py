"""A GGUF's tensors in another type, by llama.cpp; also how the parts of a split file become one."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import llama_cpp.llama_cpp as L

from ollama_nb.engine.llama import native
from ollama_nb.errors import LoadError

Report = Callable[[int, int], None]
"""``report(tensors done, tensors in all)``."""

BUFFER = 1 << 30
"""Bytes of a tensor in memory at once; llama.cpp's own choice is eight times that."""

_UNSAID = "iostream error"
"""All that C++ says of a file that cannot be written."""

_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def quantize(
    source: str,
    target: str,
    file_type: int | None,
    report: Report,
    *,
    threads: int = 0,
    kept: Mapping[str, int] | None = None,
) -> None:
    """Write ``source`` to ``target`` as ``file_type``, a number of ``llama_ftype``; None copies every tensor as it is.

    A source that is the first part of a split file brings the others along. ``kept``: tensor types by regular
    expressions of names, where the type's own choice is not wanted. Raises LoadError with llama.cpp's own reason,
    OSError where the disk is the reason.
    """
    native.start()
    params = L.llama_model_quantize_default_params()
    params.nthread = threads
    params.only_copy = file_type is None
    params.ftype = 0 if file_type is None else file_type
    params.allow_requantize = True
    params.max_buf_size = BUFFER
    overrides = _overrides(kept or {})
    params.tt_overrides = ctypes.cast(overrides, type(params.tt_overrides))

    @L.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, nothing: object) -> None:
        native.keep_log(level, text, nothing)
        if step := _STEP.match(text.decode("utf-8", "replace")):
            report(int(step[1]) - 1, int(step[2]))

    native.forget_log()
    L.llama_log_set(listen, None)
    try:
        failed = L.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    finally:
        L.llama_log_set(native.keep_log, None)
    if failed:
        reason = native.complaint("llama.cpp gave no reason")
        if _UNSAID in reason:
            _write_a_little(target)
        raise LoadError(f"cannot write the model: {reason}")


def _write_a_little(path: str) -> None:
    """Raises the OSError that keeps files from being written there, if that still holds."""
    with Path(path).open("ab") as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())


def _overrides(kept: Mapping[str, int]) -> ctypes.Array[L.llama_model_tensor_override]:
    """Ended by an entry without a pattern."""
    made = (L.llama_model_tensor_override * (len(kept) + 1))()
    for at, (pattern, kind) in enumerate(kept.items()):
        made[at].pattern, made[at].type = pattern.encode(), kind
    return made
