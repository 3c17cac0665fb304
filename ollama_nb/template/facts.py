"""Properties of templates, found in their text: names used, thinking tags, the marker before tool calls.

Nothing is rendered, so the server may do this itself. Results are cached. Raises TemplateError for a Go template that
does not parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ollama_nb.template.parser import (
    Action,
    Block,
    Branch,
    ChainNode,
    Field,
    If,
    Node,
    Operand,
    Pipe,
    Range,
    TemplateCall,
    TextNode,
    With,
    parse,
)

THINK_TAGS = ("<think>", "</think>")  # the usual tags around thinking


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a Go template.

    ``vars`` are the lower-case names of all fields and variables. ``thinking`` is the opening and the closing tag,
    None unless both are known. ``tool_marker`` is the text before tool calls, None without tools. ``tool_roundtrip``:
    results of tools are rendered.
    """

    vars: frozenset[str]
    thinking: tuple[str, str] | None
    tool_marker: str | None
    tool_roundtrip: bool

    @property
    def tools(self) -> bool:
        return "tools" in self.vars

    @property
    def insert(self) -> bool:
        return "suffix" in self.vars


@dataclass(frozen=True, slots=True)
class JinjaFacts:
    tools: bool
    thinking: bool
    tool_roundtrip: bool
    tool_marker: str | None


@lru_cache(maxsize=64)
def facts(text: str) -> Facts:
    """Inspect a Go template."""
    template = parse(text)
    names = template.vars
    if "messages" not in names:
        names |= {"response"}  # such templates are completed with {{ .Response }}
    tools = "tools" in names
    return Facts(
        names,
        _thinking_tags(template.main),
        _tool_marker(template.main) if tools else None,
        tools and "toolcalls" in names and bool(_GO_ROUNDTRIP.search(text)),
    )


@lru_cache(maxsize=64)
def jinja_facts(text: str) -> JinjaFacts:
    """Inspect a Jinja chat template by searching its text, as Ollama does."""
    tools = "tools" in text or "tool_call" in text
    tagged = all(tag in text for tag in THINK_TAGS)
    splits = bool(_JINJA_SPLIT.search(text)) and "reasoning_content" not in text and "<SPECIAL_12>" not in text
    calls = "tool_calls" in text or "assistant_tool_call" in text
    marker = next((mark for mark in _JINJA_MARKERS if mark in text), "{") if tools else None
    return JinjaFacts(tools, tagged or splits, tools and calls and bool(_JINJA_ROUNDTRIP.search(text)), marker)


def jinja_preferred(go: Facts, jinja: JinjaFacts) -> bool:
    """Whether the GGUF's chat template supports more than the Go template (with OLLAMA_GO_TEMPLATE unset)."""
    go_supports = {name for name in ("tools", "insert") if getattr(go, name)} | ({"thinking"} if go.thinking else set())
    jinja_supports = {name for name in ("tools", "thinking") if getattr(jinja, name)}
    if len(jinja_supports) > len(go_supports):
        return jinja.tool_roundtrip or not go.tool_roundtrip
    return jinja_supports == go_supports and "tools" in go_supports and jinja.tool_roundtrip and not go.tool_roundtrip


_GO_ROUNDTRIP = re.compile(r'eq \.Role "tool"|tool_response|TOOL_RESULTS')
_JINJA_SPLIT = re.compile(r"""content\.split\((['"])</think>\1\)""")
_JINJA_ROUNDTRIP = re.compile(
    r"""tool_response|tool_results|role['"]\] == ['"]tool['"]|message\.role == ['"]tool['"]|ipython"""
)
_JINJA_MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|tool_call_start|>", "<｜tool▁calls▁begin｜>", "<|START_ACTION|>")


# Thinking tags: the text around `.Thinking` in the loop over `.Messages`


def _thinking_tags(main: Block) -> tuple[str, str] | None:
    opening = closing = ""
    for block in _blocks_with_thinking(main, None):
        if isinstance(block[0], TextNode):
            opening = block[0].text.strip()
        if isinstance(block[-1], TextNode):
            closing = block[-1].text.strip()
    return (opening, closing) if opening and closing else None


def _blocks_with_thinking(block: Block, loop: Range | None) -> Iterator[Block]:
    """Yield the innermost block around each ``.Thinking`` in a range over ``.Messages``, in document order."""
    for node in block:
        if not isinstance(node, Action | TemplateCall | Branch):
            continue
        inner = node if isinstance(node, Range) else loop
        if inner is not None and _uses(inner.pipe, "Messages"):
            yield from (block for field in _fields(node.pipe) if field.path[0] == "Thinking")
        if isinstance(node, Branch):
            yield from _blocks_with_thinking(node.body, inner)
            yield from _blocks_with_thinking(node.orelse or (), inner)


def _uses(pipe: Pipe, name: str) -> bool:
    return any(field.path[0] == name for field in _fields(pipe))


def _fields(node: Operand) -> Iterator[Field]:
    if isinstance(node, Field):
        yield node
    elif isinstance(node, Pipe):
        for command in node.commands:
            for arg in command.args:
                yield from _fields(arg)
    elif isinstance(node, ChainNode):
        return  # Ollama ignores these too


# Tool-call marker: the text before the first call


def _tool_marker(main: Block) -> str:
    """Return the first text inside ``if .ToolCalls``, else inside ``range .ToolCalls``, else ``{``.

    Ollama examines the first such ``if`` only. This also examines the next ones and skips branches with nothing but
    white space, which finds the markers of templates that separate calls by an ``{{ if $i }}`` newline.
    """
    for kind in (If, Range):
        for branch in _tool_branches(main, kind):
            text = _first_text(branch.body)
            if text:
                return text.replace("\r\n", "\n").partition("{")[0].strip() or "{"
    return "{"


def _tool_branches(block: Block, kind: type[Branch]) -> Iterator[Branch]:
    for node in block:
        if isinstance(node, If | Range | With):
            if isinstance(node, kind) and _has_tool_calls(node.pipe):
                yield node
            yield from _tool_branches(node.body, kind)
            yield from _tool_branches(node.orelse or (), kind)


def _has_tool_calls(pipe: Pipe) -> bool:
    args = (arg for command in pipe.commands for arg in command.args)
    return any(isinstance(arg, Field) and "ToolCalls" in arg.path for arg in args)


def _first_text(block: Block) -> str | None:
    """Return the first text that is not blank, empty if a value is printed before it, None if there is no text."""
    for node in block:
        found = _text_of(node)
        if found is not None:
            return found
    return None


def _text_of(node: Node) -> str | None:
    if isinstance(node, TextNode):
        return node.text if node.text.strip() else None
    if isinstance(node, Branch):
        found = _first_text(node.body)
        return found if found is not None else _first_text(node.orelse or ())
    if isinstance(node, Action) and node.pipe.names:
        return None  # a declaration prints nothing
    return ""
