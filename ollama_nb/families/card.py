"""The card of a model family: how its prompts are rendered, how its replies are parsed, and its other special cases.

A card is data. State that changes while a reply is parsed is in the parser that ``ParserSpec.create`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.api.models import Model

if TYPE_CHECKING:  # the render process imports no parsers until it needs a family
    from ollama_nb.reply.call_grammar import CallGrammar
    from ollama_nb.reply.output import ReplyContext
    from ollama_nb.reply.regions import RegionParser

RenderFunction = Callable[[Sequence[Message], Sequence[Tool], Think], str]
"""Messages, tools and the requested thinking → the prompt for the model's next turn.

A trailing assistant message is continued where the family supports that. Images become ``[img-N]``, N counting over
all messages, in families with vision. Raises TemplateError for a conversation that the family does not support.
"""


def unchanged_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    return tuple(tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserSpec:
    """One parser name of a family.

    ``create`` makes the parser of one reply. ``tools`` and ``thinking`` are the capabilities that the parser gives a
    model. ``preserve`` are the special tokens that the engine must keep in the output text, because the parser looks
    for them. ``offered`` maps the request's tools to those that the prompt names. ``think_levels`` replaces levels
    that the family does not know.

    ``call_grammar`` is the grammar of a reply that calls one of the context's tools, or several if its second argument
    is True; it begins where an answer would. ``answer_marker`` is what the family writes there before an answer in
    text (the end of the ``answer_prefix`` of its regions) or before the first of several calls.
    """

    create: Callable[[ReplyContext], RegionParser]
    tools: bool = True
    thinking: bool = False
    preserve: tuple[str, ...] = ()
    offered: Callable[[Sequence[Tool]], tuple[Tool, ...]] = unchanged_tools
    think_levels: Mapping[Think, Think] = field(default_factory=dict)
    call_grammar: Callable[[ReplyContext, bool], CallGrammar] | None = None
    answer_marker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateDefaults:
    """What a model that is created from files gets if its request names neither renderer nor parser."""

    renderer: str
    parser: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The card of a family. Every module of this package has one, called ``FAMILY``.

    ``renderers`` and ``parsers`` have Ollama's names, aliases included. ``bos`` is the text with which the family's
    prompts begin, if any. ``variant`` chooses among several renderers: it gets the renderer name of a model's config
    and the model.

    A model belongs to the family if its config's family is in ``model_families`` or its own name in ``model_names``;
    such a model

    * has ``capabilities``, whatever its template supports;
    * uses the parser ``template_parser`` if its config names none and its template contains all ``template_markers``;
    * with ``strip_old_thinking``, gets the earlier turns without think blocks, as it was trained;
    * with ``hint_to_pull``, is reported as possibly outdated when it does not support thinking.

    By GGUF architecture: ``create_defaults`` apply to models that are created from files; ``no_shift`` are those whose
    context cannot be shifted.
    """

    renderers: Mapping[str, RenderFunction] = field(default_factory=dict)
    bos: str = ""
    variant: Callable[[str, Model], str] | None = None
    parsers: Mapping[str, ParserSpec] = field(default_factory=dict)
    model_families: frozenset[str] = frozenset()
    model_names: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    template_parser: str = ""
    template_markers: tuple[str, ...] = ()
    strip_old_thinking: bool = False
    hint_to_pull: bool = False
    create_defaults: Mapping[str, CreateDefaults] = field(default_factory=dict)
    no_shift: frozenset[str] = frozenset()

    def matches(self, model: Model) -> bool:
        """Whether a model belongs to this family, judged by its config and name alone."""
        return model.config.model_family in self.model_families or model.name.model in self.model_names
