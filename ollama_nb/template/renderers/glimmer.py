"""Glimmer: messages with a recipient in their header, tools in namespaces, reasoning as a strength."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.template.renderers.images import tagged
from ollama_nb.template.renderers.schema import function_of
from ollama_nb.template.renderers.spelling import go_value, plain

BOS = "<|begin_of_text|>"
_END_MESSAGE = "<|eom|>"
_END_TURN = "<|eot|>"
_SYSTEM = "You are a helpful AI assistant.\nKnowledge cutoff: 2026-01-04."
_TOOLS = """\
In this environment you have access to a set of tools you can use to answer the user's question.

You can invoke a function by writing a "<atem:function_calls>" block like the following:
<atem:function_calls>
<atem:invoke name="$FUNCTION_NAME">
<atem:parameter name="$PARAMETER_NAME">$PARAMETER_VALUE</atem:parameter>
...
</atem:invoke>
</atem:function_calls>

String and scalar parameters should be specified as is, while lists and objects should use JSON format. \
Note that spaces for string values are not stripped. The output is not expected to be valid XML and is parsed with \
regular expressions.
Here are the functions available in JSONSchema format:
// Tool metadata
"""
_CALL_EXAMPLE = """

Here's an example of how to call a function in the tool set:
(If the tool namespace is not specified, invoke the function directly as `example_function_name` rather than \
`example_tool_name.example_function_name`)

to=example_tool_name.example_function_name

<atem:function_calls>
<atem:invoke name="example_tool_name.example_function_name">
<atem:parameter name="example_parameter_1">value_1</atem:parameter>
<atem:parameter name="example_parameter_2">This is the value for the second parameter
that can span
"multiple" lines
</atem:parameter>
</atem:invoke>
</atem:function_calls>"""
_STRENGTH = ("Reasoning strength", "Reasoning Strength", "reasoning strength", "REASONING STRENGTH")
_EFFORT = ("Reasoning effort", "Reasoning Effort", "reasoning effort", "REASONING EFFORT")


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    contents = tagged(messages)
    called = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    out = [BOS]
    if not any(message.role == "system" for message in messages):
        out.append(_system(f"{_SYSTEM}\nCurrent date: {date.today().isoformat()}.", tools, think, own=False))
    for at, message in enumerate(messages):
        if message.role == "system":
            out.append(_system(contents[at], tools, think, own=True))
        elif message.role == "user":
            out.append(_message("user", contents[at]))
        elif message.role == "tool":
            name = message.tool_name or called.get(message.tool_call_id, message.tool_call_id)
            out.append(_message(f"tool {name}", f'<tool_output name="{name}">\n{contents[at]}\n</tool_output>'))
        elif message.role == "assistant":
            ends = at + 1 == len(messages) or messages[at + 1].role != "assistant"
            out.append(_answer(message, contents[at], _END_TURN if ends else _END_MESSAGE))
    return "".join(out) + "<|start|>assistant"


def _message(header: str, content: str, end: str = _END_TURN) -> str:
    return f"<|start|>{header}<|message|>{content}{end}"


# System and tools


def _system(text: str, tools: Sequence[Tool], think: Think, *, own: bool) -> str:
    """``own``: the text is the caller's, which may already say how strong the reasoning shall be."""
    if own:
        for theirs, ours in zip(_EFFORT, _STRENGTH, strict=True):
            text = text.replace(theirs, ours)
    parts = [text]
    if not own or "reasoning strength" not in text.lower():
        parts.append(f"Reasoning strength: {_strength(think)}.")
    if tools:
        parts.append(_definitions(tools))
    recipients = ['"self"', *(f'"{namespace}.*"' for namespace in _namespaces(tools)), '"user"']
    parts.append(f"# Valid recipients: {', '.join(recipients)}.")
    return _message("system", "\n\n".join(parts))


def _strength(think: Think) -> str:
    if isinstance(think, str):
        return think
    return "none" if think is False else "high"


def _namespaces(tools: Sequence[Tool]) -> list[str]:
    """What stands before the first dot of the names, each once."""
    return list(dict.fromkeys(function_of(tool).name.partition(".")[0] for tool in tools))


def _definitions(tools: Sequence[Tool]) -> str:
    metadata = "".join(f'{{"name": {plain(name)}, "description": ""}}\n' for name in _namespaces(tools))
    schemas = "".join(f"\n{_schema(tool)}" for tool in tools)
    return f"{_TOOLS}{metadata}// Function schemas{schemas}{_CALL_EXAMPLE}"


def _schema(tool: Tool) -> str:
    function = function_of(tool)
    name, described, parameters = map(plain, (function.name, function.description, function.parameters))
    return f'{{"name": {name}, "description": {described}, "parameters": {parameters}}}'


# Turns


def _answer(message: Message, content: str, end: str) -> str:
    """Thinking, then calls or content; a call stands in a message of its own, ``end`` behind the last one."""
    out = _message("assistant to=self", message.thinking, _END_MESSAGE) if message.thinking else ""
    if message.tool_calls:
        *others, last = (_call(call) for call in message.tool_calls)
        return out + "".join(call + _END_MESSAGE for call in others) + last + end
    if content or not message.thinking:
        out += _message("assistant to=user", content)
    return out


def _call(call: ToolCall) -> str:
    parameters = "".join(
        f'<atem:parameter name="{name}">{_argument(value)}</atem:parameter>\n' for name, value in call.arguments.items()
    )
    invoked = f'<atem:invoke name="{call.name}">\n{parameters}</atem:invoke>'
    block = f"<atem:function_calls>\n{invoked}\n</atem:function_calls>"
    return _message(f"assistant to={call.name}", block, end="")


def _argument(value: Any) -> str:
    if value is None or isinstance(value, (dict, list)):
        return plain(value)
    return go_value(value)


RENDERERS = {"glimmer": render}
