"""Conversations to prompts: both forms of Go templates, merging, cutting, dropping messages, and Jinja."""

from __future__ import annotations

import pytest

from ollama_nb.api.messages import Message, Think, ToolCall
from ollama_nb.api.requests import PromptJob
from ollama_nb.template.parser import parse
from ollama_nb.template.prompt import collate, cut_at_response, keep_messages, render

USER = Message("user", "hi")
ANSWER = Message("assistant", "Yes")


def go(template: str, *messages: Message, think: Think = None, **more: object) -> str:
    (prompt,) = render(PromptJob(kind="go", template=template, messages=messages, think=think, **more))  # type: ignore[arg-type]
    return prompt


# Messages form


def test_messages_form_is_rendered_once_and_not_cut() -> None:
    template = "{{ .System }}|{{ range .Messages }}{{ .Role }}:{{ .Content }};{{ end }}{{ .Response }}A:{{ .Foo }}"
    assert go(template, Message("system", "S"), USER) == "S|system:S;user:hi;A:<no value>"


def test_adjacent_messages_of_one_role_are_merged_with_images_and_calls() -> None:
    call = ToolCall("f", {})
    messages = (
        Message("system", "a"),
        Message("user", "one", images=(b"1",)),
        Message("user", "two", images=(b"2",)),
        Message("assistant", "x", thinking="t", tool_calls=(call,)),
        Message("assistant", "y", thinking="u"),
        Message("tool", "r1"),
        Message("tool", "r2"),
        Message("system", "b"),
    )
    system, merged = collate(messages)
    assert system == "a\n\nb"
    assert [(m.role, m.content) for m in merged] == [
        ("system", "a"),
        ("user", "one\n\ntwo"),
        ("assistant", "x\n\ny"),
        ("tool", "r1"),
        ("tool", "r2"),
        ("system", "b"),
    ]
    assert merged[1].images == (b"1", b"2")
    assert (merged[2].tool_calls, merged[2].thinking) == ((call,), "t\n\nu")
    assert messages[1].content == "one"


def test_images_are_numbered_over_the_whole_request() -> None:
    template = "{{ range .Messages }}{{ .Content }};{{ end }}"
    messages = (
        Message("user", "see [img] and", images=(b"a", b"b")),
        Message("assistant", "ok"),
        Message("user", "this", images=(b"c",)),
    )
    assert go(template, *messages) == "[img-1]see [img-0] and;ok;[img-2]this;"


THINK_KEYS = "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}"


def test_images_in_json_are_base64() -> None:
    image = Message("user", "look", images=(b"\x00png",))
    assert go("{{ range .Messages }}{{ json .Images }}{{ json . }}{{ end }}", image).count('["AHBuZw=="]') == 2


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        (None, "false  false"),
        (False, "false  true"),
        (True, "true medium true"),
        ("low", "true low true"),
        ("max", "true max true"),
    ],
)
def test_think_keys_in_every_form(think: Think, expected: str) -> None:
    assert go("{{ if .Messages }}{{ end }}" + THINK_KEYS, USER, think=think) == expected
    assert go(THINK_KEYS, USER, think=think) == expected
    assert go(THINK_KEYS, think=think, prompt="p", suffix="s") == expected


# Legacy form

TURN = "{{ if .System }}S:{{ .System }} {{ end }}U:{{ .Prompt }} A:{{ .Response }}</s>"


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        ("U:{{ .Prompt }} A:{{ .Response }}</s>", (USER,), "U:hi A:"),
        ("U:{{ .Prompt }} A:{{ .Response }}</s>", (USER, ANSWER), "U:hi A:Yes"),
        ("U:{{ .Prompt }} A:{{ $.Response }} tail", (USER, ANSWER), "U:hi A:Yes tail"),
        ("{{ if .Response }}R{{ .Response }}{{ end }}X", (USER, ANSWER), "RYes"),
        ("{{ if .Response }}R{{ .Response }}{{ end }}X", (USER,), ""),
        ("{{ if .Response }}R{{ .Response }}{{ else }}none{{ end }}X", (USER,), ""),
        ("{{ .Prompt }}", (USER,), "hi"),
        ("{{ .Prompt }}", (USER, ANSWER), "hiYes"),
        ("{{ .System }} {{ .Prompt }}", (Message("system", "S"), USER), "S hi"),
        ("{{ json .Prompt }}{{ .Response }}!", (USER,), '"hi"'),
        ('{{ define "u" }}U:{{ . }}{{ end }}{{ template "u" .Prompt }} {{ .Response }}!', (USER,), "U:hi "),
        ("{{ .Prompt }}{{ .Response | printf `[%s]` }}!", (USER, ANSWER), "hiYes"),
        ('{{ printf "<%s>" .Response }}!', (USER, ANSWER), "<Yes>"),
        (TURN, (Message("system", "S"), USER, ANSWER, Message("user", "more")), "S:S U:hi A:Yes</s>U:more A:"),
        (TURN, (USER, Message("system", "S"), Message("user", "b")), "U:hi A:</s>S:S U:b A:"),
        (TURN, (USER, Message("user", "b")), "U:hi\n\nb A:"),
        (TURN, (USER, Message("tool", "ignored"), ANSWER), "U:hi A:Yes"),
        (TURN, (ANSWER, USER), "U: A:Yes</s>U:hi A:"),
    ],
)
def test_legacy_form(template: str, messages: tuple[Message, ...], expected: str) -> None:
    assert go(template, *messages) == expected


def test_the_cut_does_not_change_the_parsed_template() -> None:
    template = parse("{{ .Response }} tail")
    assert len(cut_at_response(template).main) == 1
    assert len(template.main) == 2


# Fill in the middle


def test_fill_in_the_middle() -> None:
    template = "<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ .Response }}|{{ .System }}"
    assert go(template, prompt="def f(", suffix="return") == "<PRE>def f(<SUF>return<MID>|<no value>"
    assert go(template, prompt="", suffix="return") == "<PRE><SUF>return<MID>|<no value>"


# Dropping old messages


def test_drops_keep_system_messages_and_the_last_one() -> None:
    messages = (Message("system", "S"), Message("user", "1"), Message("assistant", "2"), Message("user", "3"))
    assert keep_messages(messages, 0) == messages
    assert [m.content for m in keep_messages(messages, 2)] == ["S", "2", "3"]
    assert [m.content for m in keep_messages(messages, 99)] == ["S", "3"]
    assert keep_messages((), 3) == ()
    job = PromptJob(
        kind="go", template="{{ range .Messages }}{{ .Content }}{{ end }}", messages=messages, drops=(0, 2, 3)
    )
    assert render(job) == ("S123", "S23", "S3")


def test_drops_in_jinja() -> None:
    messages = (Message("system", "S"), Message("user", "1"), Message("assistant", "2"), Message("user", "3"))
    job = PromptJob(
        kind="jinja", template="{% for m in messages %}{{ m.content }}{% endfor %}", messages=messages, drops=(0, 3)
    )
    assert render(job) == ("S123", "S3")
