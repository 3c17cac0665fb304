"""Conversations through chat templates of all kinds: each gets the input that it accepts, and no text is lost."""

from __future__ import annotations

import datetime

import pytest

from ollama_nb.api.messages import Message, Think, ToolCall
from ollama_nb.api.requests import PromptJob
from ollama_nb.errors import TemplateError
from ollama_nb.template.chat_template import CHATML, accepted_input
from ollama_nb.template.prompt import render

USER = Message("user", "hi")
ANSWER = Message("assistant", "Yes")
SYSTEM = Message("system", "Be kind.")
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def chat(template: str, *messages: Message, think: Think = None, **more: object) -> str:
    (prompt,) = render(PromptJob(kind="jinja", template=template, messages=messages, think=think, **more))  # type: ignore[arg-type]
    return prompt


def test_without_a_template_chatml_is_used() -> None:
    messages = (Message("system", "Be kind."), USER)
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat("", *messages) == chat(CHATML, *messages) == expected


def test_a_trailing_assistant_message_is_continued() -> None:
    assert chat(CHATML, USER, ANSWER).endswith("<|im_start|>assistant\nYes")


def test_jinja_gets_think_only_if_the_request_sets_it() -> None:
    on, effort = "{{ enable_thinking is defined }} {{ enable_thinking }}", "{{ reasoning_effort is defined }}"
    template = on + " " + effort + " {{ reasoning_effort }}"
    assert chat(template, USER) == "False  False "
    assert chat(template, USER, think=False) == "True False False "
    assert chat(template, USER, think=True) == "True True False "
    assert chat(template, USER, think="low") == "True True True low"


def test_jinja_messages_have_calls_results_and_thinking() -> None:
    template = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
    messages = (
        Message("assistant", "", thinking="hm", tool_calls=(ToolCall("f", {"b": 1, "a": "é<"}, id="call_1"),)),
        Message("tool", "r", tool_name="f", tool_call_id="call_1"),
    )
    assert chat(template, *messages).splitlines() == [
        '{"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [{"type": "function", '
        '"function": {"name": "f", "arguments": {"b": 1, "a": "é<"}}, "id": "call_1"}]}',
        '{"role": "tool", "content": "r", "name": "f", "tool_call_id": "call_1"}',
    ]


CALL = (Message("assistant", "", tool_calls=(ToolCall("f", {"a": 1}),)), Message("tool", "r"))


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("c.function.arguments | tojson", '{"a": 1}'),
        ("c.function.arguments", '{"a": 1}'),
        ("'args: ' + c.function.arguments", 'args: {"a": 1}'),
        ("'args: ' ~ c.function.arguments", 'args: {"a": 1}'),
        ("c.function.arguments.a", "1"),
        ("c.function.arguments is mapping", "True"),
    ],
)
def test_arguments_are_an_object_or_text_as_the_template_needs(use: str, expected: str) -> None:
    template = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ " + use + " }}{% endfor %}{% endfor %}"
    assert chat(template, *CALL) == expected


def test_the_first_error_is_raised_if_no_variant_works() -> None:
    with pytest.raises(TemplateError, match="no tools here"):
        chat("{{ raise_exception('no tools here') }}", *CALL)


def test_calls_with_thinking_for_templates_that_reject_both() -> None:
    template = (
        "{% for m in messages %}{% if m.tool_calls and m.thinking and m.content %}{{ raise_exception('one of them') }}"
        "{% endif %}{{ m.content }}{{ m.thinking }};{% endfor %}"
    )
    call = Message("assistant", "Let me see.", thinking="hm", tool_calls=(ToolCall("f", {}),))
    assert chat(template, USER, call, Message("tool", "r")) == "hi;Let me see.;r;"
    assert chat(template, USER, Message("assistant", "x", thinking="hm"), USER) == "hi;xhm;hi;"


# What a template accepts


PARTS = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}|{% endfor %}"


def test_content_in_parts_for_templates_that_need_it() -> None:
    assert accepted_input(PARTS).parts and not accepted_input(TURNS).parts
    assert chat(PARTS, SYSTEM, USER, ANSWER, USER) == "Be kind.|hi|Yes|hi|"
    both = "{% for m in messages %}{% if m.content is string %}s{{ m.content }}{% else %}p{% endif %}{% endfor %}"
    assert chat(both, USER) == "shi"


def test_thinking_as_a_part_of_the_content() -> None:
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p['type'] == 'thinking' %}[{{ p['thinking'] }}]{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    assert chat(template, USER, Message("assistant", "Yes", thinking="hm"), USER) == "hi[hm]Yeshi"


def test_a_system_text_moves_into_the_next_message_where_templates_drop_it() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
    silent = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    for template in (refusing, silent):
        assert chat(template, SYSTEM, USER) == "<user>Be kind.\nhi<assistant>"
    assert chat(TURNS, SYSTEM, USER) == "<system>Be kind.<user>hi<assistant>"


def test_developer_messages_become_system_messages_where_unknown() -> None:
    developer = Message("developer", "Be brief.")
    assert chat(TURNS, developer, USER) == "<system>Be brief.<user>hi<assistant>"
    assert chat(TURNS + "<|channel|>", developer, USER) == "<developer>Be brief.<user>hi<assistant><|channel|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0].reasoning_content }},{{ messages[0].thinking }}", "hm,hm"),
        ("{{ messages[0] | tojson }}", '{"role": "assistant", "content": "Yes", "reasoning_content": "hm"}'),
        ("{{ preserve_thinking }} {{ clear_thinking }}", "True False"),
    ],
)
def test_thinking_of_earlier_turns(template: str, expected: str) -> None:
    assert chat(template, Message("assistant", "Yes", thinking="hm"), USER) == expected


def test_tools_have_all_keys_and_are_undefined_without_tools() -> None:
    template = "{% if tools is defined %}{{ tools | tojson }}{% endif %}"
    bare = {"type": "function", "function": {"name": "f", "strict": True}}
    assert chat(template, USER) == ""
    assert chat(template, USER, tools=(bare,)) == (
        '[{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]'
    )
    assert chat(template, USER, tools=({"type": "web_search"},)) == '[{"type": "web_search"}]'


def test_a_template_changes_only_its_own_copy() -> None:
    template = "{{ tools[0].function.parameters.required.pop() }}{{ messages.pop().content }}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"required": ["city"]}}}
    job = PromptJob(kind="jinja", template=template, messages=(USER, USER), tools=(tool,), drops=(0, 1))
    assert render(job) == ("cityhi", "cityhi")


def test_dates() -> None:
    today = datetime.date.today()
    around = {today + datetime.timedelta(days) for days in (0, 1)}
    assert chat("{{ date_string }}", USER) in {day.strftime("%d %b %Y") for day in around}
    assert chat("{{ datetime }}", USER) in {day.strftime("%b %d %Y") for day in around}


# A trailing assistant message


THINKER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content | trim }}</s>{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "begun", "expected"),
    [
        (THINKER, Message("assistant", "Yes "), "<assistant><think></think>Yes "),
        (THINKER, Message("assistant", "Yes", thinking="hm"), "<assistant><think>hm</think>Yes"),
        (THINKER, Message("assistant", "", thinking="hm"), "<assistant><think>hm"),
        (TURNS, Message("assistant", "a"), "<assistant>a"),
        ("{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + THINKER, ANSWER,
         "<assistant><think>Yes"),
    ],
)  # fmt: skip
def test_an_answer_is_continued_as_the_template_formats_it(template: str, begun: Message, expected: str) -> None:
    text = chat(template, USER, begun)
    assert text.startswith("<user>hi") and text.removeprefix("<user>hi").removeprefix("</s>") == expected
