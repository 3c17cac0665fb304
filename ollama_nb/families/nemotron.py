"""Nemotron 3 and 3.5 Nano: ChatML, tools and calls in XML, thinking by default. Replies are parsed as Qwen 3.5 ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.families import qwen35
from ollama_nb.families.card import CreateDefaults, Family
from ollama_nb.template.chatml import CALL_FORMAT, END, START, turn
from ollama_nb.template.formatting import Images, KeyOrderedDict, function_of, go_value, quoted, trim, types

_TOGGLE = re.compile("(</think>)|/think|/no_think")
_NESTED_KEYS = ("enum", "anyOf", "items", "properties", "required")
_PARAMETER_KEYS = ("type", "description", *_NESTED_KEYS)
_SCHEMA_KEYS = ("type", "properties", "required")


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, newer: bool) -> str:
    """``newer``: version 3.5, without switches in messages, and with efficient reasoning for ``medium``."""
    thinking = (think is None or bool(think)) if newer else _thinking(messages, think)
    system, talk = "", messages
    if messages and messages[0].role == "system":
        system, talk = messages[0].content, messages[1:]
    question = max((at for at, message in enumerate(talk) if message.role == "user"), default=-1)
    images = Images()
    out = [_header(system if newer else _without_toggles(system), tools)]
    for at, message in enumerate(talk):
        if message.role == "assistant":
            out.append(_answer(message, newer, old=at < question))
        elif message.role == "tool":
            out.append(_result(talk, at, images.mark(message)))
        elif message.role in ("user", "system"):
            content = images.mark(message)
            effort = "\n\n{reasoning effort: efficient}" if at == question and think == "medium" else ""
            out.append(turn(message.role, content + effort if newer else trim(_without_toggles(content))))
        else:
            out.append(turn(message.role, message.content))
    return "".join(out) + f"{START}assistant\n<think>" + ("\n" if thinking else "</think>")


def _thinking(messages: Sequence[Message], think: Think) -> bool:
    """Whether thinking is on: by the last ``/think`` or ``/no_think`` in a message, else by the request."""
    thinking = think is None or bool(think)
    for message in messages:
        if message.role not in ("user", "system"):
            continue
        if "/think" in message.content.replace("</think>", ""):
            thinking = True
        elif "/no_think" in message.content:
            thinking = False
    return thinking


def _without_toggles(text: str) -> str:
    return _TOGGLE.sub(lambda match: match[1] or "", text)


# Tools


def _header(system: str, tools: Sequence[Tool]) -> str:
    if not tools:
        return turn("system", system)
    listed = "".join(map(_tool, tools))
    intro = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
    gap = "\n\n" if system else ""
    return turn("system", f"{system}{gap}{intro}{listed}\n</tools>\n\n{CALL_FORMAT}")


def _tool(tool: Tool) -> str:
    function = function_of(tool)
    described = f"\n<description>{trim(function.description)}</description>" if function.description else ""
    properties = "".join(_parameter(name, schema) for name, schema in function.properties.items())
    schema = function.parameters
    required = {"required": schema["required"]} if "required" in schema else {}
    others = _elements({key: value for key, value in schema.items() if key not in _SCHEMA_KEYS} | required)
    return (
        f"\n<function>\n<name>{function.name}</name>{described}"
        f"\n<parameters>{properties}{others}\n</parameters>\n</function>"
    )


def _parameter(name: str, schema: KeyOrderedDict) -> str:
    kinds = types(schema)
    kind = kinds[0] if len(kinds) == 1 else "[" + ", ".join(f"'{kind}'" for kind in kinds) + "]"
    typed = f"\n<type>{kind}</type>" if kinds else ""
    described = f"\n<description>{trim(schema['description'])}</description>" if "description" in schema else ""
    nested = "".join(f"\n<{key}>{quoted(schema[key])}</{key}>" for key in _NESTED_KEYS if key in schema)
    others = _elements({key: value for key, value in schema.items() if key not in _PARAMETER_KEYS})
    return f"\n<parameter>\n<name>{name}</name>{typed}{described}{nested}{others}\n</parameter>"


def _elements(values: Mapping[str, Any]) -> str:
    return "".join(f"\n<{key}>{_value(value)}</{key}>" for key, value in values.items())


def _value(value: Any) -> str:
    """Format lists and objects as JSON, other values as Python prints them."""
    if value is None or isinstance(value, bool):
        return str(value)
    return quoted(value) if isinstance(value, (dict, list)) else go_value(value)


# Turns


def _answer(message: Message, newer: bool, *, old: bool) -> str:
    """Render a turn of the assistant. In an ``old`` one, before the last question, the thinking is dropped."""
    content = message.content
    if message.thinking:
        gap = "" if newer else "\n"
        content = f"<think>\n{message.thinking}{gap}</think>{gap}{content}"
    elif "<think>" not in content and "</think>" not in content:
        content = f"<think></think>{content}"
    if not message.tool_calls:
        if old and "<think>" in content and "</think>" in content:
            content = "<think></think>" + content.rpartition("</think>")[2]
        return turn("assistant", trim(content))
    content = _before_calls(content) if old else trim(content)
    return turn("assistant", content + "\n" + "".join(map(_call, message.tool_calls)))


def _before_calls(content: str) -> str:
    answer = content.rpartition("</think>")[2] if "</think>" in content else content.partition("<think>")[0]
    return "<think></think>" + trim(answer)


def _call(call: ToolCall) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{_value(value)}\n</parameter>\n" for name, value in call.arguments.items()
    )
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>\n"


def _result(talk: Sequence[Message], at: int, content: str) -> str:
    """Render the result of a tool. Consecutive results share one user turn; at the very beginning it is not opened."""
    opened = f"{START}user\n" if at and talk[at - 1].role != "tool" else ""
    closed = "" if at + 1 < len(talk) and talk[at + 1].role == "tool" else END
    return f"{opened}<tool_response>\n{content}\n</tool_response>\n{closed}"


_DEFAULTS = CreateDefaults(renderer="nemotron-3-nano", parser="nemotron-3-nano")
FAMILY = Family(
    renderers={
        "nemotron-3-nano": partial(render, newer=False),
        "nemotron-3.5-nano": partial(render, newer=True),
    },
    parsers={"nemotron-3-nano": qwen35.PARSER, "nemotron-3.5-nano": qwen35.PARSER},
    create_defaults=dict.fromkeys(("nemotron_h", "nemotron_h_moe", "nemotron_h_omni"), _DEFAULTS),
)
