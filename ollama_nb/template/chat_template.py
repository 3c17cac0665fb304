"""A conversation in the form that a GGUF's Jinja chat template wants it in.

Rule: a template is asked by trial renders what it takes, once, and no text of the conversation is lost to one that
takes less: what it would leave out or refuse is put where it is read. A template may change what it is given: all of
that is a copy.
Tool calls and their results in the forms that strict chat templates ask for. Pure; nothing said is lost.
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

from ollama_nb.api.chat import PromptJob
from ollama_nb.api.messages import Message, Tool, ToolCall
from ollama_nb.errors import TemplateError
from ollama_nb.template import jinja

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""The chat template of a GGUF that brings none (llama-server's fallback too)."""

KEEP_THINKING = {
    "preserve_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
    "drop_thinking": False,
}
"""What templates call it when thoughts of earlier turns stay. Then a prompt also begins like the one before it."""

_PROBE = "\uf8ffprobe\uf8ff"
"""Words that nobody writes, from the area of Unicode that is nobody's."""
_THOUGHTS = re.compile(r"""\.thinking\b|\[['"]thinking['"]\]""")


def render(job: PromptJob, messages: Sequence[Message]) -> str:
    """The prompt for the model's next turn; a last message of the assistant is gone on with. Raises TemplateError."""
    text = job.template or CHATML
    begun = messages[-1] if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls else None
    if begun is None:
        return _written(text, job, messages)
    if begun.content:
        # The template itself writes what stands before an answer; a mark shows where that begins.
        with suppress(TemplateError):
            marked = _written(text, job, [*messages[:-1], replace(begun, content=_PROBE)], next_turn=False)
            before, mark, _ = marked.rpartition(_PROBE)
            if mark:
                return before + begun.content
    return _written(text, job, messages[:-1]) + (begun.content or begun.thinking)


def _written(text: str, job: PromptJob, messages: Sequence[Message], *, next_turn: bool = True) -> str:
    failed: TemplateError | None = None
    for views in _variants(text, _told(text, messages)):
        try:
            return jinja.render(text, {**_variables(job), "add_generation_prompt": next_turn, "messages": views})
        except TemplateError as error:
            failed = failed or error
    assert failed is not None  # there is one variant at least
    raise failed


def _variants(text: str, messages: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """The messages as they are, then as templates want them that refuse this."""
    yield _views(text, messages)
    if not any(message.tool_calls for message in messages):
        return
    yield _views(text, messages, as_text=True)  # some paste a call's arguments into text
    if any(message.tool_calls and message.thinking for message in messages):
        yield _views(text, [replace(message, thinking="") for message in messages])  # some want one kind of text
    strict = with_ids(messages)
    yield _views(text, strict)  # some look at the form of ids
    yield _views(text, one_call_each(strict))  # some allow one call in a turn


def _variables(job: PromptJob) -> dict[str, Any]:
    """All but the messages. Without tools there is no such variable: some templates ask only whether there is one."""
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
    """A tool as templates look for it: with a description and parameters, be they empty."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return deepcopy(dict(tool))
    empty = {"name": "", "description": "", "parameters": {}}
    told = {name: deepcopy(function.get(name)) or nothing for name, nothing in empty.items()}
    return {"type": tool.get("type") or "function", "function": told}


# What a template takes


@dataclass(frozen=True, slots=True)
class Wants:
    """``parts``: content is a list of typed parts. ``system``, ``developer``: messages in that role are read.

    ``thoughts``: an assistant's thoughts are looked for under ``thinking``. ``thought_parts``: they are a part of its
    content.
    """

    parts: bool
    system: bool
    developer: bool
    thoughts: bool
    thought_parts: bool


@lru_cache(maxsize=16)
def wants(text: str) -> Wants:
    """What a template takes, found out by rendering short conversations."""
    asked = Message("user", _PROBE)
    parts = not _shows(text, [_view(asked)]) and _shows(text, [_view(asked, parts=True)])
    system = _shows(text, [_view(Message("system", _PROBE), parts=parts), _view(Message("user", "x"), parts=parts)])
    thoughts, thought_parts = bool(_THOUGHTS.search(text)), "['type'] == 'thinking'" in text
    return Wants(parts, system, "<|channel|>" in text, thoughts, thought_parts)


def _shows(text: str, messages: list[dict[str, Any]]) -> bool:
    variables = {"messages": messages, "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
    try:
        return _PROBE in jinja.render(text, variables)
    except TemplateError:
        return False


def _told(text: str, messages: Sequence[Message]) -> list[Message]:
    """The messages in roles that the template knows: a system text that it would not show opens the next message."""
    known = wants(text)
    told = list(messages)
    if not known.developer:
        told = [replace(message, role="system") if message.role == "developer" else message for message in told]
    if len(told) > 1 and told[0].role == "system" and not known.system:
        system, first, *rest = told
        told = [replace(first, content=f"{system.content}\n{first.content}"), *rest]
    return told


# Messages as templates see them


def _views(text: str, messages: Sequence[Message], *, as_text: bool = False) -> list[dict[str, Any]]:
    known = wants(text)
    return [
        _view(
            message,
            parts=known.parts or (known.thought_parts and message.role == "assistant"),
            thoughts=known.thoughts,
            as_text=as_text,
        )
        for message in messages
    ]


def _view(message: Message, *, parts: bool = False, thoughts: bool = False, as_text: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": _parts(message) if parts else message.content}
    if message.thinking:
        out["reasoning_content"] = message.thinking
        if thoughts:
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


def with_ids(messages: Sequence[Message]) -> list[Message]:
    """Every call with an id of nine letters and digits, and every result with the id of its call.

    A result whose id is not known answers the calls in their order: clients need not send ids.
    """
    told: list[Message] = []
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
        told.append(message)
    return told


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Several calls of one turn as turns of their own, each with its result behind it."""
    told: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if len(message.tool_calls) < 2:
            told.append(message)
            continue
        results: list[Message] = []
        while at < len(messages) and messages[at].role == "tool":
            results.append(messages[at])
            at += 1
        told += _pairs(message, results)
    return told


def _pairs(message: Message, results: list[Message]) -> list[Message]:
    told: list[Message] = []
    for place, call in enumerate(message.tool_calls):
        alone = replace(message, tool_calls=(call,))
        told.append(alone if place == 0 else replace(alone, content="", thinking="", images=()))
        answer = next((result for result in results if call.id and result.tool_call_id == call.id), None)
        answer = answer or (results[0] if results else None)
        if answer is not None:
            results.remove(answer)
            told.append(answer)
    return told + results
