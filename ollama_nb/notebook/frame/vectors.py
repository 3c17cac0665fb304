"""Rows as vectors: embed them, find those nearest to a query, rank them by how well they answer it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ollama_nb.client.client import Client
from ollama_nb.notebook.frame.crew import Task
from ollama_nb.notebook.frame.ledger import Entry
from ollama_nb.notebook.frame.run import Job, Outcome

CHUNK = 32
"""Texts of one request: the model packs them into batches of its own."""

Vectors = npt.NDArray[np.float32]


def embedding(model: str, fields: Mapping[str, Any], *, whole: bool = False) -> Job:
    """Bodies are texts; values are their unit vectors: float32, little-endian, in base64."""

    def send(client: Client, tasks: Sequence[Task]) -> list[Entry]:
        reply = client.embed(model, [task.body for task in tasks], **fields)
        vectors = np.asarray(reply["embeddings"], "<f4")
        return [
            {"key": task.key, "value": base64.b64encode(vector.tobytes()).decode("ascii")}
            for task, vector in zip(tasks, vectors, strict=True)
        ]

    return Job("embedded", model, ["embed", fields], True, _loading(model, fields), send, CHUNK, whole)


def matrix(outcomes: Sequence[Outcome]) -> Vectors:
    """Shape (rows, dimensions); rows without a vector are NaN."""
    rows = [_vector(outcome) for outcome in outcomes]
    width = next((len(row) for row in rows if row is not None), 0)
    empty = np.full(width, np.nan, np.float32)
    return np.stack([empty if row is None else row for row in rows]) if rows else np.empty((0, 0), np.float32)


def ranking(model: str, query: str, fields: Mapping[str, Any]) -> Job:
    """Bodies are documents; values are their scores for ``query``, as texts."""

    def send(client: Client, tasks: Sequence[Task]) -> list[Entry]:
        reply = client.rerank(model, query, [task.body for task in tasks], **fields)
        found = {entry["index"]: entry["relevance_score"] for entry in reply["results"]}
        return [{"key": task.key, "value": repr(found[at])} for at, task in enumerate(tasks)]

    return Job("ranked", model, ["rerank", query, fields], True, _loading(model, fields), send, CHUNK, whole=True)


def _loading(model: str, fields: Mapping[str, Any]) -> Callable[[Client], object]:
    wanted = {name: fields[name] for name in ("options", "keep_alive") if name in fields}
    return lambda client: client.embed(model, (), **wanted)


def scores(outcomes: Sequence[Outcome]) -> list[float]:
    """NaN for rows without a score."""
    return [float(outcome["value"]) if isinstance(outcome, dict) else np.nan for outcome in outcomes]


def _vector(outcome: Outcome) -> Vectors | None:
    return np.frombuffer(base64.b64decode(outcome["value"]), "<f4") if isinstance(outcome, dict) else None
