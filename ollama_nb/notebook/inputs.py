"""What goes into a request from the notebook beside its text: images, the shape of the answer, model options."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_nb.api.options import KINDS, Options
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import typed
from ollama_nb.notebook.explain import nearest
from ollama_nb.notebook.parse import Line, Option

if TYPE_CHECKING:
    from ollama_nb.client.shape import AnswerShape
    from ollama_nb.client.tools import Tools

MEANINGS = {
    "num_ctx": "tokens of the context: prompt and answer together",
    "num_batch": "tokens of a prompt that are read in one step",
    "num_gpu": "layers that a GPU computes; -1: as many as fit",
    "main_gpu": "the GPU to use first",
    "use_mmap": "true: map the model's file into memory, false: read it",
    "num_thread": "threads to compute with; 0: the server decides",
    "draft_num_predict": "tokens that a draft model guesses ahead",
    "num_keep": "tokens at the start of the prompt that stay when the context is full",
    "num_predict": "most tokens of the answer; -1: no limit",
    "seed": "the same seed gives the same answer; -1: another one each time",
    "stop": "a text that ends the answer; may be repeated",
    "temperature": "0: always the likeliest words; higher: more variety",
    "top_k": "choose among so many of the likeliest tokens",
    "top_p": "choose among the likeliest tokens that together reach this probability",
    "min_p": "leave out tokens below this share of the likeliest one's probability",
    "typical_p": "choose among tokens of usual surprise that together reach this probability",
    "repeat_last_n": "how many of the last tokens count as repeatable; -1: the whole context",
    "repeat_penalty": "above 1: fewer repetitions",
    "presence_penalty": "above 0: fewer of the tokens that came before",
    "frequency_penalty": "above 0: fewer of the tokens that came often",
}
MODEL_OPTIONS = tuple(Option(f"--{name.replace('_', '-')}", "VALUE", MEANINGS[name]) for name in KINDS)
_SCHEMA_WORDS = ("properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def images(names: Iterable[str], variables: Mapping[str, Any]) -> list[str]:
    """Each name is a variable, else a path; the images as requests carry them. Raises BadRequest.

    A variable holds a PIL image, a Matplotlib figure or axes, an `IPython.display.Image`, bytes or a path.
    """
    return [base64.b64encode(_image(name, variables)).decode("ascii") for name in names]


def _image(name: str, variables: Mapping[str, Any]) -> bytes:
    if name.isidentifier() and name in variables:
        return _pixels(name, variables[name])
    path = Path(name).expanduser()
    if name.isidentifier() and not path.exists():
        raise BadRequest(f"--image {name}: no variable and no file of that name{nearest(name, map(str, variables))}")
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
    if hasattr(value, "save") and hasattr(value, "mode"):  # PIL; PNG knows not all of its modes
        (value if value.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else value.convert("RGB")).save(buffer, "PNG")
        return buffer.getvalue()
    data = getattr(value, "data", None)
    if isinstance(data, bytes):  # IPython.display.Image
        return data
    raise BadRequest(
        f"--image {name}: a variable of type {type(value).__name__} is no image; a PIL image, a Matplotlib figure, "
        "bytes or a path is"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest(f"cannot read the image {path}: {error.strerror}") from None


def form(text: str, variables: Mapping[str, Any]) -> tuple[Any, AnswerShape[Any] | None]:
    """The ``format`` field that ``--format TEXT`` means, and the shape to read the answer with, if there is one.

    ``json``, a JSON Schema, or the name of a variable that holds either a schema or a type (a Pydantic model, a
    dataclass, …). Raises BadRequest.
    """
    if text == "json":
        return text, None
    if not text.isidentifier():
        return _schema(text), None
    if text not in variables:
        raise BadRequest(f"--format {text}: no variable of that name{nearest(text, map(str, variables))}")
    value = variables[text]
    if isinstance(value, Mapping) and _is_schema(value):
        return dict(value), None
    if isinstance(value, str):
        return ("json" if value == "json" else _schema(value)), None
    # Types need msgspec, which `%load_ext` should not wait for.
    try:
        shape: AnswerShape[Any] = import_module("ollama_nb.client.shape").shape_of(value)
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
            f"--format is neither `json` nor a JSON Schema nor the name of a variable with a type: {error}"
        ) from None
    if not isinstance(found, dict):
        raise BadRequest(f"--format: a JSON Schema is an object, not {text}")
    return found


def tools(names: Iterable[str], variables: Mapping[str, Any]) -> Tools | None:
    """The functions that ``--tools f,g`` names; a model knows them by these names. Raises BadRequest."""
    named = [name.strip() for given in names for name in given.split(",") if name.strip()]
    for name in named:
        if name not in variables:
            raise BadRequest(f"--tools {name}: no variable of that name{nearest(name, map(str, variables))}")
    if not named:
        return None
    # Descriptions need msgspec, which `%load_ext` should not wait for.
    found: Tools = import_module("ollama_nb.client.tools").Tools({name: variables[name] for name in named})
    return found


def model_options(line: Line, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``defaults``, then options by their own names (``--temperature 0``) and by ``--option NAME=VALUE``, typed.

    Raises BadRequest for a name that is none (with the nearest one) or a value of the wrong type.
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
        if name not in KINDS:
            raise BadRequest(Options.layered({name: value})[1][0])
        try:
            read = typed(name, value)
        except BadRequest as error:
            raise BadRequest(f"{flag}: {error.message}") from None
        options[name] = options.get(name, []) + read if isinstance(read, list) else read
    options = {**defaults, **options}
    if unknown := Options.layered(options)[1]:  # refuses what is out of range, too
        raise BadRequest(unknown[0])
    return options
