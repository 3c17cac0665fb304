"""FunctionGemma: Gemma's turns, functions declared to a developer turn, results inside the model's turn."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.template.renderers.gemma import Values
from ollama_nb.template.renderers.schema import function_of, types
from ollama_nb.template.renderers.spelling import Struct, by_name, trim

BOS = "<bos>"
_VALUES = Values("<escape>", "<nil>")
_INTRO = "You can do function calling with the following functions:"
_CALLED, _ANSWERED = "called", "answered"


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    del think  # the family does not think
    system, talk = "", messages
    if messages and messages[0].role in ("system", "developer"):
        system, talk = messages[0].content, messages[1:]
    out = [BOS, _header(system, tools)]
    state = ""
    for at, called in enumerate(_called(talk)):
        text, state = _turn(talk, at, called, state)
        out.append(text)
    if state != _ANSWERED:
        out.append("<start_of_turn>model\n")
    return "".join(out)


def _header(system: str, tools: Sequence[Tool]) -> str:
    if not system and not tools:
        return ""
    own = trim(system)
    intro = ("\n" if system else "") + ("" if own == _INTRO else _INTRO) if tools else ""
    return f"<start_of_turn>developer\n{own}{intro}{''.join(map(_declaration, tools))}<end_of_turn>\n"


def _declaration(tool: Tool) -> str:
    function = function_of(tool)
    listed = ",".join(f"{name}:{{{_property(inner)}}}" for name, inner in by_name(function.properties))
    declared = _VALUES.declaration(function, listed if function.properties else None)
    return f"<start_function_declaration>{declared}<end_function_declaration>"


def _property(schema: Struct) -> str:
    kinds = types(schema)
    kind = f",type:{_VALUES.text(kinds[0].upper())}" if kinds else ""
    return f"description:{_VALUES.text(schema.get('description', ''))}{kind}"


def _turn(talk: Sequence[Message], at: int, called: str, state: str) -> tuple[str, str]:
    """One message, and whether it called or answered; what follows an answer goes on in its turn."""
    message = talk[at]
    if message.role == "tool":
        opened = "" if state == _CALLED else "<start_function_response>"
        return f"{opened}response:{called}{{{_VALUES.text(message.content)}}}<end_function_response>", _ANSWERED
    if message.role not in ("user", "assistant"):
        return f"<start_of_turn>{message.role}\n{trim(message.content)}<end_of_turn>\n", state
    role = "model" if message.role == "assistant" else "user"
    out = ("" if state == _ANSWERED else f"<start_of_turn>{role}\n") + trim(message.content)
    if role == "user" or not message.tool_calls:
        return f"{out}<end_of_turn>\n", ""
    out += "".join(f"<start_function_call>{_VALUES.call(call)}<end_function_call>" for call in message.tool_calls)
    if at + 1 < len(talk) and talk[at + 1].role == "tool":
        return f"{out}<start_function_response>", _CALLED
    return f"{out}<end_of_turn>\n", ""


def _called(talk: Sequence[Message]) -> list[str]:
    """For each place, the name of the function whose result stands there: results come in the order of the calls."""
    names: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    results = 0
    for message in talk:
        if message.role == "assistant" and message.tool_calls:
            calls, results = message.tool_calls, 0
        is_result = message.role == "tool"
        names.append(calls[results].name if is_result and results < len(calls) else "")
        results += is_result
    return names


RENDERERS = {"functiongemma": render}
