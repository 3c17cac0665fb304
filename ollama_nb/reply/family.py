"""What a family of models needs so that its replies can be read.

Rule: a family is a value. Whatever changes while a reply is read lives in the reader that it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.reply.regions import RegionReader


class ReplyReader(Protocol):
    def feed(self, text: str) -> list[Delta | ToolCalls]: ...

    def end(self) -> list[Delta | ToolCalls]: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What the reply answers: the tools offered, the thinking asked for, the conversation's last message."""

    tools: tuple[Tool, ...] = ()
    think: Think = None
    last: Message | None = None

    @property
    def continues(self) -> bool:
        """The prompt ends inside the assistant's own answer, which the reply goes on with."""
        return self.last is not None and self.last.role == "assistant" and bool(self.last.content)

    def thinks(self, *, by_default: bool) -> bool:
        return by_default if self.think is None else bool(self.think)


def same_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    return tuple(tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """``preserve``: special tokens that must stay visible in the model's output, because the reader looks for them.

    ``offered`` gives the tools as the prompt names them.
    """

    reader: Callable[[Turn], RegionReader]
    tools: bool = True
    thinking: bool = False
    preserve: tuple[str, ...] = ()
    offered: Callable[[Sequence[Tool]], tuple[Tool, ...]] = same_tools
