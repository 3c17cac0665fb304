"""DeepSeek 3.1: its own markers, tools as headings, thinking only when asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.template.renderers.schema import function_of
from ollama_nb.template.renderers.spelling import Ordered, compact

BOS = "<｜begin▁of▁sentence｜>"
_EOS = "<｜end▁of▁sentence｜>"
_CALL_FORMAT = """
IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>\
{{additional_tool_calls}}<｜tool▁calls▁end｜>

Where:

- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces
"""


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    talk = [message for message in messages if message.role in ("user", "assistant", "tool")]
    question = max((at for at, message in enumerate(talk) if message.role == "user"), default=-1)
    turns = [_turn(talk, at, thinking=bool(think) and at > question) for at in range(len(talk))]
    out = BOS + system + _tools(tools) + "".join(turns)
    if talk and talk[-1].role == "user":
        out += "<｜Assistant｜>" + ("<think>" if think else "</think>")
    return out


def _tools(tools: Sequence[Tool]) -> str:
    listed = ""
    for tool in tools:
        function = function_of(tool)
        parameters = compact(function.parameters)
        listed += f"\n### {function.name}\nDescription: {function.description}\n\nParameters: {parameters}\n"
    return f"\n\n## Tools\nYou have access to the following tools:\n{listed}{_CALL_FORMAT}" if tools else ""


def _turn(talk: Sequence[Message], at: int, *, thinking: bool) -> str:
    """``thinking``: the turn is the one that is thought about now."""
    message = talk[at]
    before = talk[at - 1].role if at else ""
    if message.role == "user":
        return f"<｜User｜>{message.content}"
    if message.role == "tool":
        return f"<｜tool▁output▁begin｜>{message.content}<｜tool▁output▁end｜>"
    if message.tool_calls:
        opening = "<｜Assistant｜></think>" if before == "user" else ""
        calls = "".join(map(_call, message.tool_calls))
        return f"{opening}{message.content}<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>{_EOS}"
    opening = ""
    if before == "user":
        opening = "<｜Assistant｜>" + ("<think>" if message.thinking and thinking else "</think>")
    content = message.content
    if before != "tool" and "</think>" in content:
        content = content.partition("</think>")[2]
    return opening + content + _EOS


def _call(call: ToolCall) -> str:
    return f"<｜tool▁call▁begin｜>{call.name}<｜tool▁sep｜>{compact(Ordered(call.arguments))}<｜tool▁call▁end｜>"


RENDERERS = {"deepseek3.1": render}
