"""What a command takes from the notebook: variables in texts, images, types, functions and model options.

``{{name}}`` in a text becomes the value of that variable; every other character stays as it is. Inserted values are
data: marks inside them are not replaced.
"""

from __future__ import annotations

import base64
import difflib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_nb import disk
from ollama_nb.api.options import KINDS, Options
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import typed
from ollama_nb.notebook.explain import nearest
from ollama_nb.notebook.line import Line, Option

if TYPE_CHECKING:
    from ollama_nb.client.shape import AnswerShape
    from ollama_nb.client.tools import Tools

_MARK = re.compile(r"\{\{([^\W\d]\w*)\}\}")

OPTION_HELP = {
    "num_ctx": "context length in tokens, prompt and answer together",
    "num_batch": "prompt tokens that are computed in one step",
    "num_gpu": "layers to compute on a GPU; -1: as many as fit",
    "main_gpu": "index of the GPU to use first",
    "use_mmap": "true: map the model file into memory; false: read it",
    "num_thread": "number of threads; 0: the server decides",
    "draft_num_predict": "tokens that a draft model proposes per step",
    "num_keep": "tokens at the start of the prompt that are kept when the context is full",
    "num_predict": "maximum tokens of the answer; -1: no limit",
    "seed": "random seed; the same seed gives the same answer; -1: a new seed each time",
    "stop": "text that ends the answer; may be repeated",
    "temperature": "0: always the most likely token; higher: more variety",
    "top_k": "sample from this many of the most likely tokens",
    "top_p": "sample from the most likely tokens that together reach this probability",
    "min_p": "minimum probability of a token, relative to the most likely one",
    "typical_p": "locally typical sampling: total probability of the tokens to keep",
    "repeat_last_n": "number of last tokens that count as repetition; -1: the whole context",
    "repeat_penalty": "above 1: fewer repetitions",
    "presence_penalty": "above 0: fewer tokens that have occurred before",
    "frequency_penalty": "above 0: fewer tokens that have occurred often",
}
MODEL_OPTIONS = tuple(Option(f"--{name.replace('_', '-')}", "VALUE", OPTION_HELP[name]) for name in KINDS)
_SCHEMA_WORDS = ("properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def insert(text: str, variables: Mapping[str, Any]) -> str:
    """Replace each ``{{name}}`` by ``str`` of the variable. ``{x}``, ``$x`` and ``{{ .Prompt }}`` are not marks.

    Raises BadRequest for an unknown name, or a value that cannot be encoded as UTF-8.
    """
    return _MARK.sub(lambda mark: _variable_text(mark[1], variables), text)


def inserted_names(text: str) -> tuple[str, ...]:
    """The names that ``insert`` would replace, in order, without duplicates."""
    return tuple(dict.fromkeys(_MARK.findall(text)))


def _variable_text(name: str, variables: Mapping[str, Any]) -> str:
    if name not in variables:
        near = difflib.get_close_matches(name, [str(known) for known in variables], n=1)
        hint = (
            f"did you mean `{{{{{near[0]}}}}}`?"
            if near
            else "set it in a cell above, or write a space inside the braces."
        )
        raise BadRequest(f"there is no variable `{{{{{name}}}}}`; {hint}")
    text = str(variables[name])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"`{{{{{name}}}}}` cannot be sent: its character {error.start} is half of a surrogate pair"
        ) from None
    return text


def images(names: Iterable[str], variables: Mapping[str, Any]) -> list[str]:
    """The images as base64. Each name is a variable or otherwise a path.

    A variable holds a PIL image, a Matplotlib figure or axes, an `IPython.display.Image`, bytes or a path.
    Raises BadRequest for anything else, or a file that cannot be read.
    """
    return [base64.b64encode(_image(name, variables)).decode("ascii") for name in names]


def _image(name: str, variables: Mapping[str, Any]) -> bytes:
    if name.isidentifier() and name in variables:
        return _pixels(name, variables[name])
    path = Path(name).expanduser()
    if name.isidentifier() and not path.exists():
        raise BadRequest(f"--image {name}: no such variable or file{nearest(name, map(str, variables))}")
    return _read(path)


def _pixels(name: str, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | Path):
        return _read(Path(value).expanduser())
    value = value.get_figure() if hasattr(value, "get_figure") else value
    buffer = io.BytesIO()
    if hasattr(value, "savefig"):
        value.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()
    if hasattr(value, "save") and hasattr(value, "mode"):  # PIL; PNG does not support all of its modes
        (value if value.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else value.convert("RGB")).save(buffer, "PNG")
        return buffer.getvalue()
    data = getattr(value, "data", None)
    if isinstance(data, bytes):  # IPython.display.Image
        return data
    raise BadRequest(
        f"--image {name}: a variable of type {type(value).__name__} is not an image; use a PIL image, a Matplotlib "
        "figure, bytes or a path"
    )


def _read(path: Path) -> bytes:
    try:
        return disk.read_regular(path)
    except OSError as error:
        raise BadRequest(f"cannot read the image {path}: {disk.describe_error(error)}") from None


def answer_format(text: str, variables: Mapping[str, Any]) -> tuple[Any, AnswerShape[Any] | None]:
    """The ``format`` field for ``--format TEXT``, and the shape to parse the answer with if a type is given.

    ``text`` is ``json``, a JSON Schema, or the name of a variable that holds a schema or a type (a Pydantic model, a
    dataclass, …). Raises BadRequest.
    """
    if text == "json":
        return text, None
    if not text.isidentifier():
        return _schema(text), None
    if text not in variables:
        raise BadRequest(f"--format {text}: no such variable{nearest(text, map(str, variables))}")
    value = variables[text]
    if isinstance(value, Mapping) and _is_schema(value):
        return dict(value), None
    if isinstance(value, str):
        return ("json" if value == "json" else _schema(value)), None
    from ollama_nb.client.shape import shape_of  # with msgspec, which `%load_ext` need not load

    try:
        shape = shape_of(value)
    except BadRequest as error:
        raise BadRequest(f"--format {text}: {error.message}") from None
    return shape.schema, shape


def _is_schema(value: Mapping[str, Any]) -> bool:
    return any(word in value for word in _SCHEMA_WORDS) or value.get("type") in _SCHEMA_TYPES


def _schema(text: str) -> Any:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"--format must be `json`, a JSON Schema, or the name of a variable that holds a type: {error}"
        ) from None
    if not isinstance(found, dict):
        raise BadRequest(f"--format: a JSON Schema must be an object, not {text}")
    return found


def tools(names: Iterable[str], choice: str | None, variables: Mapping[str, Any]) -> Tools | None:
    """The functions that ``--tools f,g`` names, with the ``--tool-choice``, or None. Raises BadRequest."""
    named = [name.strip() for given in names for name in given.split(",") if name.strip()]
    for name in named:
        if name not in variables:
            raise BadRequest(f"--tools {name}: no such variable{nearest(name, map(str, variables))}")
    if not named:
        if choice is not None:
            raise BadRequest("--tool-choice needs functions to choose from: `--tools f,g`")
        return None
    from ollama_nb.client.tools import Tools  # with msgspec, which `%load_ext` need not load

    return Tools({name: variables[name] for name in named}, choice or "auto")


def _bias(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        example = "`--option 'logit_bias={\"42\": -100}'`"
        raise BadRequest(f"--option logit_bias needs a JSON object of token ids, such as {example}") from None


def model_options(line: Line, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The model options of a line (``--temperature 0``, ``--option NAME=VALUE``) with their types, over ``defaults``.

    Raises BadRequest for an unknown name, or a value of the wrong type or range.
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in KINDS}
    given = [(flags[name], name, value) for name in KINDS for value in line.options.get(flags[name], ())]
    for pair in line.options.get("--option", ()):
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadRequest(f"--option needs NAME=VALUE, not `{pair}`")
        given.append((f"--option {name}", name, value))
    options: dict[str, Any] = {}
    for flag, name, value in given:
        if name == "logit_bias":
            options[name] = _bias(value)
            continue
        if name not in KINDS:
            raise BadRequest(Options.layered({name: value})[1][0])
        try:
            read = typed(name, value)
        except BadRequest as error:
            raise BadRequest(f"{flag}: {error.message}") from None
        options[name] = options.get(name, []) + read if isinstance(read, list) else read
    options = {**defaults, **options}
    if unknown := Options.layered(options)[1]:  # also raises for values out of range
        raise BadRequest(unknown[0])
    return options
