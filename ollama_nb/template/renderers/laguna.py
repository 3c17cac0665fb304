"""Laguna and Poolside's newer models: roles as XML elements, tools as JSON, thinking only when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.template.renderers.schema import tool_json
from ollama_nb.template.renderers.spelling import spaced, trim, trim_right

BOS = "〈|EOS|〉"
_SYSTEM = (
    "You are a helpful, conversationally-fluent assistant made by Poolside. You are here to be helpful to users "
    "through natural language conversations."
)
_TOOLS = """\
### Tools

You may call functions to assist with the user query.
All available function signatures are listed below:
<available_tools>
"""
_CALL_FORMAT = (
    "For each function call, return an unescaped XML-like object with function name and arguments within "
    "'<tool_call>' and '</tool_call>' tags, like here:\n"
)
_CALL_EXAMPLE = """\
<tool_call>function-name
<arg_key>argument-key</arg_key>
<arg_value>value-of-argument-key</arg_value>
</tool_call>"""


def _leading_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """What the system says, white space alone counting as nothing, and the messages behind it."""
    own = bool(messages) and messages[0].role == "system"
    system = messages[0].content if own else _SYSTEM
    return trim_right(system), messages[1:] if own else messages


def _listed(tools: Sequence[Tool]) -> str:
    return _TOOLS + "".join(f"{spaced(tool_json(tool))}\n" for tool in tools) + "</available_tools>"


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else spaced(value)


# Laguna: a line for everything


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system, talk = _leading_system(messages)
    out = [BOS, _header(system, tools, bool(think))]
    for at, message in enumerate(talk):
        if message.role == "assistant":
            out.append(_answer(message, last=at == len(talk) - 1))
        else:
            out.append(_element(message))
    if not (messages and messages[-1].role == "assistant"):
        out.append("<assistant>\n" + ("<think>" if think else "</think>"))
    return "".join(out)


def _header(system: str, tools: Sequence[Tool], thinking: bool) -> str:
    if not system and not tools:
        return ""
    listed = ""
    if tools:
        how = _CALL_FORMAT
        if thinking:
            wrapped = "Wrap your thinking in '<think>', '</think>' tags, followed by a function call. "
            how = f"{wrapped}{how}<think> your thoughts here </think>\n"
        listed = f"\n\n{_listed(tools)}\n\n{how}{_CALL_EXAMPLE}"
    said = f"\n{system}" if system else ""
    return f"<system>\n{said}{listed}\n</system>\n"


def _element(message: Message) -> str:
    name = {"user": "user", "system": "system", "tool": "tool_response"}.get(message.role)
    return f"<{name}>\n{message.content}\n</{name}>\n" if name else ""


def _answer(message: Message, *, last: bool) -> str:
    content, thought = map(trim, _split(message.content, message.thinking))
    said = f"{content}\n" if content else ""
    calls = "".join(map(_call, message.tool_calls))
    block = f"<think>\n{thought}\n</think>\n" if thought else "</think>\n"
    end = "" if last and (thought or said or calls) else "</assistant>\n"
    return f"<assistant>\n{block}{said}{calls}{end}"


def _split(content: str, thought: str) -> tuple[str, str]:
    """Content and thinking, the latter also from think tags inside the content."""
    before, close, _ = content.partition("</think>")
    if not close:
        return content, thought
    return content.rpartition("</think>")[2], thought or before.rpartition("<think>")[2]


def _call(call: ToolCall) -> str:
    arguments = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{_argument(value)}</arg_value>\n"
        for key, value in call.arguments.items()
    )
    return f"<tool_call>{call.name}\n{arguments}</tool_call>\n"


# Poolside v1: the same without line breaks


def render_v1(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system, talk = _leading_system(messages)
    parts = "\n\n".join(filter(None, (system, _listed(tools) if tools else "")))
    out = [BOS, f"<system>{parts}</system>\n" if parts or think else ""]
    for message in talk:
        if message.role == "assistant":
            thought = f"<think>{message.thinking}" if think else ""
            calls = "".join(map(_call_v1, message.tool_calls))
            out.append(f"<assistant>{thought}</think>{message.content}{calls}</assistant>\n")
        elif message.role in ("user", "system", "tool"):
            name = "tool_response" if message.role == "tool" else message.role
            out.append(f"<{name}>{message.content}</{name}>\n")
    return "".join(out) + "<assistant>" + ("<think>" if think else "</think>")


def _call_v1(call: ToolCall) -> str:
    arguments = "".join(
        f"<arg_key>{key}</arg_key><arg_value>{_argument(value)}</arg_value>" for key, value in call.arguments.items()
    )
    return f"<tool_call>{call.name}{arguments}</tool_call>"


RENDERERS = {"laguna": render, "poolside-v1": render_v1}
