"""What is to be read, written row by row into the arrays that llama.cpp reads."""

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
        row = put(context, row, seq.slot, start, seq.tokens[start : start + size], output=output)
    return row


def put(context: Context, row: int, slot: int, start: int, tokens: Sequence[int], *, output: bool) -> int:
    """Write tokens of one slot from position ``start`` on, of which the last may give logits; return the next row."""
    end = row + len(tokens)
    context.tokens[row:end], context.positions[row:end] = tokens, np.arange(start, start + len(tokens))
    context.sequences[row:end], context.outputs[row:end] = slot, 0
    context.outputs[end - 1] = output
    return end
