"""llama.cpp's own limit: greedy decode calls with nothing around them. Prints tokens per second.

usage: bare_decode.py GGUF THREADS TOKENS
"""

from __future__ import annotations

import sys
import time

from ollama_nb.engine.llama import Context, Model


def main() -> None:
    path, threads, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    model = Model(path)
    context = Context(model, cells=4096, n_seq=1, n_batch=512, n_ubatch=512, n_threads=threads)
    token = 1
    context.sequences[0], context.outputs[0] = 0, 1
    begun = 0.0
    for position in range(count + 1):
        context.tokens[0], context.positions[0] = token, position
        context.decode(1)
        token = int(context.logits()[0].argmax())
        begun = begun or time.perf_counter()  # the first step warms up
    print(count / (time.perf_counter() - begun))
    context.close()
    model.close()


if __name__ == "__main__":
    main()
