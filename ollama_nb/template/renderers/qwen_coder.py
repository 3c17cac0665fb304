"""Qwen3-Coder: ChatML, tools and calls in XML."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ollama_nb.api.encode import go_json
from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.template.renderers.chatml import CALL_FORMAT, END, START, continues, tool_results, turn, xml_call
from ollama_nb.template.renderers.schema import function_of, types
from ollama_nb.template.renderers.spelling import Struct, go_value

_SYSTEM = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think) -> str:
    del think  # the family does not think
    systems = (message.content for message in messages if message.role == "system" and message.content)
    system = next(systems, _SYSTEM if tools else "")
    talk = [message for message in messages if message.role != "system"]
    return _header(system, tools) + "".join(_turn(talk, at) for at in range(len(talk))) + _next(talk)


def _next(talk: Sequence[Message]) -> str:
    return f"{START}assistant\n" if talk and not (continues(talk)) else ""


def _header(system: str, tools: Sequence[Tool]) -> str:
    if not system:
        return ""
    if not tools:
        return turn("system", system)
    listed = "".join(map(_tool, tools))
    intro = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
    return turn("system", f"{system}\n\n{intro}{listed}\n</tools>\n\n{CALL_FORMAT}")


def _tool(tool: Tool) -> str:
    function = function_of(tool)
    described = f"\n<description>{function.description}</description>" if function.description else ""
    properties = "".join(_parameter(name, schema) for name, schema in function.properties.items())
    others = _others(function.parameters, ("type", "properties"))
    return (
        f"\n<function>\n<name>{function.name}</name>{described}"
        f"\n<parameters>{properties}{others}\n</parameters>\n</function>"
    )


def _parameter(name: str, schema: Struct) -> str:
    kinds = types(schema)
    kind = kinds[0] if len(kinds) == 1 else go_json(kinds)
    typed = f"\n<type>{kind}</type>" if kinds else ""
    described = f"\n<description>{schema['description']}</description>" if "description" in schema else ""
    others = _others(schema, ("type", "description"))
    return f"\n<parameter>\n<name>{name}</name>{typed}{described}{others}\n</parameter>"


def _others(schema: Struct, written: Collection[str]) -> str:
    """Every other key as an element; Ollama writes them in an order that changes from call to call."""
    return "".join(
        f"\n<{key}>{go_json(value, sort_keys=True) if isinstance(value, (dict, list)) else go_value(value)}</{key}>"
        for key, value in schema.items()
        if key not in written and value is not None
    )


def _turn(talk: Sequence[Message], at: int) -> str:
    message = talk[at]
    if message.role == "tool":
        return tool_results(talk, at, message.content)
    if message.role != "assistant":
        return turn(message.role, message.content)
    if not message.tool_calls:
        return f"{START}assistant\n{message.content}" + ("" if at == len(talk) - 1 else END)
    content = f"{message.content}\n" if message.content else ""
    calls = "".join("\n" + xml_call(call) for call in message.tool_calls)
    return turn("assistant", content + calls)


RENDERERS = {"qwen3-coder": render}
