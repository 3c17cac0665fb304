"""Tool calls and their results in the forms that strict chat templates ask for. Pure; nothing said is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ollama_nb.api.messages import Message, ToolCall


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
