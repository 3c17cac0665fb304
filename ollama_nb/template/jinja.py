"""Jinja's sandbox for the chat templates of GGUF files. It runs in the render process only: templates are untrusted.

Templates get plain data, without Python objects whose methods could do harm. Every failure is a TemplateError.
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

from ollama_nb.errors import TemplateError

T = TypeVar("T")

MAX_OUTPUT = 4 << 20  # characters of a prompt
MAX_TEXT = 1 << 20  # characters of a template


class GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}`` marks generated text for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own name and type

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Arguments(dict[str, Any]):
    """The arguments of a tool call: an object for templates that access its items, JSON for those that print it."""

    def __str__(self) -> str:
        return to_json(dict(self))

    __repr__ = __str__


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with three differences.

    Lists support ``append`` and ``pop``. Text plus an undefined value or None is the text. Repetition of text or lists
    is limited in length.
    """

    intercepted_binops = frozenset({"+", "*", "**"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr == "encode":
            return False  # Python would search its files for the codec
        return (isinstance(obj, list) and attr in {"append", "pop"}) or super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            return left + right if not isinstance(left, str) and not isinstance(right, str) else _joined(left, right)
        if operator == "**" and abs(right) > 64:
            raise jinja2.exceptions.SecurityError("exponent too large")
        size = next((len(side) for side in (left, right) if isinstance(side, str | list | tuple)), 0)
        times = next((side for side in (left, right) if isinstance(side, int)), 0)
        if operator == "*" and size * times > MAX_OUTPUT:
            raise jinja2.exceptions.SecurityError("repeated text too long")
        return super().call_binop(context, operator, left, right)


def _joined(left: Any, right: Any) -> Any:
    """Concatenate text with text or with an undefined value, as llama.cpp does."""
    left, right = (("" if side is None or isinstance(side, jinja2.Undefined) else side) for side in (left, right))
    return left + right


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson`` as chat templates expect it: Python's JSON without HTML or ASCII escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_plain
    )


def _plain(value: object) -> object:
    """Convert the iterators that filters return to lists. Other values are not serializable."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def _raise(message: object) -> NoReturn:
    raise TemplateError(f"the model's chat template rejects this conversation: {message}")


def _environment() -> SandboxedEnvironment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, GenerationBlock],
        undefined=jinja2.ChainableUndefined,
    )
    environment.filters["tojson"] = to_json
    environment.filters["safe"] = str  # nothing is escaped here; marking text as safe would escape the text around it
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


_ENVIRONMENT = _environment()


@lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    if len(text) > MAX_TEXT:
        raise TemplateError(f"chat template of {len(text)} characters: at most {MAX_TEXT} are supported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the Python code that Jinja generates, which users cannot change
        return _guarded(lambda: _ENVIRONMENT.from_string(text))


def render(text: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template. Raises TemplateError, also for more than MAX_OUTPUT characters of output."""
    return _guarded(lambda: _generate(_compiled(text), variables))


def _generate(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    parts: list[str] = []
    size = 0
    for part in template.generate(**variables):
        size += len(part)
        if size > MAX_OUTPUT:
            raise TemplateError("chat template: the prompt is too long")
        parts.append(part)
    return "".join(parts)


def _guarded(work: Callable[[], T]) -> T:
    try:
        return work()
    except TemplateError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"chat template line {error.lineno}: {error.message}") from None
    except (RecursionError, MemoryError):
        raise TemplateError("chat template: nested too deeply, or uses too much memory") from None
    except Exception as error:  # a template is code and can raise any exception
        raise TemplateError(f"chat template: {error}") from None
