"""From a ``Generation`` to events: load the model, make the prompt, run the model, parse its text, report the figures.

A ``format`` constrains the answer and not the thinking before it. A model that thinks therefore runs twice: without the
constraint up to the end of its thinking, then from there with the constraint in force.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, replace
from typing import Any

import msgspec

from ollama_nb.api.encode import filled, shortest
from ollama_nb.api.events import (
    Delta,
    Done,
    Event,
    ParsedEvent,
    PromptRead,
    Rendered,
    Stats,
    TokenLogprob,
    ToolCallDelta,
    ToolCalls,
)
from ollama_nb.api.options import SEED_MASK
from ollama_nb.api.requests import ChatRequest, GenerateRequest, Inference
from ollama_nb.errors import Cancelled, OllamaError
from ollama_nb.reply.output import ReplyParser
from ollama_nb.reply.regions import RegionParser
from ollama_nb.runner import wire
from ollama_nb.runner.pool import Lease
from ollama_nb.runner.process import Runner
from ollama_nb.service.backend import Backend
from ollama_nb.service.generation import Generation, ReplyFormat
from ollama_nb.service.prompt import Prompt
from ollama_nb.service.requests import PROMPT, LiveRequest, Metering, acquire

Prepare = Callable[[], Awaitable[Generation | None]]
"""Checks a request; None: it only unloads the model, which is done. Raises OllamaError."""

MakePrompt = Callable[[Generation, Lease], Awaitable[Prompt]]
"""Makes the prompt once the model is loaded. Raises OllamaError."""


async def stream_reply(
    backend: Backend, request: ChatRequest | GenerateRequest, kind: str, prepare: Prepare, make_prompt: MakePrompt
) -> AsyncGenerator[Event, None]:
    """Yield the reply, with a Done at the end of each choice. A request without a prompt gives one Done.

    Errors that need no run of the model are raised before the first event. Closing the generator cancels the work
    behind it; ``Requests.cancel`` does too and ends each choice with a Done of reason ``cancelled``.
    """
    async with AsyncExitStack() as stack:
        live = stack.enter_context(backend.requests.enter(request.request_id, request.model, kind, request.background))
        metering = stack.enter_context(Metering(backend.meter, request.model))
        generation = await prepare()
        if generation is None:
            yield metering.counted(Done("unload"))
            return
        load_seconds = 0.0
        try:
            lease = await acquire(
                backend.pool, live, generation.model, generation.gguf, generation.options, request.keep_alive
            )
            if request.is_empty:
                async with lease:  # it only had to be loaded
                    pass
                yield metering.counted(Done("load", warnings=generation.warnings))
                return
            await stack.enter_async_context(lease)
            load_seconds = live.seconds
            with live.interruptible():
                prompt = await make_prompt(generation, lease)
        except Cancelled:
            stats = None if request.is_empty else Stats(load_seconds=load_seconds, total_seconds=live.seconds)
            for choice in range(request.n):
                last = choice == request.n - 1
                yield metering.counted(Done("cancelled", stats if last else None, choice=choice))
            return
        live.prompt_tokens = prompt.tokens or 0
        if request.render_only:
            yield Rendered(prompt.text, prompt.image_count)
            return
        generation = generation.asking(
            prompt=prompt.text,
            tokens=prompt.ids,
            num_ctx=lease.num_ctx,
            adapters=lease.adapters,
            group=live.number if request.n > 1 else 0,
        )
        async with aclosing(_run_choices(request, live, generation, prompt, lease, load_seconds)) as events:
            async for event in events:
                is_inner = isinstance(event, Done) and event.stats is None
                yield event if is_inner else metering.counted(event)


async def _run_choices(
    request: Inference, live: LiveRequest, generation: Generation, prompt: Prompt, lease: Lease, load_seconds: float
) -> AsyncGenerator[Event, None]:
    """Yield the events of all choices; the last Done has the figures, the warnings and the run record."""
    choices = [ChoiceRuns(lease.runner, live, generation, index) for index in range(request.n)]
    running = len(choices)
    wants_prompt = request.detailed
    async with aclosing(merged([choice.events() for choice in choices])) as events:
        async for event in events:
            if isinstance(event, PromptRead):
                if wants_prompt:
                    yield event
                wants_prompt = False
                continue
            if isinstance(event, Done):
                running -= 1
            if not isinstance(event, Done) or running:
                yield event
                continue
            stats = _with_prompt(total_stats(choices), prompt, load_seconds, live.seconds, lease.num_ctx)
            added = [warning for choice in choices for warning in choice.warnings]
            warnings = tuple(dict.fromkeys((*generation.warnings, *prompt.warnings, *added)))
            record = run_record(generation, request.user, lease.loaded.build) if request.run_record else None
            yield replace(event, stats=stats, warnings=warnings, run=record)


def _with_prompt(stats: Stats, prompt: Prompt, load_seconds: float, total_seconds: float, num_ctx: int) -> Stats:
    """The figures of the runs, completed by those of the load and the prompt."""
    return replace(
        stats,
        load_seconds=load_seconds,
        total_seconds=total_seconds,
        context_length=num_ctx,
        messages_dropped=prompt.messages_dropped,
        prompt_tokens_dropped=prompt.tokens_dropped + stats.prompt_tokens_dropped,
    )


async def merged(sources: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """Yield the events of all sources as they come. The first error ends all; closing the generator closes them."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as events:
            async for event in events:
                yield event
        return
    queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    async def forward(source: AsyncGenerator[Event, None]) -> None:
        end: BaseException | None = None
        try:
            async with aclosing(source):
                async for event in source:
                    queue.put_nowait(event)
        except BaseException as error:
            end = error
            raise
        finally:
            queue.put_nowait(end)

    tasks = [asyncio.ensure_future(forward(source)) for source in sources]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def total_stats(choices: Sequence[ChoiceRuns]) -> Stats:
    """The figures of all choices together. The prompt counts once, as the first choice has read it."""
    first, *others = [choice.stats() for choice in choices]
    if not others:
        return first
    together = (first, *others)
    spans = [choice.span for choice, stats in zip(choices, together, strict=True) if stats.output_tokens]
    return replace(
        first,
        output_tokens=sum(stats.output_tokens for stats in together),
        output_seconds=max(last for _, last in spans) - min(first for first, _ in spans) if spans else 0.0,
        drafted_tokens=sum(stats.drafted_tokens for stats in together),
        accepted_tokens=sum(stats.accepted_tokens for stats in together),
        reasoning_tokens=sum(stats.reasoning_tokens for stats in together),
    )


class ChoiceRuns:
    """The runs of the model that make one choice of a reply: usually one.

    There are more if a constraint is in force only after the thinking, or if the thinking has a budget.
    """

    def __init__(self, runner: Runner, live: LiveRequest, generation: Generation, index: int = 0) -> None:
        self.warnings: list[str] = []
        """Known at the end of ``events()``."""
        self._runner, self._live, self._index = runner, live, index
        self._generation = generation.for_choice(index)
        self._runs: list[ModelRun] = []
        self._figures: list[wire.Finished] = []

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield PromptRead, the parsed text, and Done. A cancelled choice ends normally, with that reason."""
        generation = first_run(self._generation)
        before_answer = generation.completion.format != self._generation.completion.format
        run: ModelRun | None = ModelRun(self._runner, self._live, generation, before_answer=before_answer)
        context: tuple[int, ...] | None = None
        prompt_is_read = False
        while run is not None:
            self._runs.append(run)
            run.budget = self._remaining_budget()
            more = True
            async with aclosing(run):
                while more:
                    events = await run.read()
                    if not prompt_is_read and (read := run.prompt_read) is not None:
                        prompt_is_read = True
                        yield read
                    more = events is not None
                    for event in events or ():
                        yield self._marked(event)
            figures = await run.figures()
            self._figures.append(figures)
            self._live.prompt_tokens = self._figures[0].prompt_tokens
            if run.generation.completion.return_tokens and run.finished is not None:
                context = figures.tokens
            last, run = run, self._next_run(run)
        yield Done(last.reason, context=context, choice=self._index, stop_sequence=figures.stop_sequence)

    def stats(self) -> Stats:
        """The figures of all runs together; output of one run that the next one reads counts once."""
        runs = self._figures
        return Stats(
            prompt_tokens=runs[0].prompt_tokens if runs else 0,
            cached_tokens=runs[0].cached_tokens if runs else 0,
            prompt_seconds=sum(run.prompt_seconds for run in runs),
            output_tokens=sum(run.output_tokens for run in runs),
            output_seconds=sum(run.output_seconds for run in runs),
            prompt_tokens_dropped=max((run.prompt_tokens_dropped for run in runs), default=0),
            drafted_tokens=sum(run.drafted for run in runs),
            accepted_tokens=sum(run.accepted for run in runs),
            reasoning_tokens=sum(run.reasoning_tokens for run in self._runs),
        )

    @property
    def span(self) -> tuple[float, float]:
        """When the first and the last text came, by ``time.perf_counter``."""
        return self._runs[0].first_text, self._runs[-1].last_text

    def _next_run(self, run: ModelRun) -> ModelRun | None:
        """The run that continues the reply; None: it is complete."""
        whole = self._generation
        if run.before_answer and run.needs_answer:
            generation = answer_after(run, run.text_before_answer())
            generation = generation and replace(
                generation.asking(format=whole.completion.format, later_format=""),
                reply=whole.reply.forced or replace(whole.reply, thinking=None, parser=None),
            )
            parser: ReplyParser | None = None
        elif run.ending is Ending.BUDGET:
            # The second time, and where no call may follow, the answer itself has to begin.
            text = run.end_thinking(may_call=bool(whole.reply.tools) and len(self._runs) == 1)
            generation, parser = answer_after(run, text), run.parser
        else:
            return None
        if generation is None:
            run.reason = "length"
            return None
        return ModelRun(self._runner, self._live, generation, parser=parser)

    def _remaining_budget(self) -> int | None:
        budget = self._generation.reply.think_budget
        return None if budget is None else max(0, budget - sum(run.reasoning_tokens for run in self._runs))

    def _marked(self, event: ParsedEvent) -> ParsedEvent:
        """Set the index of the choice, and add a warning for text that was meant as a tool call."""
        if isinstance(event, Delta) and event.tool_error:
            self.warnings.append(f"a tool call could not be read and is shown as text: {event.tool_error}")
        return replace(event, choice=self._index) if self._index else event


def first_run(generation: Generation) -> Generation:
    """The generation that begins a reply: without the constraint if thinking comes before the answer.

    Without thinking, the constraint is in force from the first token. Where the family marks the beginning of an
    answer, the prompt gets that mark.
    """
    completion, reply = generation.completion, generation.reply
    if not completion.format:
        return generation
    if reply.thinks:
        # Before a forced call, everything but thinking ends the run: without tools, a template's parser looks for none.
        without_tools = reply.forced is not None and reply.parser is None
        generation = generation.asking(format="", later_format=completion.format)
        return replace(generation, reply=replace(reply, tools=()) if without_tools else reply)
    if reply.parser is not None:
        prefix = reply.before_call(reply.parser.create(reply.context).answer_prefix)
        generation = generation.asking(prompt=completion.prompt + prefix)
    if reply.forced is not None:
        return replace(generation, reply=reply.forced)
    return replace(generation, reply=replace(reply, parser=None, tools=())) if reply.parser is not None else generation


def answer_after(run: ModelRun, text: str) -> Generation | None:
    """The generation that continues a run after its output ``text``; None: no more tokens are allowed."""
    options = run.generation.options
    if options.num_predict > 0:
        if run.output_tokens >= options.num_predict:
            return None
        options = replace(options, num_predict=options.num_predict - run.output_tokens)
    prompt = run.generation.completion.prompt + text
    # Thinking that filled the context loses its middle: that is better than an error after all that work.
    return run.generation.asking(prompt=prompt, options=options, truncate=True, group=0)


class Ending(enum.Enum):
    """Why a run of the model has ended, other than by itself or by cancellation."""

    ANSWER = "answer"
    """The answer has begun, which needs a run of its own."""
    CALL = "call"
    """A tool call is complete, and only one may be made."""
    BUDGET = "budget"
    """The budget of thinking is used up."""


class ModelRun:
    """One run of the model: the runner's text, parsed into events. No text is lost, however the run ends.

    Call ``read()`` until it returns None, or ``aclose()``; then read ``reason`` and ``figures()``.
    """

    def __init__(
        self,
        runner: Runner,
        live: LiveRequest,
        generation: Generation,
        *,
        before_answer: bool = False,
        parser: ReplyParser | None = None,
    ) -> None:
        """``before_answer``: the run ends where the answer begins. ``parser``: that of the run that this continues."""
        self.generation = generation
        self.before_answer = before_answer
        self.parser = parser or generation.reply.new_parser(generation.completion.prompt)
        self.reason = "stop"
        self.ending: Ending | None = None
        self.finished: wire.Finished | None = None
        self.budget: int | None = None
        """Most tokens of thinking; the run ends when it has them and is still thinking."""
        self.reasoning_tokens = 0
        self._runner, self._live = runner, live
        completion = msgspec.structs.replace(generation.completion, preserve=generation.reply.preserve)
        self._items = runner.complete(completion)
        self._called = self._ended = False
        self._pieces: list[str] = []
        self._first_item = self._last_item = wire.TextOutput(0, "")
        self._began = self.first_text = self.last_text = time.perf_counter()
        live.state = PROMPT

    async def read(self) -> list[ParsedEvent] | None:
        """The events of the next piece of text; None when the run has ended.

        A cancelled run ends with the text that the parser held back, and ``reason`` is "cancelled".
        """
        if self._ended:
            return None
        tokens, was_thinking = self.output_tokens, bool(self.parser.thinking_end)
        item = await self._next()
        if item is None:
            self._ended = True
            await self._items.aclose()
            return self._checked(self.parser.end())
        events = self._checked(with_logprobs(self.parser.feed(item.text), item.logprobs))
        if self.before_answer and self.generation.reply.forced is not None and _has_begun(self.parser):
            self.ending, self._ended = Ending.ANSWER, True
        if self.parser.thinking_end:
            if was_thinking or any(isinstance(event, Delta) and event.thinking for event in events):
                self.reasoning_tokens += self.output_tokens - tokens
            if self.budget is not None and self.reasoning_tokens >= self.budget:
                self.ending, self._ended = Ending.BUDGET, True
        return events

    async def aclose(self) -> None:
        """End the run; the runner stops working on it."""
        self._ended = True
        await self._items.aclose()

    @property
    def needs_answer(self) -> bool:
        """A run before the answer ended before one, and not for a tool call, its limit or a cancellation."""
        if self.ending is not None:
            return self.ending is not Ending.CALL
        return self.reason == "stop" and not self._called

    @property
    def output_tokens(self) -> int:
        """Tokens until now."""
        return self.finished.output_tokens if self.finished is not None else self._last_item.output_tokens

    @property
    def prompt_read(self) -> PromptRead | None:
        """The figures of the prompt; None before it was read."""
        if self.finished is not None:
            return PromptRead(self.finished.prompt_tokens, self.finished.cached_tokens)
        first = self._first_item
        return PromptRead(first.prompt_tokens, first.cached_tokens) if self._pieces else None

    def text_before_answer(self) -> str:
        """The output up to the beginning of the answer, completed by what the answer needs in order to begin."""
        raw, reply = "".join(self._pieces), self.generation.reply
        if not isinstance(self.parser, RegionParser):
            return _thinking_text(reply, self.generation.completion.prompt, raw)
        at, prefix = self.parser.answer_start, ""
        if reply.forced is not None:
            at, prefix = self.parser.call_start or (None, "")
        if at is None:
            return reply.before_call(_completed(raw, self.parser.answer_prefix))
        after = raw[at:]
        text = _completed(raw[:at], prefix) if prefix else raw[:at] + after[: len(after) - len(after.lstrip())]
        return reply.before_call(text)

    def end_thinking(self, *, may_call: bool) -> str:
        """End the thinking, in the parser too, and return the output up to its end.

        ``may_call``: a tool call may follow; otherwise the answer begins.
        """
        raw, ending = "".join(self._pieces), self.parser.thinking_end
        if isinstance(self.parser, RegionParser) and not may_call:
            ending = self.parser.answer_prefix
        text = _completed(raw, ending)
        self.parser.feed(text[len(raw.rstrip()) :])
        return text

    async def figures(self) -> wire.Finished:
        """The runner's figures; for a run that was interrupted, the known ones."""
        if self.finished is not None:
            return self.finished
        return wire.Finished(
            id=0,
            reason=self.reason,
            prompt_tokens=self._first_item.prompt_tokens or await self._count_prompt(),
            cached_tokens=self._first_item.cached_tokens,
            prompt_tokens_dropped=self._first_item.prompt_tokens_dropped,
            drafted=self._last_item.drafted,
            accepted=self._last_item.accepted,
            prompt_seconds=self.first_text - self._began,
            output_tokens=self.output_tokens,
            output_seconds=self.last_text - self.first_text,
        )

    def _checked(self, events: list[ParsedEvent]) -> list[ParsedEvent]:
        """The events, up to the answer if that needs a run of its own."""
        reply = self.generation.reply
        if reply.one_call:
            events = [event for event in events if not isinstance(event, ToolCallDelta) or not event.index]
        for at, event in enumerate(events):
            if self.before_answer and isinstance(event, Delta) and event.content:
                self.ending, self._ended = Ending.ANSWER, True
                return events[:at] + ([Delta(thinking=event.thinking)] if event.thinking else [])
            if self.before_answer and reply.forced is not None and isinstance(event, ToolCalls | ToolCallDelta):
                return events[:at]
            if isinstance(event, ToolCalls) and reply.one_call:
                self.ending, self._ended = Ending.CALL, True
                return [*events[:at], replace(event, calls=event.calls[:1])]
            self._called = self._called or isinstance(event, ToolCalls)
        return events

    async def _next(self) -> wire.TextOutput | None:
        """The next text; None when the run has ended, normally or by cancellation."""
        try:
            with self._live.interruptible():
                item = await anext(self._items)
        except Cancelled:
            self.reason = "cancelled"
            return None
        if isinstance(item, wire.Finished):
            self.finished, self.reason = item, item.reason
            return None
        self._count(item)
        return item

    def _count(self, item: wire.TextOutput) -> None:
        self.last_text = time.perf_counter()
        if not self._pieces:
            self.first_text, self._first_item = self.last_text, item
            self._live.prompt_tokens = item.prompt_tokens or self._live.prompt_tokens
        self._pieces.append(item.text)
        last, self._last_item = self._last_item, item
        self._live.count_output(
            item.output_tokens - last.output_tokens, item.drafted - last.drafted, item.accepted - last.accepted
        )

    async def _count_prompt(self) -> int:
        """Prompt tokens of a run without output: at most a full context is read."""
        completion = self.generation.completion
        try:
            count = len(completion.tokens) or (await self._runner.count_tokens((completion.prompt,)))[0]
            return min(count, completion.num_ctx or count)
        except OllamaError:
            return 0  # the runner is gone; the reply still ends normally


def _has_begun(parser: ReplyParser) -> bool:
    """Whether an answer or a tool call has begun."""
    return isinstance(parser, RegionParser) and parser.call_start is not None


def _thinking_text(reply: ReplyFormat, prompt: str, raw: str) -> str:
    """The output up to the beginning of the answer: thinking, closing tag and the white space after it."""
    assert reply.thinking is not None
    opening, closing = reply.thinking
    if not reply.begins_in_thinking(prompt) and not raw.lstrip().startswith(opening):
        return ""
    thoughts, closed, after = raw.partition(closing)
    if not closed:
        return _completed(raw, f"\n{closing}\n\n")
    blanks = after[: len(after) - len(after.lstrip())]
    return thoughts + closed + (blanks or "\n\n")


def _completed(raw: str, ending: str) -> str:
    """The output with ``ending``, of which its last characters may be the first ones already."""
    if not ending:
        return raw
    body, tag = raw.rstrip(), ending.lstrip()
    begun = next((length for length in range(len(tag) - 1, 0, -1) if raw.endswith(tag[:length])), 0)
    return raw + tag[begun:] if begun else body + ending


def with_logprobs(events: Sequence[ParsedEvent], probs: Sequence[wire.TokenProb]) -> list[ParsedEvent]:
    """Attach a token's logprobs to its first text; a token without text yet gets a Delta of its own."""
    if not probs:
        return list(events)
    logprobs = tuple(TokenLogprob(p.token, p.logprob, tuple((t.token, t.logprob) for t in p.top)) for p in probs)
    for at, event in enumerate(events):
        if isinstance(event, Delta):
            return [*events[:at], replace(event, logprobs=logprobs), *events[at + 1 :]]
    return [Delta(logprobs=logprobs), *events]


def run_record(generation: Generation, user: str, build: str) -> dict[str, Any]:
    """What is needed to repeat a run: the same model, template, prompt, options and engine give the same reply."""
    completion = generation.completion
    options = asdict(replace(completion.options, num_ctx=completion.num_ctx))
    in_force = {name: value for name, value in options.items() if value is not None}
    # Options are float32 values; the shortest decimal is reported, 0.9 and not 0.8999999761581421.
    shown = {name: shortest(value) if isinstance(value, float) else value for name, value in in_force.items()}
    shown["logit_bias"] = {name: shortest(value) for name, value in completion.options.logit_bias}
    return {
        "model": generation.model.name.short,
        "model_digest": f"sha256:{generation.model.digest}",
        "template_hash": _hash(generation.chat_format.template),
        "prompt_hash": _hash(completion.prompt or json.dumps(completion.tokens)),
        "options": shown,
        "seed": completion.options.seed & SEED_MASK,
        "engine_build": build,
        **filled({"user": user}),
    }


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"
