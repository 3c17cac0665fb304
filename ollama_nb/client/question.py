"""What a question may say beside its text, checked before it is sent: options, what binds the answer, overflow."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

from ollama_nb.api.messages import Think
from ollama_nb.api.options import DEPRECATED, KINDS, Options
from ollama_nb.errors import BadRequest, ContextOverflow, OllamaError

Overflow = Literal["error", "truncate"]
Image = str | bytes | Path
"""A path, or an image's bytes."""

STRICT = {"X-Ollama-Strict": "true"}
"""A server that understands it refuses what it would else ignore."""

_BINDING = ("format", "choices", "regex", "grammar")
_TOO_LONG = ("longer than the context length", "exceeds the context length", "exceeds the available context size")


class Extras(TypedDict, total=False):
    """Fields of a question, as Ollama names them; every other keyword is a model option such as ``temperature``.

    At most one of ``format`` (``"json"`` or a JSON Schema), ``choices`` (the answer is one of them), ``regex`` and
    ``grammar`` (GBNF). ``keep_alive``: how long the model stays loaded, such as ``"10m"``.
    """

    think: Think
    format: str | Mapping[str, Any]
    choices: list[str]
    regex: str
    grammar: str
    keep_alive: str | float
    options: Mapping[str, Any]


KEYWORDS = frozenset({*Extras.__annotations__, *KINDS, "logit_bias", *DEPRECATED})
"""All that a question may say."""


def text(given: object, name: str) -> None:
    """Raises BadRequest for what is no text, or an empty one."""
    if not isinstance(given, str):
        raise BadRequest(f"the {name} must be a text, not {given!r} of type {type(given).__name__}")
    if not given:
        raise BadRequest(f"no {name}: there is nothing to ask")


def fields_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields. Raises BadRequest for an unknown name (with the nearest one) or a wrong value."""
    fields = {name: given[name] for name in Extras.__annotations__ if given.get(name) is not None and name != "options"}
    if isinstance(choices := fields.get("choices", []), str) or not all(isinstance(one, str) for one in choices):
        raise BadRequest(f"choices are a list of texts, not {choices!r}")
    bound = [name for name in _BINDING if name in fields]
    if len(bound) > 1:
        raise BadRequest(f"give at most one of {', '.join(_BINDING)}: this question has {' and '.join(bound)}")
    if "tools" in given:
        raise BadRequest("tools belong to a conversation: `chat_session(MODEL, tools=[FUNCTION])`")
    named = {name: value for name, value in given.items() if name not in Extras.__annotations__}
    options = {**(given.get("options") or {}), **named}
    if unknown := Options.layered(options)[1]:
        raise BadRequest(unknown[0])
    return {**fields, "options": options} if options else fields


def truncates(on_overflow: Overflow) -> bool:
    """Whether a text that does not fit into the context may be cut. Raises BadRequest for another word."""
    if on_overflow not in ("error", "truncate"):
        raise BadRequest(f'on_overflow must be "error" or "truncate", not "{on_overflow}"')
    return on_overflow == "truncate"


def encoded(images: Iterable[Image]) -> list[str]:
    """Images as requests carry them. Raises BadRequest for a file that cannot be read."""
    try:
        data = [image if isinstance(image, bytes) else Path(image).read_bytes() for image in images]
    except OSError as error:
        raise BadRequest(f"cannot read the image {error.filename}: {error.strerror}") from None
    return [base64.b64encode(image).decode("ascii") for image in data]


@contextmanager
def told() -> Iterator[None]:
    """Inside, the server's error about a text that does not fit is raised as ContextOverflow."""
    try:
        yield
    except OllamaError as error:
        if error.status == 400 and any(words in error.message for words in _TOO_LONG):
            raise ContextOverflow(f"{error.message}; `num_ctx` widens the context of a question") from None
        raise
