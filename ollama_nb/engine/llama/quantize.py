"""Quantize a GGUF file with llama.cpp; copying it also joins the parts of a split file."""

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
"""Called with the number of finished tensors and the number of all tensors."""

BUFFER = 1 << 30  # bytes of a tensor in memory at once; llama.cpp's default is eight times as much

_STREAM_ERROR = "iostream error"  # how C++ reports any file that cannot be written

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
    """Write ``source`` to ``target`` as ``file_type``, a number of ``llama_ftype``; None copies every tensor unchanged.

    If the source is the first part of a split file, the other parts are included. ``kept`` overrides the type of
    tensors whose names match a regular expression. Raises LoadError with the reason from llama.cpp, OSError if the disk
    is the reason.
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
    def on_log(level: int, text: bytes, user_data: object) -> None:
        native.keep_log(level, text, user_data)
        if step := _STEP.match(text.decode("utf-8", "replace")):
            report(int(step[1]) - 1, int(step[2]))

    native.clear_log()
    L.llama_log_set(on_log, None)
    try:
        failed = L.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    finally:
        L.llama_log_set(native.keep_log, None)
    if failed:
        reason = native.last_error("llama.cpp reported no reason")
        if _STREAM_ERROR in reason:
            _probe_disk(target)
        raise LoadError(f"cannot write the model: {reason}")


def _probe_disk(path: str) -> None:
    """Write some bytes, to raise the OSError of the disk if it persists."""
    with Path(path).open("ab") as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())


def _overrides(kept: Mapping[str, int]) -> ctypes.Array[L.llama_model_tensor_override]:
    """Return the native list, which ends with an entry without a pattern."""
    made = (L.llama_model_tensor_override * (len(kept) + 1))()
    for at, (pattern, kind) in enumerate(kept.items()):
        made[at].pattern, made[at].type = pattern.encode(), kind
    return made
