"""Why a child died, as users read it."""

from __future__ import annotations

import signal

import pytest

from ollama_nb.runner.link import explain

BUILD = "/tmp/pip-install-x/llama-cpp-python_1/vendor/llama.cpp/ggml/src/ggml-cpu/ops.cpp"


@pytest.mark.parametrize(
    ("code", "line", "told"),
    [
        (-signal.SIGABRT, f"{BUILD}:4132: GGML_ASSERT(eps >= 0.0f) failed",
         "died by SIGABRT: GGML_ASSERT(eps >= 0.0f) failed (ops.cpp:4132)"),
        (-signal.SIGABRT, "../src/llama.cpp:7: fatal error", "died by SIGABRT: fatal error (llama.cpp:7)"),
        (-signal.SIGABRT, "terminate called without an active exception",
         "died by SIGABRT: terminate called without an active exception"),
        (-signal.SIGABRT, "", "died by SIGABRT"),
        (-signal.SIGSEGV, "ratio 1/2: 3", "died by SIGSEGV: ratio 1/2: 3"),
        (1, "ValueError: no", "exited with status 1: ValueError: no"),
    ],
)  # fmt: skip
def test_what_users_read_names_no_path_of_the_build(code: int, line: str, told: str) -> None:
    assert explain(code, line) == told
