"""gpt-oss: the harmony format, messages with a role, a channel and a recipient in their header.

Prompts come from templates. A tool's name goes into the prompt as a TypeScript identifier; the parser maps it back.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ollama_nb.api.messages import Tool
from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.arguments import parse_object, tool_name
from ollama_nb.reply.call_grammar import CallGrammar, Part, Verbatim, calls, json_arguments, series
from ollama_nb.reply.output import MalformedCall, ParsedCall, ReplyContext
from ollama_nb.reply.regions import CONTENT, THINKING, CallRegion, Exit, HeaderRegion, Region, RegionParser, TextRegion

START, MESSAGE, END = "<|start|>", "<|message|>", "<|end|>"
CHANNEL, CONSTRAIN = "<|channel|>", "<|constrain|>"
_CALL = "<|call|>"
_FINAL = f"{CHANNEL}final{MESSAGE}"
_BUILT_IN = ("browser.search", "browser.open", "browser.find", "python")


class Heading(NamedTuple):
    role: str = ""
    channel: str = ""
    recipient: str = ""


def parse_heading(text: str) -> Heading:
    """Parse ``role``, ``<|channel|>name``, ``to=recipient`` and ``<|constrain|>type``, in any order that models use."""
    text = text.replace(CONSTRAIN, " " + CONSTRAIN, 1)
    before, marked, after = text.partition(CHANNEL)
    channel = ""
    if marked:
        words = after.split(None, 1) if not after[:1].isspace() else ["", after]
        channel, rest = (words[0] if words else ""), " ".join(words[1:])
        text = f"{before} {rest}" if not channel or before.strip() else rest
    role, *more = text.split() or [""]
    if role.startswith("to="):
        return Heading("tool", channel, role[3:])
    return Heading(role, channel, more[0][3:] if more and more[0].startswith("to=") else "")


class ToolNames:
    """Maps the names of tools to valid TypeScript identifiers and back. Names that become equal get a number."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._prompt_names: dict[str, str] = {}
        self._own: dict[str, str] = {}
        for name in filter(None, map(tool_name, tools)):
            prompt_name = name if name in _BUILT_IN else self._free(_allowed(name))
            self._prompt_names[name], self._own[prompt_name] = prompt_name, name

    def in_prompt(self, name: str) -> str:
        return self._prompt_names.get(name, name)

    def own(self, recipient: str) -> str:
        """Return the client's name of the tool that a message is addressed to."""
        name = recipient.removeprefix("functions.")
        return self._own.get(name, name)

    def _free(self, name: str) -> str:
        count, free = 1, name
        while free in self._own:
            count += 1
            free = f"{name}_{count}"
        return free


def _allowed(name: str) -> str:
    marks = {" ": "_", "-": "_", ".": "_", "_": "_", "$": "$"}
    kept = "".join(marks.get(char, char if unicodedata.category(char)[0] == "L" or char.isdecimal() else "")
                   for char in name)  # fmt: skip
    return f"_{kept}" if kept[:1].isdecimal() else kept or "unnamed"


def renamed(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Return the tools under their names in the prompt."""
    names = ToolNames(tools)
    return tuple(_with_name(tool, names.in_prompt(tool_name(tool))) if tool_name(tool) else tool for tool in tools)


def _with_name(tool: Tool, name: str) -> Tool:
    return {**tool, "function": {**tool["function"], "name": name}}


def _create_parser(context: ReplyContext) -> RegionParser:
    """The prompt ends inside a header of the assistant, or inside its answer or its thinking."""
    end = Exit("between", before=False)
    call = _CallRegion(ToolNames(context.tools), {END: end, _CALL: end})
    regions: dict[str, Region] = {
        "first": HeaderRegion(MESSAGE, partial(_route, call, "assistant"), _plausible, "content", _FINAL),
        "header": HeaderRegion(MESSAGE, partial(_route, call, ""), _anything, "content", "assistant" + _FINAL),
        "between": TextRegion(CONTENT, {START: Exit("header", after=False)}, f"{START}assistant{_FINAL}"),
        "thinking": TextRegion(
            THINKING, {END: end}, f"{END}{START}assistant{_FINAL}", thinking_end=f"{END}{START}assistant"
        ),
        "content": TextRegion(CONTENT, {END: end}),
        "call": call,
    }
    last = context.last
    inside = "thinking" if last is not None and last.role == "assistant" and last.thinking else "first"
    return RegionParser(regions, "content" if context.continues else inside)


_HEAD = re.compile(r"\s*(?=\{)")


class _CallRegion(CallRegion):
    """A message to a tool: its text is the arguments."""

    def __init__(self, names: ToolNames, exits: Mapping[str, Exit]) -> None:
        super().__init__(self._arguments, exits, head=_HEAD, name_of=lambda match: names.own(self.recipient))
        self._names = names
        self.recipient = ""

    def _arguments(self, body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
        name = self._names.own(self.recipient)
        found = parse_object(body) if body.strip() else {}
        if found is None:
            return [MalformedCall(body, f"the arguments for {name} are not a JSON object")]
        return [ParsedCall(name, found)]


def _anything(text: str) -> bool:
    return True


def _plausible(text: str) -> bool:
    text = text.lstrip()
    return not text or text.startswith("<") or "to=".startswith(text[:3])


def _route(call: _CallRegion, role: str, header: str) -> tuple[str, str]:
    heading = parse_heading(role + header)
    if heading.channel in ("analysis", "commentary") and heading.recipient:
        call.recipient = heading.recipient
        return "call", ""
    return ("thinking" if heading.channel == "analysis" else "content"), ""


def _call_grammar(context: ReplyContext, parallel: bool) -> CallGrammar:
    """The prompt ends inside a header; each further call is a message of its own."""
    names = ToolNames(context.tools)

    def call(tool: Tool) -> Part:
        name = Verbatim(names.in_prompt(tool_name(tool)))
        header = series(f"{CHANNEL}commentary to=functions.", name, f" {CONSTRAIN}json{MESSAGE}")
        return series(header, json_arguments(tool))

    before = f"{END}{START}assistant" if context.continues else ""
    some = calls(context.tools, call, parallel=parallel, separator=f"{END}{START}assistant")
    return CallGrammar(series(before, some), quoted=True, unquotable=(END, _CALL))


FAMILY = Family(
    parsers={
        "harmony": ParserSpec(
            create=_create_parser,
            thinking=True,
            preserve=(START, END, MESSAGE, CHANNEL, CONSTRAIN),
            offered=renamed,
            think_levels={"max": "high"},
            call_grammar=_call_grammar,
            answer_marker=_FINAL,
        )
    },
    model_families=frozenset({"gptoss", "gpt-oss"}),
    capabilities=frozenset({"thinking"}),
    template_parser="harmony",
    template_markers=(START, END),
)
