"""Which tools a chat offers, and the constraint of a reply that must call one of them.

A forced call is written in the model's own notation: that of its family, or the one that its template shows. A model
whose template has no tools gets a description of them in a system message, and answers in plain JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import Message, Tool, ToolCall
from ollama_nb.api.requests import ChatRequest, PromptJob
from ollama_nb.errors import BadRequest, TemplateError, UnknownTool
from ollama_nb.reply import call_grammar
from ollama_nb.reply.arguments import tool_name
from ollama_nb.reply.call_grammar import CallGrammar, Part, Verbatim, calls, json_arguments, series
from ollama_nb.reply.generic import TemplateReplyParser
from ollama_nb.service.backend import Backend
from ollama_nb.service.generation import Generation
from ollama_nb.template.formatting import spaced, tool_json


def offered_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """The tools that the model may call. Raises UnknownTool, and BadRequest for a forced call without tools."""
    choice = request.tool_choice
    known = [tool_name(tool) for tool in request.tools]
    unknown = next((name for name in choice.names if name not in known), None)
    if unknown is not None:
        listed = ", ".join(f'"{name}"' for name in known)
        offered = f"the tools of the request are {listed}" if known else "the request has no tools"
        raise UnknownTool(f'tool_choice: there is no tool "{unknown}"; {offered}')
    if choice.mode == "required" and not known:
        raise BadRequest("tool_choice requires a tool call, but the request has no tools")
    if choice.mode == "none":
        return ()
    return tuple(tool for tool in request.tools if not choice.names or tool_name(tool) in choice.names)


async def with_forced_call(
    backend: Backend, generation: Generation, *, renders_tools: bool, parallel: bool
) -> Generation:
    """The generation whose reply is a call of one of ``generation.reply.tools``, or several if ``parallel``.

    ``renders_tools``: the model's template shows tools to the model. Raises BadRequest for tools that cannot be
    constrained.
    """
    reply = generation.reply
    if renders_tools and reply.parser is not None and reply.parser.call_grammar is not None:
        forced = replace(reply, think=False)
        grammar = reply.parser.call_grammar(forced.context, parallel)
    else:
        marker = (reply.tool_marker or "{") if renders_tools else "[" if parallel else "{"
        notation = await _notation_of_template(backend, generation, marker) if renders_tools else None
        forced = replace(reply, thinking=None, parser=None, tool_marker=marker)
        grammar = (notation or CallNotation.of_marker(marker)).grammar(reply.tools, parallel=parallel)
    reply = replace(reply, forced=forced, describes_tools=not renders_tools)
    return replace(generation.asking(format=call_grammar.encode(grammar)), reply=reply)


def with_tools_described(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """The conversation with the tools in its system message, for a template without tools."""
    listed = "\n".join(spaced(tool_json(tool)) for tool in tools)
    text = (
        f"You can call these functions:\n{listed}\n\nAnswer with function calls only, written as JSON: "
        '{"name": <name of the function>, "arguments": <JSON object>}'
    )
    if messages and messages[0].role == "system":
        first = replace(messages[0], content=f"{messages[0].content}\n\n{text}")
        return (first, *messages[1:])
    return (Message("system", text), *messages)


# The notation of a template: two calls are rendered, and what surrounds their names and arguments is taken over

_ANSWER = "sample answer"
_SAMPLES = tuple(
    ToolCall(name, {"sample_argument": "sample value"}, f"{name}01", index)
    for index, name in enumerate(("sample1", "sample2"))
)
_ARGUMENTS = re.compile(r'\{\s*"sample_argument"\s*:\s*"sample value"\s*\}')


@dataclass(frozen=True, slots=True)
class CallNotation:
    """Calls as names and JSON objects: ``opening`` name ``middle`` arguments, then ``closing``.

    ``separator`` is between the arguments of a call and the name of the next one.
    """

    opening: str
    middle: str
    separator: str
    closing: str

    @classmethod
    def of_marker(cls, marker: str) -> CallNotation:
        """JSON objects with name and arguments after the marker; it may itself open an object or a list of them."""
        before = "" if marker in ("{", "[") else marker
        opening, between, closing = ("[{", "}, {", "}]") if marker == "[" else ("{", "}\n{", "}")
        name = '"name": "'
        return cls(before + opening + name, '", "arguments": ', between + name, closing)

    @classmethod
    def of_examples(cls, answer: str, one: str, two: str) -> CallNotation | None:
        """The notation in three prompts of a template, which differ in the reply of the assistant.

        It is ``_ANSWER``, the first or both of ``_SAMPLES``. None if the prompts do not show it.
        """
        before, found, after = answer.partition(_ANSWER)
        first, second = (sample.name for sample in _SAMPLES)
        opening, named, rest = _between(before, after, one).partition(first)
        arguments = _ARGUMENTS.search(rest)
        if not (found and named and arguments):
            return None
        middle, closing = rest[: arguments.start()], rest[arguments.end() :]
        call = middle + arguments[0]
        body = _between(before, after, two)
        start, end = f"{opening}{first}{call}", f"{second}{call}"
        separator, _, last = body.removeprefix(start).rpartition(end)
        if not body.startswith(start) or not separator:
            return None
        return cls(opening, middle, separator, last or closing)

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> CallGrammar:
        """The grammar of calls in this notation."""
        some = calls(tools, self._call, parallel=parallel, separator=self.separator)
        return CallGrammar(series(self.opening, some, self.closing), quoted=True)

    def _call(self, tool: Tool) -> Part:
        name = tool_name(tool)
        written = json.dumps(name, ensure_ascii=False)[1:-1] if self.opening.endswith('"') else name
        return series(Verbatim(written), self.middle, json_arguments(tool))


def _between(before: str, after: str, prompt: str) -> str:
    """The part of a prompt in which it differs from ``before`` and ``after``."""
    rest = prompt[_common_length(before, prompt) :]
    return rest[: len(rest) - _common_length(reversed(after), reversed(rest))].strip()


def _common_length(one: Iterable[str], other: Iterable[str]) -> int:
    """The number of characters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


async def _notation_of_template(backend: Backend, generation: Generation, marker: str) -> CallNotation | None:
    """How the model's template writes calls; None if that is unknown, or not what the reply parser reads."""
    tools: tuple[Tool, ...] = tuple({"type": "function", "function": {"name": call.name}} for call in _SAMPLES)
    asked, thanked = Message("user", "sample question"), Message("user", "sample thanks")
    replies = (
        Message("assistant", _ANSWER),
        Message("assistant", tool_calls=_SAMPLES[:1]),
        Message("assistant", tool_calls=_SAMPLES),
    )
    jobs = [
        PromptJob(
            kind=generation.chat_format.kind,
            template=generation.chat_format.template,
            renderer=generation.chat_format.renderer,
            messages=(asked, reply, thanked),
            tools=tools,
        )
        for reply in replies
    ]
    try:
        answer, one, two = [(await backend.renderer.render(job))[0] for job in jobs]
    except TemplateError:
        return None
    notation = CallNotation.of_examples(answer, one, two)
    if notation is None:
        return None
    parser = TemplateReplyParser(tools=tools, tool_marker=marker)
    call = f'{notation.middle}{{"x": 1}}'
    text = f"{notation.opening}sample1{call}{notation.separator}sample2{call}{notation.closing}"
    events = parser.feed(text) + parser.end()
    found = [call.name for event in events if isinstance(event, ToolCalls) for call in event.calls]
    only_calls = not any(isinstance(event, Delta) and event.content.strip() for event in events)
    return notation if found == ["sample1", "sample2"] and only_calls else None
