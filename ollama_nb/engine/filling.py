"""A planned batch and its drafts, written row by row into the arrays that llama.cpp reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ollama_nb.engine.llama import Context
from ollama_nb.engine.scheduler import Batch


def fill(context: Context, batch: Batch, drafts: Mapping[int, Sequence[int]]) -> int:
    """Write the rows, each draft (by request) behind the token that it follows; return their number."""
    tokens, positions, sequences, outputs = context.tokens, context.positions, context.sequences, context.outputs
    row = 0
    for seq, start, size, output in batch.chunks:
        if size == 1:
            tokens[row], positions[row], sequences[row], outputs[row] = seq.tokens[start], start, seq.slot, output
            row += 1
            if (draft := drafts.get(seq.id)) is not None:
                end = row + len(draft)
                tokens[row:end], positions[row:end] = draft, np.arange(start + 1, start + 1 + len(draft))
                sequences[row:end], outputs[row:end] = seq.slot, 1
                row = end
            continue
        end = row + size
        tokens[row:end] = seq.tokens[start : start + size]
        positions[row:end] = np.arange(start, start + size)
        sequences[row:end] = seq.slot
        outputs[row:end] = 0
        outputs[end - 1] = output
        row = end
    return row
