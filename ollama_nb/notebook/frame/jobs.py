"""What is asked about each row: a free answer, one of some labels, named fields, a vector or a score.

What all rows share (system message, instructions, examples) comes first in every prompt, so the engine computes it once
and takes it from the prefix cache afterwards.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ollama_nb.client.answer import Answer, parse_answer
from ollama_nb.client.client import Client
from ollama_nb.client.shape import AnswerShape, describe_fields, parse_value, properties
from ollama_nb.errors import BadRequest, Cancelled, OllamaError
from ollama_nb.notebook.frame.ledger import Entry
from ollama_nb.notebook.frame.run import Job, Outcome, Task

Message = dict[str, Any]
Check = Callable[[Answer], object]
Vectors = npt.NDArray[np.float32]

MAX_RECORD = 1024
"""Tokens of an extracted record unless ``num_predict`` is given: a small model may never end a text field."""
CHUNK = 32
"""Texts per embedding or rerank request; the engine packs them into batches of its own."""


# texts


def generating(model: str, fields: Mapping[str, Any]) -> Job:
    """A job whose bodies are prompts for ``/api/generate``."""

    def answer(client: Client, task: Task) -> Answer:
        return parse_answer(model, client.generate(model, task.body, stream=False, **fields))

    return _text_job("generated", model, ["generate", fields], fields, answer)


def chatting(
    verb: str, model: str, fields: Mapping[str, Any], before: Sequence[Message] = (), check: Check = lambda answer: None
) -> Job:
    """A job whose bodies are messages, or the text of one message, for ``/api/chat``. ``before`` precedes them."""

    def answer(client: Client, task: Task) -> Answer:
        messages = [{"role": "user", "content": task.body}] if isinstance(task.body, str) else task.body
        return parse_answer(model, client.chat(model, [*before, *messages], stream=False, **fields))

    return _text_job(verb, model, ["chat", fields, [*before]], fields, answer, check)


def _text_job(
    verb: str,
    model: str,
    identity: Any,
    fields: Mapping[str, Any],
    answer: Callable[[Client, Task], Answer],
    check: Check = lambda answer: None,
) -> Job:
    loading = {name: fields[name] for name in ("options", "keep_alive") if name in fields}

    def send(client: Client, tasks: Sequence[Task]) -> list[Entry]:
        (task,) = tasks
        found = answer(client, task)
        if found.reason == "cancelled":
            raise Cancelled("the request was cancelled on the server")
        check(found)
        return [{"key": task.key, "value": str(found), "reason": found.reason}]

    def load(client: Client) -> object:
        return client.generate(model, stream=False, **loading)

    return Job(verb, model, identity, is_deterministic(fields.get("options", {})), load, send)


def is_deterministic(options: Mapping[str, Any]) -> bool:
    """Whether the same request has the same answer: greedy sampling, or a given seed."""
    return options.get("temperature") == 0 or options.get("top_k") == 1 or (options.get("seed") or -1) >= 0


def system_message(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def pairs(examples: Iterable[tuple[str, Any]], second: str) -> list[tuple[str, Any]]:
    """The examples as a list. Raises BadRequest for one that is not a pair of a text and its ``second``."""
    found = [*examples.items()] if isinstance(examples, Mapping) else [*examples]
    for example in found:
        if not isinstance(example, tuple | list) or len(example) != 2 or not isinstance(example[0], str):
            raise BadRequest(f"examples are pairs of a text and its {second}, not {example!r}")
    return [(text, answer) for text, answer in found]


def example_messages(examples: Iterable[tuple[str, str]]) -> list[Message]:
    """The examples as earlier turns of the conversation."""
    return [
        message
        for text, answer in examples
        for message in ({"role": "user", "content": text}, {"role": "assistant", "content": answer})
    ]


# labels


def described_labels(labels: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Label → its meaning (may be empty). Raises BadRequest for fewer than two labels or one that is not a text."""
    if isinstance(labels, str):
        raise BadRequest(f'labels are a list, such as ["{labels}", "other"]')
    found = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels, "")
    if len(found) < 2 or not all(isinstance(label, str) and label for label in found):
        raise BadRequest("give at least two labels, each a non-empty str")
    return found


def label_instructions(labels: Mapping[str, str]) -> str:
    """The system message of a classification."""
    if any(labels.values()):
        meant = "\n".join(f"- {label}: {meaning}" if meaning else f"- {label}" for label, meaning in labels.items())
        return f"Classify the text. Answer with one of these labels:\n{meant}"
    return f"Classify the text. Answer with one of these labels: {', '.join(labels)}."


def one_of(labels: Iterable[str]) -> Check:
    """A check that refuses other answers: a server that does not know ``choices`` does not enforce them."""
    known = frozenset(labels)

    def check(answer: Answer) -> None:
        if str(answer) not in known:
            raise OllamaError(f'"{answer[:40]}" is not one of the labels: this server does not enforce choices')

    return check


# fields


def field_instructions(schema: Mapping[str, Any]) -> str:
    """The system message of an extraction. Raises BadRequest unless ``schema`` is an object's."""
    properties(schema)
    return describe_fields(schema, "Extract these fields from the text. Answer with one JSON object:")


def matches(shape: AnswerShape[Any]) -> Check:
    """A check that refuses an answer that was cut off or does not have the wanted type."""
    return lambda answer: parse_value(shape, answer)


def to_record(found: Any) -> dict[str, Any]:
    """A typed value as JSON-compatible dict."""
    data = found.model_dump(mode="json", by_alias=True) if hasattr(found, "model_dump") else msgspec.to_builtins(found)
    return dict(data)


def example_json(found: Any, shape: AnswerShape[Any]) -> str:
    """The value of an example as the JSON that the model should write. Raises BadRequest if it does not fit."""
    text = json.dumps(to_record(found), ensure_ascii=False)
    try:
        shape.parse(text)
    except OllamaError as error:
        raise BadRequest(f"examples: {error.message}") from None
    return text


# vectors and scores


def embedding(model: str, fields: Mapping[str, Any], *, needs_all: bool = False) -> Job:
    """A job whose bodies are texts and whose values are their unit vectors (float32, little-endian, base64)."""

    def send(client: Client, tasks: Sequence[Task]) -> list[Entry]:
        reply = client.embed(model, [task.body for task in tasks], **fields)
        found = np.asarray(reply["embeddings"], "<f4")
        values = [base64.b64encode(vector.tobytes()).decode("ascii") for vector in found]
        return _entries(tasks, values, reply.get("truncated", {}).get("inputs", ()))

    return Job("embedded", model, ["embed", fields], True, _load_embedder(model, fields), send, CHUNK, needs_all)


def ranking(model: str, query: str, fields: Mapping[str, Any]) -> Job:
    """A job whose bodies are documents and whose values are their scores for ``query``, as decimal texts."""

    def send(client: Client, tasks: Sequence[Task]) -> list[Entry]:
        reply = client.rerank(model, query, [task.body for task in tasks], **fields)
        found = {entry["index"]: entry["relevance_score"] for entry in reply["results"]}
        values = [repr(found[at]) for at in range(len(tasks))]
        return _entries(tasks, values, reply.get("truncated", {}).get("documents", ()))

    identity = ["rerank", query, fields]
    return Job("ranked", model, identity, True, _load_embedder(model, fields), send, CHUNK, needs_all=True)


def _entries(tasks: Sequence[Task], values: Sequence[str], truncated: Sequence[int]) -> list[Entry]:
    """The entries of texts, marked if only the beginning of a text was used."""
    return [
        {"key": task.key, "value": value} | ({"truncated": True} if at in truncated else {})
        for at, (task, value) in enumerate(zip(tasks, values, strict=True))
    ]


def _load_embedder(model: str, fields: Mapping[str, Any]) -> Callable[[Client], object]:
    loading = {name: fields[name] for name in ("options", "keep_alive") if name in fields}
    return lambda client: client.embed(model, (), **loading)


def vectors(outcomes: Sequence[Outcome]) -> Vectors:
    """The vectors, shape (rows, dimensions); rows without one are NaN."""
    rows = [_vector(outcome) for outcome in outcomes]
    width = next((len(row) for row in rows if row is not None), 0)
    empty = np.full(width, np.nan, np.float32)
    return np.stack([empty if row is None else row for row in rows]) if rows else np.empty((0, 0), np.float32)


def scores(outcomes: Sequence[Outcome]) -> list[float]:
    """The scores; NaN for rows without one."""
    return [float(outcome["value"]) if isinstance(outcome, dict) else np.nan for outcome in outcomes]


def _vector(outcome: Outcome) -> Vectors | None:
    return np.frombuffer(base64.b64decode(outcome["value"]), "<f4") if isinstance(outcome, dict) else None
