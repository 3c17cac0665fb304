"""Tool calls for templates that check ids, or the number of calls in a turn."""

from __future__ import annotations

import pytest

from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.requests import PromptJob
from ollama_nb.template.chat_template import one_call_each, with_ids
from ollama_nb.template.prompt import render

ASK = Message("user", "ask")
F, G = ToolCall("f", {"a": 1}, id="call_x"), ToolCall("g", {}, id="call_y", index=1)
BOTH = Message("assistant", "Let me see.", thinking="hm", tool_calls=(F, G))
X, Y = Message("tool", "x", tool_call_id="call_x"), Message("tool", "y", tool_call_id="call_y")


def ids(messages: list[Message]) -> list[str]:
    return [
        id_ for message in messages for id_ in [*(call.id for call in message.tool_calls), message.tool_call_id] if id_
    ]


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        ([ASK, BOTH, X, Y], [1, 2, 1, 2]),
        ([ASK, BOTH, Y, X], [1, 2, 2, 1]),
        ([BOTH, Message("tool", "x"), Message("tool", "y")], [1, 2, 1, 2]),
        ([BOTH, Y, Message("tool", "x")], [1, 2, 2, 1]),
        ([Message("assistant", tool_calls=(ToolCall("f", {}), ToolCall("g", {}))), Message("tool"), Message("tool")],
         [1, 2, 1, 2]),
        ([BOTH, X, Y, BOTH, X, Y], [1, 2, 1, 2, 3, 4, 3, 4]),
        ([Message("tool", "of nobody", tool_call_id="z")], []),
    ],
)  # fmt: skip
def test_ids_have_nine_characters_and_results_keep_their_calls(talk: list[Message], expected: list[int]) -> None:
    assert ids(with_ids(talk)) == [f"call0000{at}" for at in expected]


def test_calls_of_one_turn_become_turns_with_their_results() -> None:
    first, second = (
        Message("assistant", "Let me see.", thinking="hm", tool_calls=(F,)),
        Message("assistant", tool_calls=(G,)),
    )
    assert one_call_each([ASK, BOTH, Y, X, ASK]) == [ASK, first, X, second, Y, ASK]
    nameless = [Message("tool", "x"), Message("tool", "y")]
    assert one_call_each([BOTH, *nameless]) == [first, nameless[0], second, nameless[1]]
    assert one_call_each([BOTH, Y]) == [first, Y, second]  # calls without a result are kept
    assert one_call_each([BOTH, X, Y, ASK, X]) == [first, X, second, Y, ASK, X]
    assert one_call_each([first, X]) == [first, X]


CALLS = "{% for c in m.tool_calls %}{{ c.id + ':' + c.function.name }}{% endfor %}"
SHOWN = "{% if m.tool_calls %}" + CALLS + "{% else %}{{ m.content }}@{{ m.tool_call_id }}{% endif %};"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("m.tool_calls and m.tool_calls[0].id | length != 9", "ask@;call00001:fcall00002:g;x@call00001;y@call00002;"),
        ("m.tool_calls and m.tool_calls | length != 1", "ask@;call00001:f;x@call00001;call00002:g;y@call00002;"),
    ],
)
def test_strict_templates_render(rule: str, expected: str) -> None:
    rule_text = "{% if " + rule + " %}{{ raise_exception('strict') }}{% endif %}"
    template = "{% for m in messages %}" + rule_text + SHOWN + "{% endfor %}"
    assert render(PromptJob(kind="jinja", template=template, messages=(ASK, BOTH, X, Y))) == (expected,)
