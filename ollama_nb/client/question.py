"""The keywords of a question, checked before the request is sent: options, output format, images, overflow."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from ollama_nb import disk
from ollama_nb.api.messages import Think
from ollama_nb.api.options import DEPRECATED, KINDS, Options
from ollama_nb.errors import BadRequest

Overflow = Literal["error", "truncate"]
Image = str | bytes | Path
"""A path, or the bytes of an image file."""

Prompt = str | Sequence[int]
"""A text, or token ids."""

STRICT = {"X-Ollama-Strict": "true"}
"""With this header our server refuses what it would otherwise ignore."""

_OUTPUT_RULES = ("format", "choices", "regex", "grammar")


class Extras(TypedDict, total=False):
    """Fields of a question, as Ollama names them; every other keyword is a model option such as ``temperature``.

    At most one of ``format`` (``"json"`` or a JSON Schema), ``choices`` (the answer is one of them), ``regex`` and
    ``grammar`` (GBNF). ``keep_alive``: how long the model stays loaded, such as ``"10m"``. ``n``: number of answers
    (see ``Answer.choices``). ``think_budget``: most tokens of thinking. ``user`` is for the run record.
    """

    think: Think
    format: str | Mapping[str, Any]
    choices: list[str]
    regex: str
    grammar: str
    keep_alive: str | float
    options: Mapping[str, Any]
    n: int
    think_budget: int
    user: str


KEYWORDS = frozenset({*Extras.__annotations__, *KINDS, "logit_bias", *DEPRECATED})
"""Every keyword that a question accepts."""


def check_text(given: object, name: str) -> None:
    """Raise BadRequest unless ``given`` is a string with at least one character; ``name`` is for the message."""
    if not isinstance(given, str):
        raise BadRequest(f"the {name} must be a string, not {given!r} of type {type(given).__name__}")
    if not given:
        raise BadRequest(f"no {name}: there is nothing to ask")


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The request's field for a prompt. Raises BadRequest for an empty one."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        check_text(prompt, "prompt")
        return {"prompt": prompt}
    if not prompt or not all(isinstance(token, int) for token in prompt):
        raise BadRequest("a prompt of tokens must be a list of at least one token id")
    return {"tokens": [*prompt]}


def request_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields for keywords. Raises BadRequest for an unknown name (suggesting one) or a wrong value."""
    fields = {name: given[name] for name in Extras.__annotations__ if given.get(name) is not None and name != "options"}
    if isinstance(choices := fields.get("choices", []), str) or not all(isinstance(one, str) for one in choices):
        raise BadRequest(f"choices must be a list of strings, not {choices!r}")
    rules = [name for name in _OUTPUT_RULES if name in fields]
    if len(rules) > 1:
        raise BadRequest(f"give at most one of {', '.join(_OUTPUT_RULES)}: this question has {' and '.join(rules)}")
    if "tools" in given:
        raise BadRequest("tools belong to a conversation: `chat_session(MODEL, tools=[FUNCTION])`")
    named = {name: value for name, value in given.items() if name not in Extras.__annotations__}
    options = {**(given.get("options") or {}), **named}
    if unknown := Options.layered(options)[1]:
        raise BadRequest(unknown[0])
    return {**fields, "options": options} if options else fields


def may_truncate(on_overflow: Overflow) -> bool:
    """Whether a text that does not fit into the context may be cut. Raises BadRequest for another word."""
    if on_overflow not in ("error", "truncate"):
        raise BadRequest(f'on_overflow must be "error" or "truncate", not "{on_overflow}"')
    return on_overflow == "truncate"


def encode_images(images: Iterable[Image]) -> list[str]:
    """Images in base64, as requests carry them. Raises BadRequest for a file that cannot be read."""
    try:
        data = [image if isinstance(image, bytes) else disk.read_regular(Path(image)) for image in images]
    except OSError as error:
        raise BadRequest(f"cannot read the image {error.filename}: {disk.describe_error(error)}") from None
    return [base64.b64encode(image).decode("ascii") for image in data]
