"""Model families: one module each, with the renderer of its prompts, the parser of its replies, and its card.

Every module but ``card`` defines ``FAMILY``. The registry collects them on first use, so a new family needs one new
module here and no other change of the package.

Its tests need golden cases, recorded from Ollama or from the model's published chat template: a file in
``tests/golden/renderers`` with a prompt or an error for every case of ``cases.json``, and replies with their parsed
output in ``tests/golden/parsers``. Exceptions are listed in ``tests/families``. CONTRIBUTING.md has the recipe.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.api.models import Model
from ollama_nb.errors import BadRequest, TemplateError
from ollama_nb.families.card import CreateDefaults, Family, ParserSpec


@cache
def cards() -> dict[str, Family]:
    """All cards, by the names of their modules."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "card")
    return {name: import_module(f"{__name__}.{name}").FAMILY for name in names}


# Renderers


@cache
def renderers() -> dict[str, Family]:
    """The family of each renderer name."""
    return {name: family for family in cards().values() for name in family.renderers}


def render(name: str, messages: Sequence[Message], tools: Sequence[Tool], think: Think, bos: str = "") -> str:
    """Render the prompt for the model's next turn with the renderer of that name.

    ``bos`` is the text of the token that the model's tokenizer adds by itself, if it adds one. It replaces the
    family's own at the beginning, so that the tokenizer finds it there and does not add a second one.

    Raises TemplateError for an unknown name, and for a conversation that the family does not support.
    """
    family = renderers().get(name)
    if family is None:
        raise TemplateError(f'unknown renderer "{name}"')
    prompt = family.renderers[name](messages, tools, think)
    return bos + prompt.removeprefix(family.bos) if bos and family.bos else prompt


def check_renderer(name: str) -> None:
    """Raise BadRequest for an unknown renderer name."""
    if name not in renderers():
        raise BadRequest(f'unknown renderer "{name}"')


def renderer_name(model: Model) -> str:
    """The renderer that a model's config names, or the variant of it that suits the model; empty if none is named."""
    name = model.config.renderer
    family = renderers().get(name) if name else None
    return family.variant(name, model) if family is not None and family.variant is not None else name


# Parsers


@cache
def parsers() -> dict[str, ParserSpec]:
    """The parser of each parser name."""
    return {name: parser for family in cards().values() for name, parser in family.parsers.items()}


def parser(name: str) -> ParserSpec:
    """The parser of that name. Raises BadRequest for an unknown name."""
    found = parsers().get(name)
    if found is None:
        raise BadRequest(f'unknown parser "{name}"')
    return found


def parser_name(model: Model) -> str:
    """The parser that a model's config names, else one recognised by the model's family and template, else empty."""
    if model.config.parser:
        return model.config.parser
    template = model.template or ""
    for family in of_model(model):
        if family.template_parser and all(marker in template for marker in family.template_markers):
            return family.template_parser
    return ""


# Models and architectures


def of_model(model: Model) -> Iterator[Family]:
    """The families that a model belongs to, judged by its config and name alone."""
    return (family for family in cards().values() if family.matches(model))


def create_defaults(architecture: str) -> CreateDefaults | None:
    """What a model of that GGUF architecture gets when it is created from files and names no renderer or parser."""
    found = (family.create_defaults.get(architecture) for family in cards().values())
    return next((defaults for defaults in found if defaults is not None), None)


def can_shift(architecture: str) -> bool:
    """Whether the context of models of that GGUF architecture can be shifted when it is full."""
    return not any(architecture in family.no_shift for family in cards().values())
