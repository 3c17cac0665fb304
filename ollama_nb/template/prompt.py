"""Render prompt jobs: choose the kind of template, merge and number messages, and cut templates of the old form.

Tokens are not counted here. A job has several prompts if it lists several numbers of messages to drop (``job.drops``);
they share one parsed template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.api.requests import JINJA, RENDERER, PromptJob
from ollama_nb.errors import TemplateError
from ollama_nb.template import chat_template
from ollama_nb.template.data import message_views, think_keys, tool_views
from ollama_nb.template.execute import Budget, execute
from ollama_nb.template.parser import Action, Block, Branch, Field, Node, Operand, Pipe, Template, parse

NamedRenderer = Callable[[str, Sequence[Message], Sequence[Tool], Think, str], str]
"""Renderer name, messages, tools, requested thinking and BOS text → prompt."""


def _no_renderer(name: str, *_: object) -> str:
    raise TemplateError(f'unknown renderer "{name}"')


def render(job: PromptJob, render_named: NamedRenderer = _no_renderer) -> tuple[str, ...]:
    """Render one prompt for each entry of ``job.drops``. Raises TemplateError.

    ``render_named`` renders the jobs that name a model family's renderer instead of a template.
    """
    if job.kind == RENDERER:
        bos = job.bos if job.add_bos else ""
        return tuple(
            render_named(job.renderer, keep_messages(job.messages, drop), job.tools, job.think, bos)
            for drop in job.drops
        )
    if job.kind == JINJA:
        return tuple(chat_template.render(job, number_images(keep_messages(job.messages, drop))) for drop in job.drops)
    template = parse_complete(job.template)
    if job.suffix:
        return (_render_infill(template, job),) * len(job.drops)
    return tuple(_render_go(template, job, keep_messages(job.messages, drop)) for drop in job.drops)


def keep_messages(messages: Sequence[Message], drop: int) -> tuple[Message, ...]:
    """Return the messages without the ``drop`` oldest, but with all system messages and the last message."""
    drop = max(0, min(drop, len(messages) - 1))
    return (*(message for message in messages[:drop] if message.role == "system"), *messages[drop:])


# Go templates


@lru_cache(maxsize=64)
def parse_complete(text: str) -> Template:
    """Parse a template. One that uses neither messages nor response gets ``{{ .Response }}`` appended."""
    template = parse(text)
    if template.vars & {"messages", "response"}:
        return template
    return replace(template, main=template.main + parse("{{ .Response }}").main, vars=template.vars | {"response"})


def _render_go(template: Template, job: PromptJob, messages: Sequence[Message]) -> str:
    system, merged = collate(number_images(messages))
    if "messages" not in template.vars:
        return _render_turns(template, job, merged)
    root = {
        "System": system,
        "Messages": message_views(merged),
        "Tools": tool_views(job.tools),
        "Response": "",
        **think_keys(job.think),
    }
    return execute(template, root)


def _render_infill(template: Template, job: PromptJob) -> str:
    root = {"Prompt": job.prompt, "Suffix": job.suffix, "Response": "", **think_keys(job.think)}
    return execute(template, root)


def _render_turns(template: Template, job: PromptJob, messages: Sequence[Message]) -> str:
    """Render one turn per system, prompt and response. The last turn is cut where the response begins."""
    out: list[str] = []
    budget = Budget()
    turn = {"System": "", "Prompt": "", "Response": ""}
    think = think_keys(job.think)

    def finish(turn_template: Template) -> None:
        out.append(execute(turn_template, {**turn, **think}, budget))
        turn.update(System="", Prompt="", Response="")

    for message in messages:
        if message.role == "system":
            if turn["Prompt"] or turn["Response"]:
                finish(template)
            turn["System"] = message.content
        elif message.role == "user":
            if turn["Response"]:
                finish(template)
            turn["Prompt"] = message.content
        elif message.role == "assistant":
            turn["Response"] = message.content
    finish(cut_at_response(template))
    return "".join(out)


def collate(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """Return all system text, and the messages with adjacent messages of one role merged, except ``tool``.

    Contents and thinking are joined by a blank line. Images and tool calls are kept; Ollama loses them.
    """
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role != "tool":
            merged[-1] = _merge(merged[-1], message)
        else:
            merged.append(message)
    return "\n\n".join(message.content for message in messages if message.role == "system"), merged


def _merge(first: Message, second: Message) -> Message:
    return replace(
        first,
        content=f"{first.content}\n\n{second.content}",
        thinking="\n\n".join(filter(None, (first.thinking, second.thinking))),
        images=first.images + second.images,
        tool_calls=first.tool_calls + second.tool_calls,
    )


def number_images(messages: Sequence[Message]) -> list[Message]:
    """Insert a marker ``[img-N]`` for each image, N counting over all messages: for an ``[img]``, or in front."""
    count = 0
    out: list[Message] = []
    for message in messages:
        content, front = message.content, ""
        for _ in message.images:
            marker = f"[img-{count}]"
            if "[img]" in content:
                content = content.replace("[img]", marker, 1)
            else:
                front += marker
            count += 1
        out.append(replace(message, content=front + content) if message.images else message)
    return out


# Cutting the last turn of a template of the old form


@lru_cache(maxsize=64)
def _cut_main(main: Block) -> Block:
    return _Cut().block(main)


def cut_at_response(template: Template) -> Template:
    """Remove everything after the first field that names Response.

    As in Ollama, conditions are not examined, and ``$.Response`` is not such a field.
    """
    return replace(template, main=_cut_main(template.main))


class _Cut:
    def __init__(self) -> None:
        self._done = False

    def block(self, block: Block) -> Block:
        nodes: list[Node] = []
        for node in block:
            if self._done:
                break
            nodes.append(self._node(node))
        return tuple(nodes)

    def _node(self, node: Node) -> Node:
        if isinstance(node, Branch):
            body = self.block(node.body)
            orelse = None if self._done or node.orelse is None else self.block(node.orelse)
            return replace(node, body=body, orelse=orelse)
        if isinstance(node, Action):
            return replace(node, pipe=self._pipe(node.pipe))
        return node

    def _pipe(self, pipe: Pipe) -> Pipe:
        commands = []
        for command in pipe.commands:
            if self._done:
                break
            args: list[Operand] = []
            for arg in command.args:
                if self._done:
                    break
                args.append(self._operand(arg))
            commands.append(replace(command, args=tuple(args)))
        return replace(pipe, commands=tuple(commands))

    def _operand(self, operand: Operand) -> Operand:
        if isinstance(operand, Pipe):
            return self._pipe(operand)
        if isinstance(operand, Field) and "Response" in operand.path:
            self._done = True
        return operand
