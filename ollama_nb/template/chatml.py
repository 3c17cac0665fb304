"""ChatML turns, and the XML format of tool calls in them that several families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ollama_nb.api.encode import go_json
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.template.formatting import go_value

START = "<|im_start|>"
END = "<|im_end|>\n"
STOPS = (START, END.rstrip())  # stop strings of a model without any

CALL_FORMAT = """\
If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within \
<tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell \
the user about function calls
</IMPORTANT>"""
"""The instructions for calls in XML that the models were trained with."""


def turn(role: str, text: str) -> str:
    return f"{START}{role}\n{text}{END}"


def continues(messages: Sequence[Message]) -> bool:
    """Whether the prompt ends in a trailing assistant message, whose turn stays open."""
    return bool(messages) and messages[-1].role == "assistant"


def tool_results(messages: Sequence[Message], at: int, content: str) -> str:
    """Render the result of a tool. Consecutive results share one user turn."""
    opened = "" if at and messages[at - 1].role == "tool" else f"{START}user"
    closed = "" if at + 1 < len(messages) and messages[at + 1].role == "tool" else END
    return f"{opened}\n<tool_response>\n{content}\n</tool_response>{closed}"


def xml_call(call: ToolCall) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{argument(value)}\n</parameter>\n" for name, value in call.arguments.items()
    )
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"


def argument(value: Any) -> str:
    """Format text as it is, lists and objects as compact JSON, other values as Go prints them."""
    if value is None:
        return "null"
    return go_json(value, sort_keys=True) if isinstance(value, (dict, list)) else go_value(value)


def is_question(message: Message, content: str) -> bool:
    """Whether a message is a user message other than a wrapped tool response."""
    wrapped = content.startswith("<tool_response>") and content.endswith("</tool_response>")
    return message.role == "user" and not wrapped


def last_question(messages: Sequence[Message], contents: Sequence[str]) -> int:
    """Return the index of the last question, or of the last message without any question."""
    indices = range(len(messages) - 1, -1, -1)
    return next((at for at in indices if is_question(messages[at], contents[at])), len(messages) - 1)
