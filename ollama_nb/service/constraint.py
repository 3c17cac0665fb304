"""What binds a reply: ``format``, or its siblings ``grammar``, ``regex`` and ``choices``, as the engine takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ollama_nb.api.chat import Format, Inference
from ollama_nb.api.encode import go_json, go_quote
from ollama_nb.errors import BadRequest

NAMES = ("format", "grammar", "regex", "choices")


def constraint_text(request: Inference) -> str:
    """Nothing, or what ``wire.Complete.format`` says. Raises BadRequest for more than one, or for no valid format."""
    format = format_text(request.format)
    given = (format, request.grammar, request.regex, request.choices is not None)
    names = [name for name, is_given in zip(NAMES, given, strict=True) if is_given]
    if len(names) > 1:
        raise BadRequest(f"give at most one of {', '.join(NAMES)}: this request has {' and '.join(names)}")
    if request.grammar:
        return f"grammar:{request.grammar}"
    if request.regex:
        return f"regex:{request.regex}"
    if request.choices is not None:
        return f"choices:{json.dumps(request.choices, ensure_ascii=False)}"
    return format


def format_text(format: Format) -> str:
    """``json``, a JSON Schema as text, or nothing. Raises BadRequest for anything else."""
    if format is None or format == "":
        return ""
    if format == "json":
        return "json"
    if isinstance(format, Mapping):
        return json.dumps(dict(format), ensure_ascii=False, separators=(",", ":"))
    raise BadRequest(f'invalid format: {go_quote(go_json(format))}; expected "json" or a valid JSON Schema object')
