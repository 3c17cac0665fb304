"""``python -m ollama_nb.engine.llama.about``: print llama.cpp's build and the processor features that it uses.

A process of its own, because a library that was built for another processor ends the process that loads it.
"""

from __future__ import annotations

import llama_cpp


def main() -> None:
    print(f"llama-cpp-python {llama_cpp.__version__}; {llama_cpp.llama_print_system_info().decode().strip()}")


if __name__ == "__main__":
    main()
