"""Render the Jinja chat template of a GGUF: convert the conversation to the form that the template accepts.

Templates do not declare which messages and content they accept, so each is probed once by rendering short
conversations. Content that a template would drop or reject is moved to where it is rendered, so no text is lost. All
values passed to a template are copies, because templates may change them.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ollama_nb.api.messages import Message, Tool, ToolCall
from ollama_nb.api.requests import PromptJob
from ollama_nb.errors import TemplateError
from ollama_nb.template import jinja

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""The chat template of a GGUF without one (as in llama-server)."""

KEEP_THINKING = {
    "preserve_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
    "drop_thinking": False,
}
"""The variables by which templates keep the thinking of earlier turns. It makes prompts share longer prefixes."""

_PROBE = "\uf8ffprobe\uf8ff"
"""Text with private-use characters, which no conversation contains."""
_READS_THINKING = re.compile(r"""\.thinking\b|\[['"]thinking['"]\]""")


def render(job: PromptJob, messages: Sequence[Message]) -> str:
    """Render the prompt for the model's next turn, or up to the end of a trailing assistant message.

    Raises TemplateError.
    """
    text = job.template or CHATML
    trailing = messages[-1] if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls else None
    if trailing is None:
        return _render(text, job, messages)
    if trailing.content:
        # A probe instead of the content shows where the template begins the answer.
        with suppress(TemplateError):
            rendered = _render(text, job, [*messages[:-1], replace(trailing, content=_PROBE)], next_turn=False)
            before, found, _ = rendered.rpartition(_PROBE)
            if found:
                return before + trailing.content
    return _render(text, job, messages[:-1]) + (trailing.content or trailing.thinking)


def _render(text: str, job: PromptJob, messages: Sequence[Message], *, next_turn: bool = True) -> str:
    first_error: TemplateError | None = None
    for views in _variants(text, _with_known_roles(text, messages)):
        try:
            return jinja.render(text, {**_variables(job), "add_generation_prompt": next_turn, "messages": views})
        except TemplateError as error:
            first_error = first_error or error
    assert first_error is not None  # there is at least one variant
    raise first_error


def _variants(text: str, messages: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages, then variants for templates that reject them."""
    yield _views(text, messages)
    if not any(message.tool_calls for message in messages):
        return
    yield _views(text, messages, as_text=True)  # some templates concatenate arguments with text
    if any(message.tool_calls and message.thinking for message in messages):
        without_thinking = [replace(message, thinking="") for message in messages]
        yield _views(text, without_thinking)  # some accept either content or thinking
    strict = with_ids(messages)
    yield _views(text, strict)  # some check the format of ids
    yield _views(text, one_call_each(strict))  # some accept one call per turn


def _variables(job: PromptJob) -> dict[str, Any]:
    """Return all variables but the messages. ``tools`` is undefined without tools: some templates only check that."""
    today = datetime.date.today()
    variables: dict[str, Any] = {
        "bos_token": job.bos,
        "eos_token": job.eos,
        "date_string": today.strftime("%d %b %Y"),
        "datetime": today.strftime("%b %d %Y"),
        **KEEP_THINKING,
    }
    if job.tools:
        variables["tools"] = [_tool(tool) for tool in job.tools]
    if job.think is not None:
        variables["enable_thinking"] = bool(job.think)
    if isinstance(job.think, str):
        variables |= {"reasoning_effort": job.think, "reasoning_strength": job.think}
    return variables


def _tool(tool: Tool) -> dict[str, Any]:
    """Return a tool with the keys that templates access, empty if the client did not send them."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return deepcopy(dict(tool))
    empty = {"name": "", "description": "", "parameters": {}}
    filled = {name: deepcopy(function.get(name)) or default for name, default in empty.items()}
    return {"type": tool.get("type") or "function", "function": filled}


# What a template accepts


@dataclass(frozen=True, slots=True)
class AcceptedInput:
    """What a template accepts.

    ``parts``: content is a list of typed parts. ``system``, ``developer``: messages with that role are rendered.
    ``thinking``: thinking is in the key ``thinking``. ``thinking_parts``: thinking is a part of the content.
    """

    parts: bool
    system: bool
    developer: bool
    thinking: bool
    thinking_parts: bool


@lru_cache(maxsize=16)
def accepted_input(text: str) -> AcceptedInput:
    """Find out what a template accepts by rendering short conversations."""
    question = Message("user", _PROBE)
    parts = not _renders_probe(text, [_view(question)]) and _renders_probe(text, [_view(question, parts=True)])
    system = _renders_probe(
        text, [_view(Message("system", _PROBE), parts=parts), _view(Message("user", "x"), parts=parts)]
    )
    thinking, thinking_parts = bool(_READS_THINKING.search(text)), "['type'] == 'thinking'" in text
    return AcceptedInput(parts, system, "<|channel|>" in text, thinking, thinking_parts)


def _renders_probe(text: str, messages: list[dict[str, Any]]) -> bool:
    variables = {"messages": messages, "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
    try:
        return _PROBE in jinja.render(text, variables)
    except TemplateError:
        return False


def _with_known_roles(text: str, messages: Sequence[Message]) -> list[Message]:
    """Replace roles that the template does not render. A system text becomes the beginning of the next message."""
    accepted = accepted_input(text)
    renamed = list(messages)
    if not accepted.developer:
        renamed = [replace(message, role="system") if message.role == "developer" else message for message in renamed]
    if len(renamed) > 1 and renamed[0].role == "system" and not accepted.system:
        system, first, *rest = renamed
        renamed = [replace(first, content=f"{system.content}\n{first.content}"), *rest]
    return renamed


# Messages as template values


def _views(text: str, messages: Sequence[Message], *, as_text: bool = False) -> list[dict[str, Any]]:
    accepted = accepted_input(text)
    return [
        _view(
            message,
            parts=accepted.parts or (accepted.thinking_parts and message.role == "assistant"),
            thinking=accepted.thinking,
            as_text=as_text,
        )
        for message in messages
    ]


def _view(message: Message, *, parts: bool = False, thinking: bool = False, as_text: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": _parts(message) if parts else message.content}
    if message.thinking:
        out["reasoning_content"] = message.thinking
        if thinking:
            out["thinking"] = message.thinking
    if message.tool_name:
        out["name"] = message.tool_name
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        out["tool_calls"] = [_call(call, as_text) for call in message.tool_calls]
    return out


def _parts(message: Message) -> list[dict[str, str]]:
    thinking = [{"type": "thinking", "thinking": message.thinking}] if message.thinking else []
    return [*thinking, {"type": "text", "text": message.content}]


def _call(call: ToolCall, as_text: bool) -> dict[str, Any]:
    arguments = jinja.Arguments(deepcopy(dict(call.arguments)))
    function = {"name": call.name, "arguments": str(arguments) if as_text else arguments}
    return {"type": "function", "function": function, "id": call.id}


# Tool calls for templates that check ids, or the number of calls in a turn


def with_ids(messages: Sequence[Message]) -> list[Message]:
    """Give every call an id of nine letters and digits, and every result the id of its call.

    Results without a known id are assigned to the calls in order: clients need not send ids.
    """
    out: list[Message] = []
    renamed: dict[str, str] = {}
    waiting: list[str] = []
    count = 0
    for message in messages:
        if message.tool_calls:
            calls: list[ToolCall] = []
            for call in message.tool_calls:
                count += 1
                calls.append(replace(call, id=f"call{count:05}"))
                renamed[call.id] = calls[-1].id
            waiting = [call.id for call in calls]
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            known = renamed.get(message.tool_call_id, "") if message.tool_call_id else ""
            found = known or (waiting[0] if waiting else "")
            waiting = [id_ for id_ in waiting if id_ != found]
            message = replace(message, tool_call_id=found)
        out.append(message)
    return out


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Split a turn with several calls into one turn per call, each followed by its result."""
    out: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if len(message.tool_calls) < 2:
            out.append(message)
            continue
        results: list[Message] = []
        while at < len(messages) and messages[at].role == "tool":
            results.append(messages[at])
            at += 1
        out += _pairs(message, results)
    return out


def _pairs(message: Message, results: list[Message]) -> list[Message]:
    out: list[Message] = []
    for index, call in enumerate(message.tool_calls):
        alone = replace(message, tool_calls=(call,))
        out.append(alone if index == 0 else replace(alone, content="", thinking="", images=()))
        answer = next((result for result in results if call.id and result.tool_call_id == call.id), None)
        answer = answer or (results[0] if results else None)
        if answer is not None:
            results.remove(answer)
            out.append(answer)
    return out + results
