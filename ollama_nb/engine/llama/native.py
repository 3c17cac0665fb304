"""llama.cpp as a library: initialisation, log and shared types."""

from __future__ import annotations

import functools
import re
from collections import deque

import llama_cpp
import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from ollama_nb.errors import LoadError

PINNED = "0.3.36"  # the release of llama-cpp-python whose native structures this package uses
BUILD = f"llama-cpp-python {llama_cpp.__version__}"
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""KV cache type -> number of the ggml type."""

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_log: deque[str] = deque(maxlen=400)


@L.llama_log_callback  # type: ignore[untyped-decorator]
def keep_log(level: int, text: bytes, _: object) -> None:
    """Keep the last lines instead of writing to stderr, so that a failed load can be explained."""
    _log.append(f"{level}{text.decode('utf-8', 'replace')}")


@functools.cache
def start() -> None:
    """Initialise llama.cpp, once per process. Raises LoadError if llama-cpp-python is not the pinned release."""
    if llama_cpp.__version__ != PINNED:
        raise LoadError(
            f"llama-cpp-python {llama_cpp.__version__} is installed, this release needs exactly {PINNED}: "
            f"run `pip install llama-cpp-python=={PINNED}`"
        )
    L.llama_log_set(keep_log, None)
    L.llama_backend_init()


def clear_log() -> None:
    """Clear the log, so that its next error belongs to the next call."""
    _log.clear()


def log_text() -> str:
    """Return the last lines of the log, each after its level."""
    return "".join(_log)


def ran_out_of_memory() -> bool:
    """Whether the log has an allocation that failed: llama.cpp reports this in no other way."""
    return re.search(r"(failed|unable) to allocate|bad_alloc|out of memory", log_text()) is not None


def last_error(default: str) -> str:
    """Return the last error in the log without names of native functions, or else ``default``."""
    lines = [line[1:].strip() for line in _log if line[0] in "34"]
    for line in reversed(lines):
        text = re.sub(r"^(error loading model: |failed to quantize: |\w+: )+", "", line)
        if text and not text.startswith("failed to load model"):
            return text
    return default
