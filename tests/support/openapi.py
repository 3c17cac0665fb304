"""The API description for tests: its operations, and validators of requests, replies and streams.

Objects are closed in these validators: a field of a reply that is not described is an error.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from ollama_nb.server import description

DOCUMENT = description.load()
JSON = "application/json"
_ERRORS = [schema for name, schema in DOCUMENT["components"]["schemas"].items() if name.endswith("Error")]
Property = tuple[int, str]
"""The identity of a schema and the name of one of its properties."""

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    value: Mapping[str, Any]

    @property
    def id(self) -> str:
        found: str = self.value["operationId"]
        return found

    @property
    def pattern(self) -> str:
        """The path with ``{}`` for each parameter."""
        return re.sub(r"\{\w+\}", "{}", self.path)

    @property
    def body(self) -> Mapping[str, Any]:
        """Content type → media type of the request body; empty without a body."""
        found: Mapping[str, Any] = self.value.get("requestBody", {}).get("content", {})
        return found

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of a JSON request body."""
        schema = description.resolve(DOCUMENT, self.body.get(JSON, {}).get("schema", {}))
        found: Mapping[str, Any] = schema.get("properties", {})
        return found

    @property
    def examples(self) -> list[Any]:
        """The bodies of the examples."""
        return [example["value"] for example in self.body.get(JSON, {}).get("examples", {}).values()]

    def reply_fields(self) -> dict[str, set[Property]]:
        """Every field of the successful replies and of their streams, by its path; ``[]`` is an item of a list.

        The values are the properties of schemas that can be at this path.
        """
        found: dict[str, set[Property]] = {}
        for status, response in self.value["responses"].items():
            if status.startswith("2"):
                for media in description.resolve(DOCUMENT, response).get("content", {}).values():
                    _collect(media.get("schema", {}), "", found)
        return found

    def reply_schema(self, status: int, content_type: str) -> Any:
        """The schema of a reply; raises AssertionError if the status or the content type is not described."""
        responses = self.value["responses"]
        assert str(status) in responses, f"{self.id}: status {status} is not described"
        content = description.resolve(DOCUMENT, responses[str(status)]).get("content", {})
        kind = content_type.partition(";")[0]
        assert kind in content, f"{self.id}: {status} with {kind or 'no body'} is not described"
        return content[kind].get("schema", {})


def _collect(schema: Any, path: str, found: dict[str, set[Property]], above: tuple[int, ...] = ()) -> None:
    """Add the fields below ``path``; a schema that is within itself is entered once."""
    schema = description.resolve(DOCUMENT, schema)
    if any(schema is error for error in _ERRORS) or id(schema) in above:
        return
    above = (*above, id(schema))
    for word in ("anyOf", "oneOf"):
        for option in schema.get(word, ()):
            _collect(option, path, found, above)
    if "items" in schema:
        _collect(schema["items"], f"{path}[]", found, above)
    for name, inner in schema.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        found.setdefault(below, set()).add((id(schema), name))
        _collect(inner, below, found, above)


OPERATIONS = [Operation(*found) for found in description.operations(DOCUMENT)]
BY_ROUTE = {f"{operation.method} {operation.path}": operation for operation in OPERATIONS}
BY_ID = {operation.id: operation for operation in OPERATIONS}


def anonymous(pattern: str) -> str:
    """The pattern of one of the server's paths with ``{}`` for each parameter."""
    return re.sub(r"\((?:\[[^\]]*\]|[^)])*\)", "{}", pattern)


def code_of(error: Any) -> str:
    """The code in an error object of any dialect."""
    found: str = error["code"] if "code" in error else error["error"]["code"]
    return found


def _closed(value: Any) -> Any:
    """The same schema with ``additionalProperties: false`` in every object that lists its fields."""
    if isinstance(value, Mapping):
        found = {key: _closed(inner) for key, inner in value.items()}
        if "properties" in value and value.get("type") == "object":
            found.setdefault("additionalProperties", False)
        return found
    return [_closed(item) for item in value] if isinstance(value, list) else value


@functools.cache
def _components() -> Any:
    return _closed(DOCUMENT["components"])


def validator(schema: Any) -> Draft202012Validator:
    """A validator that knows the document's components."""
    whole = {"components": _components(), **_closed(schema)}
    return Draft202012Validator(whole, format_checker=FormatChecker())


def parts(content_type: str, body: bytes) -> list[Any]:
    """The JSON values of a reply: one, or those of the lines or events of a stream."""
    kind = content_type.partition(";")[0]
    if kind == NDJSON:
        return [json.loads(line) for line in body.splitlines()]
    if kind == SSE:
        return [json.loads(data) for _, data in events(body) if data != "[DONE]"]
    return [json.loads(body)] if kind == JSON else [body.decode()]


def events(body: bytes) -> Iterator[tuple[str, str]]:
    """Name and data of each server-sent event; comments are skipped."""
    for block in body.decode().split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if line and not line.startswith(":")]
        found = {name: value for name, _, value in lines}
        if found:
            yield found.get("event", ""), found["data"]


def check_reply(operation: Operation, status: int, content_type: str, body: bytes) -> list[Any]:
    """Validate a reply, each part of a stream by itself; return the parts."""
    if not body:
        response = description.resolve(DOCUMENT, operation.value["responses"].get(str(status)))
        assert response is not None, f"{operation.id}: status {status} is not described"
        return []
    check = validator(operation.reply_schema(status, content_type))
    found = parts(content_type, body)
    for part in found:
        problems = sorted(check.iter_errors(part), key=lambda problem: len(problem.path))
        assert not problems, f"{operation.id}: {_best(problems)} in {json.dumps(part, ensure_ascii=False)[:2000]}"
    return found


def _best(problems: list[Any]) -> str:
    inner = [deeper for problem in problems for deeper in (problem.context or [problem])]
    return "; ".join(f"{'/'.join(map(str, problem.absolute_path))}: {problem.message[:300]}" for problem in inner[:4])
