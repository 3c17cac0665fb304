"""LFM2: ChatML with images, tools as a JSON list, calls in Python's form before the content."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.template.renderers.chatml import END, START, continues, turn
from ollama_nb.template.renderers.images import Images
from ollama_nb.template.renderers.schema import function_of, tool_json
from ollama_nb.template.renderers.spelling import by_name, plain, trim

BOS = "<|startoftext|>"
_CALLS = "<|tool_call_start|>"
_RESPONSE = "<|tool_response_start|>"


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, thinks: bool) -> str:
    """``thinks``: the variant writes thoughts, and past ones stay in the prompt while thinking is on."""
    images = Images()
    system, talk = "", messages
    if messages and messages[0].role == "system":
        system, talk = messages[0].content, messages[1:]
        images.skip(messages[0])
    out = [BOS, _header(system, tools)]
    answers = [at for at, message in enumerate(talk) if message.role == "assistant"]
    for at, message in enumerate(talk):
        content = images.tagged(message)
        if message.role == "assistant":
            forget = not (thinks and think) and at != answers[-1]
            content = _answer(message, content, thinks=thinks, forget=forget)
        elif message.role == "tool" and _RESPONSE not in content:
            content = f"{_RESPONSE}{content}<|tool_response_end|>"
        open_ = at == len(talk) - 1 and message.role == "assistant"
        out.append(f"{START}{message.role}\n{content}{'' if open_ else END}")
    return "".join(out) + ("" if continues(messages) else f"{START}assistant\n")


def _header(system: str, tools: Sequence[Tool]) -> str:
    listed = ""
    if tools:
        schemas = ", ".join(map(_schema, tools))
        listed = f"List of tools: <|tool_list_start|>[{schemas}]<|tool_list_end|>"
    text = "\n".join(filter(None, (system, listed)))
    return turn("system", text) if text else ""


def _schema(tool: Tool) -> str:
    function = function_of(tool)
    return plain(tool_json(tool)["function"] if function.name else tool_json(tool))


def _answer(message: Message, content: str, *, thinks: bool, forget: bool) -> str:
    """Thinking, calls, content; with ``forget``, all up to the end of the thinking is left out."""
    if message.tool_calls and _CALLS not in content:
        calls = ",".join(map(_call, message.tool_calls))
        content = f"{_CALLS}[{calls}]<|tool_call_end|>{chr(10) if trim(content) else ''}{content}"
    if thinks and message.thinking and "</think>" not in content:
        content = f"<think>{message.thinking}</think>{content}"
    if forget and "</think>" in content:
        content = trim(content.rpartition("</think>")[2])
    return content


def _call(call: ToolCall) -> str:
    return f"{call.name}({','.join(f'{key}={plain(value)}' for key, value in by_name(call.arguments))})"


RENDERERS = {
    "lfm2": partial(render, thinks=False),
    "lfm2-thinking": partial(render, thinks=True),
}
