"""Properties of templates, found without rendering them."""

from __future__ import annotations

import pytest

from ollama_nb.errors import TemplateError
from ollama_nb.template.facts import Facts, JinjaFacts, facts, jinja_facts, jinja_preferred


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ with .Tools }}{{ . }}{{ end }} {{ .Prompt }}", {"prompt", "response", "tools"}),
        ("{{ range $i, $m := .Messages }}{{ $m.Content }}{{ $i }}{{ end }}", {"messages", "$m", "content", "$i"}),
        ("{{ (index .Tools 0).Function }}", {"response"}),
        ("{{ printf `%s` (json .Messages) }}", {"messages"}),
        ("{{ .Messages }}{{ define `t` }}{{ .Suffix }}{{ end }}", {"messages", "suffix"}),
        ("{{ if .A }}{{ else }}{{ .B.C }}{{ end }}{{ .Response }}", {"a", "b", "c", "response"}),
        ("{{ template `t` .X }}{{ define `t` }}{{ end }}", {"x", "response"}),
    ],
)
def test_vars(template: str, expected: set[str]) -> None:
    assert facts(template).vars == expected


THINK = "{{ range .Messages }}A{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (THINK, ("<think>", "</think>")),
        (THINK.replace("<think>", "\n<reason>\n").replace("</think>", "\n</reason>\n\n"), ("<reason>", "</reason>")),
        (THINK.replace(".Messages", "$.Messages"), None),
        (THINK.replace("range .Messages", "range $m := .Messages").replace(".Thinking", "$m.Thinking"), None),
        ("{{ range .Messages }}{{ range .Other }}<think>{{ .Thinking }}</think>{{ end }}{{ end }}", None),
        ("{{ range .Messages }}{{ with .Thinking }}<think>{{ . }}</think>{{ end }}{{ end }}", None),
        ("{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ .Content }}{{ end }}{{ end }}", None),
        ("{{ .Thinking }}", None),
    ],
)
def test_thinking_tags(template: str, expected: tuple[str, str] | None) -> None:
    assert facts(template).thinking == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('<tool_call>{{ range .ToolCalls }}{"name"{{ end }}', "<tool_call>"),
        ('{{ range .ToolCalls }}<tool_call>{"name": {{ end }}', "<tool_call>"),
        ("[TOOL_CALLS] [{{ range .ToolCalls }}{{ end }}", "[TOOL_CALLS] ["),
        ('{{ range .ToolCalls }}{"name"{{ end }}', "{"),
        ("[{{ range .ToolCalls }}{{ end }}", "["),
        ("Action: ```json\n[{{ range .ToolCalls }}{{ end }}", "Action: ```json\n["),
        ("Action: ```json", "Action: ```json"),
        ("<|tool▁calls▁begin|>{{ range .ToolCalls }}", "<|tool▁calls▁begin|>"),
        ("{{ range .ToolCalls }}{{ .Function.Name }}<call>{{ end }}", "{"),
        ("\n", "{"),
    ],
)
def test_tool_marker(body: str, expected: str) -> None:
    ends = "{{ end }}" * (body.count("{{ range") - body.count("{{ end }}"))
    template = "{{ .Tools }}{{ range .Messages }}{{ if .Content }}x{{ else if .ToolCalls }}" + body + ends
    assert facts(template + "{{ end }}{{ end }}").tool_marker == expected


def test_tool_marker_after_a_blank_separator() -> None:
    template = (
        "{{ .Tools }}{{ range .Messages }}{{ if .Content }}{{ .Content }}{{ if .ToolCalls }}\n{{ end }}{{ end }}"
        "{{ range $i, $c := .ToolCalls }}{{ if $i }}\n{{ end }}<call>{{ . }}</call>{{ end }}{{ end }}"
    )
    assert facts(template).tool_marker == "<call>"


def test_no_tools_no_marker() -> None:
    assert facts("{{ .Prompt }}").tool_marker is None
    assert facts("{{ .Tools }}").tool_marker == "{"


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(TemplateError):
        facts("{{ if }}")


@pytest.mark.parametrize(
    ("text", "tools", "thinking", "roundtrip"),
    [
        ("{{ messages }}", False, False, False),
        ("{% if tools %}{% endif %}", True, False, False),
        ("<think> </think>", False, True, False),
        ("{{ content.split('</think>')[-1] }}", False, True, False),
        ('{{ content.split("</think>")[-1] }}', False, True, False),
        ("{{ content.split('</think>')[-1] }} reasoning_content", False, False, False),
        ("{{ content.split('</think>')[-1] }} <SPECIAL_12>", False, False, False),
        ("message.tool_calls message['role'] == 'tool'", True, False, True),
        ('message.tool_calls message.role == "tool"', True, False, True),
        ("message.tool_calls", True, False, False),
        ("tool_response", False, False, False),
    ],
)
def test_jinja_facts(text: str, tools: bool, thinking: bool, roundtrip: bool) -> None:
    known = jinja_facts(text)
    assert (known.tools, known.thinking, known.tool_roundtrip) == (tools, thinking, roundtrip)


def test_jinja_tool_marker() -> None:
    assert jinja_facts("tools <tool_call>").tool_marker == "<tool_call>"
    assert jinja_facts("tools [TOOL_CALLS]").tool_marker == "[TOOL_CALLS]"
    assert jinja_facts("tools").tool_marker == "{"
    assert jinja_facts("").tool_marker is None


def go(*names: str, thinking: bool = False, roundtrip: bool = False) -> Facts:
    return Facts(frozenset(names), ("<t>", "</t>") if thinking else None, "{", roundtrip)


def jinja(*, tools: bool = False, thinking: bool = False, roundtrip: bool = False) -> JinjaFacts:
    return JinjaFacts(tools, thinking, roundtrip, "{")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (go(), jinja(), False),
        (go(), jinja(tools=True), True),
        (go("tools", "suffix"), jinja(tools=True, thinking=True), False),
        (go("tools", roundtrip=True), jinja(tools=True, thinking=True), False),
        (go("tools", roundtrip=True), jinja(tools=True, thinking=True, roundtrip=True), True),
        (go("tools"), jinja(tools=True, roundtrip=True), True),
        (go("tools"), jinja(tools=True), False),
        (go("suffix"), jinja(tools=True, roundtrip=True), False),
        (go(thinking=True), jinja(thinking=True, roundtrip=True), False),
    ],
)
def test_which_template_is_preferred(one: Facts, other: JinjaFacts, expected: bool) -> None:
    assert jinja_preferred(one, other) is expected
