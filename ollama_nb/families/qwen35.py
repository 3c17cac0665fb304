"""Qwen 3.5 and 3.8, and Ornith: ChatML with images, tools as JSON, calls in XML, thinking by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.errors import TemplateError
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.families.qwen3 import TAGS, qwen_parser
from ollama_nb.families.qwen3_coder import xml_call_grammar, xml_call_parser
from ollama_nb.reply.output import ReplyContext
from ollama_nb.reply.regions import RegionParser
from ollama_nb.template.chatml import (
    CALL_FORMAT,
    END,
    START,
    continues,
    is_question,
    last_question,
    tool_results,
    turn,
    xml_call,
)
from ollama_nb.template.formatting import mark_images, spaced, tool_json, trim

_MORE_EFFORT = (
    "Reasoning effort is set to xhigh. Please think carefully through the task, validate key assumptions, consider "
    "plausible alternatives, and prioritize correctness, consistency, and clarity in the final answer."
)
_LESS_EFFORT = (
    "Reasoning effort is set to low. Keep your thinking brief and focused, moving directly to the conclusion without "
    "unnecessary elaboration."
)


@dataclass(frozen=True, slots=True)
class _Variant:
    """``every_turn``: each turn of the assistant has a think block. ``strict``: the rules of Qwen 3.8 apply."""

    every_turn: bool = False
    strict: bool = False


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, variant: _Variant) -> str:
    thinking = think is None or bool(think)
    if variant.strict:
        messages = _one_system(messages)
    contents = list(map(trim, mark_images(messages)))
    question = last_question(messages, contents)
    if variant.strict:
        _check(messages, contents)
    out = [_header(messages, contents, tools, _effort(think) if variant.strict else "", variant)]
    for at, message in enumerate(messages):
        if message.role == "tool":
            out.append(tool_results(messages, at, contents[at]))
        elif message.role == "assistant":
            block = variant.every_turn or (thinking and at > question)
            end = "" if at == len(messages) - 1 else END
            out.append(_answer(message, contents[at], block, split=not variant.strict) + end)
        elif (at or message.role != "system") and (variant.strict or message.role in ("user", "system")):
            out.append(turn(message.role, contents[at]))
    if messages and not continues(messages):
        out.append(f"{START}assistant\n<think>\n" + ("" if thinking else "\n</think>\n\n"))
    return "".join(out)


def _header(
    messages: Sequence[Message], contents: Sequence[str], tools: Sequence[Tool], effort: str, variant: _Variant
) -> str:
    has_system = bool(messages) and messages[0].role == "system"
    system = contents[0] if has_system else ""
    listed = ""
    if tools:
        lines = "".join(f"\n{spaced(tool_json(tool))}" for tool in tools)
        intro = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
        listed = f"{intro}{lines}\n</tools>\n\n{CALL_FORMAT}"
    text = "\n\n".join(filter(None, (effort, listed, system)))
    return turn("system", text) if text or (has_system and not variant.strict) else ""


def _answer(message: Message, content: str, block: bool, *, split: bool) -> str:
    thought, content = _thought(message, content, block, split)
    opening = f"<think>\n{thought}\n</think>\n\n" if block else ""
    calls = "\n".join(map(xml_call, message.tool_calls))
    gap = "\n\n" if calls and trim(content) else ""
    return f"{START}assistant\n{opening}{content}{gap}{calls}"


def _thought(message: Message, content: str, block: bool, split: bool) -> tuple[str, str]:
    """Return thinking and content. ``split`` takes a think block out of the content."""
    if block and message.thinking:
        return trim(message.thinking), content
    before, close, after = content.partition("</think>")
    if not split or not close:
        return "", content
    return trim(before.rpartition("<think>")[2]), after.lstrip("\n")


# Qwen 3.8


def _effort(think: Think) -> str:
    if think is None or think in ("high", "max"):
        return _MORE_EFFORT
    return _LESS_EFFORT if think == "low" else ""


def _one_system(messages: Sequence[Message]) -> Sequence[Message]:
    """Merge all system and developer messages into one leading system message."""
    systems = [message for message in messages if message.role in ("system", "developer")]
    for message in systems:
        if message.images:
            raise TemplateError(f"this model reads no images in a {message.role} message: send them in a user message")
    if not systems or (len(systems) == 1 and messages[0].role == "system"):
        return messages
    text = "\n\n".join(filter(None, (trim(message.content) for message in systems)))
    return [Message("system", text), *(message for message in messages if message.role not in ("system", "developer"))]


def _check(messages: Sequence[Message], contents: Sequence[str]) -> None:
    if not any(map(is_question, messages, contents)):
        raise TemplateError("this model needs a question: the conversation has no user message with one")


# Reply parser


def _create_parser(context: ReplyContext) -> RegionParser:
    return qwen_parser(xml_call_parser(context), thinking=context.thinks(by_default=True) and not context.continues)


PARSER = ParserSpec(create=_create_parser, thinking=True, preserve=TAGS, call_grammar=xml_call_grammar)
FAMILY = Family(
    renderers={
        "qwen3.5": partial(render, variant=_Variant()),
        "qwen3.8": partial(render, variant=_Variant(every_turn=True, strict=True)),
        "ornith": partial(render, variant=_Variant(every_turn=True)),
    },
    parsers={"qwen3.5": PARSER, "ornith": PARSER},
)
