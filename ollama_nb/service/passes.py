"""One run of the model: what the runner says, read into events. No text is lost, whatever ends the run."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

from ollama_nb.api.events import Delta, TokenLogprob, ToolCalls
from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.api.options import Options
from ollama_nb.errors import Cancelled, OllamaError
from ollama_nb.families.card import ParserSpec
from ollama_nb.reply.generic import TemplateReplyParser
from ollama_nb.reply.output import ReplyContext, ReplyParser
from ollama_nb.reply.regions import RegionParser
from ollama_nb.runner import wire
from ollama_nb.runner.process import Runner
from ollama_nb.service.requests import PROMPT, LiveRequest

_SPECIAL_PIECE = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the runner is asked, and how its text is to be read.

    A ``family`` reads by itself, given the ``think`` and the ``last`` message of the request. Without one, ``thinking``
    are the tags to look for, and None means that no thinking is looked for.
    """

    prompt: str
    options: Options
    num_ctx: int = 0
    adapters: wire.Adapters = ()
    shift: bool = True
    truncate: bool = True
    logprobs: int = -1
    format: str = ""
    return_tokens: bool = False
    thinking: tuple[str, str] | None = None
    tools: tuple[Tool, ...] = ()
    tool_marker: str | None = None
    family: ParserSpec | None = None
    think: Think = None
    last: Message | None = None

    @property
    def preserve(self) -> tuple[str, ...]:
        """Special tokens that must stay visible in the output because the reader looks for them."""
        if self.family is not None:
            return self.family.preserve
        piece = _SPECIAL_PIECE.search(self.tool_marker) if self.tools and self.tool_marker else None
        return (self.thinking or ()) + ((piece[0],) if piece else ())

    @property
    def inside_thinking(self) -> bool:
        """The prompt itself has opened the thinking."""
        return self.thinking is not None and self.prompt.rstrip().endswith(self.thinking[0])

    @property
    def thinks(self) -> bool:
        """Thinking comes before the answer."""
        return self.thinking is not None if self.family is None else self.family.thinking and bool(self.think)

    @property
    def turn(self) -> ReplyContext:
        return ReplyContext(self.tools, self.think, self.last)

    def reader(self) -> ReplyParser:
        if self.family is not None:
            return self.family.create(self.turn)
        return TemplateReplyParser(
            thinking=self.thinking,
            inside_thinking=self.inside_thinking,
            tools=self.tools,
            tool_marker=self.tool_marker if self.tools else None,
        )


class Pass:
    """Iterate ``events()`` to its end or close it, then read ``reason``, ``up_to_answer()`` and ``figures()``."""

    def __init__(self, runner: Runner, live: LiveRequest, ask: Ask) -> None:
        self.ask = ask
        self.reason = "stop"
        self.finished: wire.Finished | None = None
        self._runner, self._live = runner, live
        self._reader = ask.reader()
        self._pieces: list[str] = []
        self._told = wire.Text(0, "")
        self._drafts = (0, 0)
        self._began = self._first = self._last = time.perf_counter()

    @property
    def raw(self) -> str:
        """Everything that was said, unread."""
        return "".join(self._pieces)

    def up_to_answer(self) -> str:
        """What was said up to where the answer begins, and what is missing for it to begin."""
        if not isinstance(self._reader, RegionParser):
            return _thoughts_text(self.ask, self.raw)
        raw, at = self.raw, self._reader.answer_start
        if at is None:
            missing = self._reader.answer_prefix
            return (raw.rstrip() if missing else raw) + missing
        after = raw[at:]
        return raw[:at] + after[: len(after) - len(after.lstrip())]

    @property
    def output_tokens(self) -> int:
        """Tokens so far; one piece of text counts as one."""
        return self.finished.output_tokens if self.finished is not None else len(self._pieces)

    async def events(self) -> AsyncGenerator[Delta | ToolCalls, None]:
        """What the model says. A request that is cancelled ends with the text held back and ``reason`` "cancelled"."""
        self._live.state = PROMPT
        async with aclosing(self._complete()) as items:
            while (item := await self._next(items)) is not None:
                for event in with_logprobs(self._reader.feed(item.text), item.logprobs):
                    yield event
        for event in self._reader.end():
            yield event

    async def figures(self) -> wire.Finished:
        """The runner's own figures; for a run that was broken off, what it told until then."""
        if self.finished is not None:
            return self.finished
        drafted, accepted = self._drafts
        return wire.Finished(
            id=0,
            reason=self.reason,
            prompt_tokens=self._told.prompt_tokens or await self._count_prompt(),
            cached_tokens=self._told.cached_tokens,
            prompt_tokens_dropped=self._told.prompt_tokens_dropped,
            drafted=drafted,
            accepted=accepted,
            prompt_seconds=self._first - self._began,
            output_tokens=self.output_tokens,
            output_seconds=self._last - self._first,
        )

    async def _next(self, items: AsyncGenerator[wire.Text | wire.Finished, None]) -> wire.Text | None:
        """The next text; None when the run has ended, for whatever reason."""
        try:
            with self._live.interruptible():
                item = await anext(items)
        except Cancelled:
            self.reason = "cancelled"
            return None
        if isinstance(item, wire.Finished):
            self.finished, self.reason = item, item.reason
            return None
        self._note(item)
        return item

    def _note(self, item: wire.Text) -> None:
        self._last = time.perf_counter()
        if not self._pieces:
            self._first, self._told = self._last, item
            self._live.prompt_tokens = item.prompt_tokens or self._live.prompt_tokens
        self._pieces.append(item.text)
        drafted, accepted = self._drafts
        self._live.token(item.drafted - drafted, item.accepted - accepted)
        self._drafts = (item.drafted, item.accepted)

    def _complete(self) -> AsyncGenerator[wire.Text | wire.Finished, None]:
        ask = self.ask
        items = self._runner.complete(
            prompt=ask.prompt,
            options=ask.options,
            num_ctx=ask.num_ctx,
            adapters=ask.adapters,
            shift=ask.shift,
            truncate=ask.truncate,
            logprobs=ask.logprobs,
            format=ask.format,
            return_tokens=ask.return_tokens,
            preserve=ask.preserve,
        )
        return cast("AsyncGenerator[wire.Text | wire.Finished, None]", items)

    async def _count_prompt(self) -> int:
        """Of a run that said nothing yet: no more than the context holds is ever read."""
        try:
            count = (await self._runner.count_tokens((self.ask.prompt,)))[0]
            return min(count, self.ask.num_ctx or count)
        except OllamaError:
            return 0  # The runner is gone; the reply ends all the same.


def _thoughts_text(ask: Ask, raw: str) -> str:
    """What was said up to where the answer begins, the closing tag and the blanks after it included."""
    assert ask.thinking is not None
    opening, closing = ask.thinking
    if not ask.inside_thinking and not raw.lstrip().startswith(opening):
        return ""
    thoughts, closed, after = raw.partition(closing)
    if not closed:
        return f"{raw.rstrip()}\n{closing}\n\n"
    blanks = after[: len(after) - len(after.lstrip())]
    return thoughts + closed + (blanks or "\n\n")


def with_logprobs(events: Sequence[Delta | ToolCalls], probs: Sequence[wire.TokenProb]) -> list[Delta | ToolCalls]:
    """Attach a token's logprobs to its first text; a token without text yet gets a Delta of its own."""
    if not probs:
        return list(events)
    told = tuple(TokenLogprob(p.token, p.logprob, tuple((t.token, t.logprob) for t in p.top)) for p in probs)
    for at, event in enumerate(events):
        if isinstance(event, Delta):
            return [*events[:at], replace(event, logprobs=told), *events[at + 1 :]]
    return [Delta(logprobs=told), *events]
