"""Questions about rows: free answers, one of some labels, or named fields. What all rows share stands first.

Rule: the instructions are the same text for every row and come before the row's own, so the engine reads them once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ollama_nb.client.answer import Answer, parse_answer
from ollama_nb.client.client import Client
from ollama_nb.client.shape import AnswerShape, describe_fields, parse_value, properties
from ollama_nb.errors import BadRequest, Cancelled, OllamaError
from ollama_nb.notebook.frame.crew import Task
from ollama_nb.notebook.frame.ledger import Entry
from ollama_nb.notebook.frame.run import Job

Message = dict[str, Any]
Check = Callable[[Answer], object]

LONGEST_RECORD = 1024
"""Tokens of an extracted record, unless said otherwise: a text field of a small model may never end."""


def generating(model: str, fields: Mapping[str, Any]) -> Job:
    """Bodies are prompts, answered by ``/api/generate``."""

    def answer(client: Client, task: Task) -> Answer:
        return parse_answer(model, client.generate(model, task.body, stream=False, **fields))

    return _job("generated", model, ["generate", fields], fields, answer)


def chatting(
    verb: str, model: str, fields: Mapping[str, Any], before: Sequence[Message] = (), check: Check = lambda answer: None
) -> Job:
    """Bodies are messages (or one message's text), answered by ``/api/chat`` after the messages ``before``."""

    def answer(client: Client, task: Task) -> Answer:
        said = [{"role": "user", "content": task.body}] if isinstance(task.body, str) else task.body
        return parse_answer(model, client.chat(model, [*before, *said], stream=False, **fields))

    return _job(verb, model, ["chat", fields, [*before]], fields, answer, check)


def _job(
    verb: str,
    model: str,
    about: Any,
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

    return Job(verb, model, about, repeatable(fields.get("options", {})), load, send)


def repeatable(options: Mapping[str, Any]) -> bool:
    """Whether the same question has the same answer: the likeliest words, or a seed that was given."""
    return options.get("temperature") == 0 or options.get("top_k") == 1 or (options.get("seed") or -1) >= 0


def system_message(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def pairs(examples: Iterable[tuple[str, Any]], of: str) -> list[tuple[str, Any]]:
    """Raises BadRequest for an example that is no pair of a text and its ``of``."""
    found = [*examples.items()] if isinstance(examples, Mapping) else [*examples]
    for example in found:
        if not isinstance(example, tuple | list) or len(example) != 2 or not isinstance(example[0], str):
            raise BadRequest(f"examples are pairs of a text and its {of}, not {example!r}")
    return [(asked, answered) for asked, answered in found]


def examples_messages(examples: Iterable[tuple[str, str]]) -> list[Message]:
    """Questions with their right answers, as if they had been asked and answered."""
    return [
        message
        for asked, answered in examples
        for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
    ]


# labels


def described(labels: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Label → what it means (may be empty). Raises BadRequest for fewer than two, or for one that is no text."""
    if isinstance(labels, str):
        raise BadRequest(f'labels are a list, such as ["{labels}", "other"]')
    found = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels, "")
    if len(found) < 2 or not all(isinstance(label, str) and label for label in found):
        raise BadRequest("give at least two labels, each a text")
    return found


def classifying(labels: Mapping[str, str]) -> str:
    """Instructions for one of ``labels``."""
    if any(labels.values()):
        meant = "\n".join(f"- {label}: {meaning}" if meaning else f"- {label}" for label, meaning in labels.items())
        return f"Classify the text. Answer with one of these labels:\n{meant}"
    return f"Classify the text. Answer with one of these labels: {', '.join(labels)}."


def one_of(labels: Iterable[str]) -> Check:
    """Refuses any other answer: only servers that know ``choices`` are bound by it."""
    known = frozenset(labels)

    def check(answer: Answer) -> None:
        if str(answer) not in known:
            raise OllamaError(f'"{answer[:40]}" is none of the labels: this server does not bind a model to choices')

    return check


# fields


def extracting(schema: Mapping[str, Any]) -> str:
    """Instructions for an object of ``schema``. Raises BadRequest for a schema of anything else."""
    properties(schema)
    return describe_fields(schema, "Extract these fields from the text. Answer with one JSON object:")


def checked(shape: AnswerShape[Any]) -> Check:
    """Refuses an answer that was cut off or is no value of the wanted type."""
    return lambda answer: parse_value(shape, answer)


def plain(found: Any) -> dict[str, Any]:
    """A typed value as JSON has it."""
    data = found.model_dump(mode="json", by_alias=True) if hasattr(found, "model_dump") else msgspec.to_builtins(found)
    return dict(data)


def as_json(found: Any, shape: AnswerShape[Any]) -> str:
    """An example's value as the model would write it. Raises BadRequest where it does not have the shape."""
    text = json.dumps(plain(found), ensure_ascii=False)
    try:
        shape.parse(text)
    except OllamaError as error:
        raise BadRequest(f"examples: {error.message}") from None
    return text
