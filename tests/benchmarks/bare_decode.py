"""The upper limit: greedy llama.cpp decode calls with nothing around them. Prints tokens per second.

usage: bare_decode.py GGUF THREADS TOKENS [ROWS]     ROWS sequences, one token each per call
"""

from __future__ import annotations

import sys
import time

from ollama_nb.engine.llama import Context, LlamaModel


def main() -> None:
    path, threads, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rows = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    model = LlamaModel(path)
    context = Context(model, cells=4096, n_seq=rows, n_batch=512, n_ubatch=512, n_threads=threads)
    context.sequences[:rows], context.outputs[:rows] = range(rows), 1
    context.tokens[:rows] = range(300, 300 + rows)
    begun = 0.0
    for position in range(count + 1):
        context.positions[:rows] = position
        context.decode(rows)
        context.tokens[:rows] = context.logits()[:rows].argmax(axis=1)
        begun = begun or time.perf_counter()  # the first step is a warm-up
    print(rows * count / (time.perf_counter() - begun))
    context.close()
    model.close()


if __name__ == "__main__":
    main()
