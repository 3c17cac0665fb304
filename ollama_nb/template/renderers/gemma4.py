"""Gemma 4: turns with images, tool results inside the model's turn, thoughts on a channel of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.template.renderers.gemma4_schema import VALUES, declaration
from ollama_nb.template.renderers.images import Images
from ollama_nb.template.renderers.spelling import trim

BOS = "<bos>"
_THOUGHT = re.compile(r"<\|channel>.*?(?:<channel\|>|\Z)", re.DOTALL)
_Group = tuple[Message, list[Message]]
_ANSWERED, _CALLING = "answered", "calling"


def render(messages: Sequence[Message], tools: Sequence[Tool], think: Think, *, empty_thought: bool) -> str:
    """``empty_thought``: the variant is told by an empty thought not to think."""
    system, talk = None, messages
    if messages and messages[0].role in ("system", "developer"):
        system, talk = messages[0].content, messages[1:]
    images = Images()
    groups = _grouped(talk)
    question = max((at for at, (message, _) in enumerate(groups) if message.role == "user"), default=-1)
    out = [BOS, _header(system, tools, bool(think))]
    state = ""
    for at in range(len(groups)):
        text, state = _turn(groups, at, images, keep_thought=at > question)
        out.append(text)
    if not state:
        empty = "<|channel>thought\n<channel|>" if empty_thought and not think else ""
        out.append(f"<|turn>model\n{empty}")
    elif state == _ANSWERED and think:
        out.append("<|channel>thought\n")
    return "".join(out)


def _grouped(talk: Sequence[Message]) -> list[_Group]:
    """Each message with the tool results that follow it; results before the first message are nobody's."""
    groups: list[_Group] = []
    for message in talk:
        if message.role != "tool":
            groups.append((message, []))
        elif groups:
            groups[-1][1].append(message)
    return groups


def _header(system: str | None, tools: Sequence[Tool], thinking: bool) -> str:
    if system is None and not tools and not thinking:
        return ""
    declared = "".join(map(declaration, tools))
    switch = "<|think|>\n" if thinking else ""
    return f"<|turn>system\n{switch}{trim(system or '')}{declared}<turn|>\n"


def _turn(groups: Sequence[_Group], at: int, images: Images, *, keep_thought: bool) -> tuple[str, str]:
    """One message with the results of its calls, and whether those are still to come."""
    message, results = groups[at]
    before = groups[at - 1][0].role if at else ""
    after = groups[at + 1][0].role if at + 1 < len(groups) else ""
    is_model = message.role == "assistant"
    if not message.tool_calls:
        results = []
    state = (_ANSWERED if results else _CALLING) if message.tool_calls else ""
    out = "" if is_model and before == "assistant" else f"<|turn>{'model' if is_model else message.role}\n"
    if is_model and message.thinking and keep_thought:
        out += f"<|channel>thought\n{message.thinking}\n<channel|>"
    out += "".join(f"<|tool_call>{VALUES.call(call)}<tool_call|>" for call in message.tool_calls)
    out += _results(message, results, images)
    content = trim(_THOUGHT.sub("", message.content) if is_model else message.content)
    out += images.tagged(message, content)
    if state == _CALLING:
        return out + "<|tool_response>", state
    says_more = bool(content or message.images)
    goes_on = (is_model and after == "assistant") or (state == _ANSWERED and not says_more and not after)
    return out + ("" if goes_on else "<turn|>\n"), state


def _results(caller: Message, results: Sequence[Message], images: Images) -> str:
    called: dict[str, str] = {}
    for call in caller.tool_calls:
        called.setdefault(call.id, call.name)
    called.pop("", None)
    out = ""
    for result in results:
        name = called.get(result.tool_call_id, result.tool_name or "unknown")
        out += f"<|tool_response>response:{name}{{value:{VALUES.text(images.tagged(result))}}}<tool_response|>"
    return out


RENDERERS = {
    "gemma4": partial(render, empty_thought=False),
    "gemma4-small": partial(render, empty_thought=False),
    "gemma4-large": partial(render, empty_thought=True),
}
