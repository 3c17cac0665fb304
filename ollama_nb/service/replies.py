"""From a ``Generation`` to events: load the model, make the prompt, run the model, parse its text, report the figures.

A ``format`` constrains the answer and not the thinking before it. A model that thinks therefore runs twice: without the
constraint up to the end of its thinking, then from there with the constraint in force.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, replace
from typing import Any

import msgspec

from ollama_nb.api.encode import shortest
from ollama_nb.api.events import Delta, Done, Event, Rendered, Stats, TokenLogprob, ToolCalls
from ollama_nb.api.options import SEED_MASK
from ollama_nb.api.requests import ChatRequest, GenerateRequest
from ollama_nb.errors import Cancelled, OllamaError
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
    """Yield the reply and a final Done. A request without a prompt gives one Done: ``load`` or ``unload``.

    Errors that need no run of the model are raised before the first event. Closing the generator cancels the work
    behind it; ``Requests.cancel`` does too and ends the reply with a Done of reason ``cancelled``.
    """
    async with AsyncExitStack() as stack:
        live = stack.enter_context(backend.requests.enter(request.request_id, request.model, kind))
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
            yield metering.counted(Done("cancelled", stats))
            return
        live.prompt_tokens = prompt.tokens or 0
        if request.render_only:
            yield Rendered(prompt.text, prompt.image_count)
            return
        generation = generation.asking(prompt=prompt.text, num_ctx=lease.num_ctx, adapters=lease.adapters)
        runs = ReplyRuns(lease.runner, live, generation)
        async with aclosing(runs.events()) as events:
            async for event in events:
                yield metering.counted(event)
        stats = _with_prompt(runs.stats(), prompt, load_seconds, live.seconds, lease.num_ctx)
        warnings = (*generation.warnings, *prompt.warnings, *runs.warnings)
        record = run_record(generation, lease.loaded.build) if request.run_record else None
        yield metering.counted(Done(runs.reason, stats, runs.context, warnings, record))


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


class ReplyRuns:
    """The one or two runs of the model that make a reply.

    Iterate ``events()`` to the end, then read ``reason``, ``stats()``, ``context`` and ``warnings``.
    """

    def __init__(self, runner: Runner, live: LiveRequest, generation: Generation) -> None:
        self.reason = "stop"
        self.context: tuple[int, ...] | None = None
        self.warnings: list[str] = []
        self._runner, self._live, self._generation = runner, live, generation
        self._figures: list[wire.Finished] = []

    async def events(self) -> AsyncGenerator[Delta | ToolCalls, None]:
        """Yield the parsed text. A cancelled request ends with ``reason`` "cancelled" and raises nothing."""
        generation: Generation | None = self._generation
        if self._generation.completion.format and not self._generation.reply.thinks:
            generation = constrained(self._generation)
        elif self._generation.completion.format:
            thoughts = ModelRun(self._runner, self._live, self._generation.asking(format=""))
            answering = called = False
            async with aclosing(thoughts):
                while not answering and (events := await thoughts.read()) is not None:
                    for event in events:
                        if isinstance(event, Delta) and event.content:
                            answering = True
                            if event.thinking:
                                yield Delta(thinking=event.thinking)
                            break
                        called = called or isinstance(event, ToolCalls)
                        yield self._with_warning(event)
            await self._add_figures(thoughts)
            generation = constrained_answer(self._generation, thoughts, answering=answering, called=called)
        if generation is not None:
            answer = ModelRun(self._runner, self._live, generation)
            async with aclosing(answer):
                while (events := await answer.read()) is not None:
                    for event in events:
                        yield self._with_warning(event)
            await self._add_figures(answer)

    def stats(self) -> Stats:
        """The figures of both runs together; output of the first run that the second one reads counts once."""
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
        )

    def _with_warning(self, event: Delta | ToolCalls) -> Delta | ToolCalls:
        """Add a warning for text that was meant as a tool call."""
        if isinstance(event, Delta) and event.tool_error:
            self.warnings.append(f"a tool call could not be read and is shown as text: {event.tool_error}")
        return event

    async def _add_figures(self, run: ModelRun) -> None:
        self.reason = run.reason
        figures = await run.figures()
        self._figures.append(figures)
        self._live.prompt_tokens = self._figures[0].prompt_tokens
        if run.generation.completion.return_tokens and run.finished is not None:
            self.context = figures.tokens


def constrained(generation: Generation) -> Generation:
    """A generation without thinking: the constraint is in force from the first token.

    Where the family marks the beginning of an answer, the prompt gets that mark.
    """
    reply = generation.reply
    if reply.parser is None:
        return generation
    prompt = generation.completion.prompt + reply.parser.create(reply.context).answer_prefix
    return replace(generation.asking(prompt=prompt), reply=replace(reply, parser=None, tools=()))


def constrained_answer(
    generation: Generation, thoughts: ModelRun, *, answering: bool, called: bool
) -> Generation | None:
    """The second run: the prompt and the thinking, with the constraint in force. None: the reply is complete.

    A run that ended without an answer needs the second one too, unless it called a tool, reached its limit or was
    cancelled.
    """
    if not answering and (called or thoughts.reason != "stop"):
        return None
    options = generation.options
    if options.num_predict > 0:
        options = replace(options, num_predict=max(1, options.num_predict - thoughts.output_tokens))
    prompt = generation.completion.prompt + thoughts.text_before_answer()
    # Thinking that filled the context loses its middle: that is better than an error after all that work.
    continued = generation.asking(prompt=prompt, options=options, truncate=True)
    return replace(continued, reply=replace(generation.reply, thinking=None, parser=None))


class ModelRun:
    """One run of the model: the runner's text, parsed into events. No text is lost, however the run ends.

    Call ``read()`` until it returns None, or ``aclose()``; then read ``reason``, ``text_before_answer()`` and
    ``figures()``.
    """

    def __init__(self, runner: Runner, live: LiveRequest, generation: Generation) -> None:
        self.generation = generation
        self.reason = "stop"
        self.finished: wire.Finished | None = None
        self._runner, self._live = runner, live
        self._parser = generation.reply.new_parser(generation.completion.prompt)
        completion = msgspec.structs.replace(generation.completion, preserve=generation.reply.preserve)
        self._items = runner.complete(completion)
        self._ended = False
        self._pieces: list[str] = []
        self._first_item = wire.TextOutput(0, "")
        self._drafts = (0, 0)
        self._began = self._first = self._last = time.perf_counter()
        live.state = PROMPT

    async def read(self) -> list[Delta | ToolCalls] | None:
        """The events of the next piece of text; None when the run has ended.

        A cancelled run ends with the text that the parser held back, and ``reason`` is "cancelled".
        """
        if self._ended:
            return None
        item = await self._next()
        if item is None:
            self._ended = True
            await self._items.aclose()
            return self._parser.end()
        return with_logprobs(self._parser.feed(item.text), item.logprobs)

    async def aclose(self) -> None:
        """End the run; the runner stops working on it."""
        self._ended = True
        await self._items.aclose()

    def text_before_answer(self) -> str:
        """The output up to the beginning of the answer, completed by what the answer needs in order to begin."""
        raw = "".join(self._pieces)
        if not isinstance(self._parser, RegionParser):
            return _thinking_text(self.generation.reply, self.generation.completion.prompt, raw)
        at = self._parser.answer_start
        if at is None:
            missing = self._parser.answer_prefix
            return (raw.rstrip() if missing else raw) + missing
        after = raw[at:]
        return raw[:at] + after[: len(after) - len(after.lstrip())]

    @property
    def output_tokens(self) -> int:
        """Tokens until now; while the run lasts, each piece of text counts as one."""
        return self.finished.output_tokens if self.finished is not None else len(self._pieces)

    async def figures(self) -> wire.Finished:
        """The runner's figures; for a cancelled run, the known ones."""
        if self.finished is not None:
            return self.finished
        drafted, accepted = self._drafts
        return wire.Finished(
            id=0,
            reason=self.reason,
            prompt_tokens=self._first_item.prompt_tokens or await self._count_prompt(),
            cached_tokens=self._first_item.cached_tokens,
            prompt_tokens_dropped=self._first_item.prompt_tokens_dropped,
            drafted=drafted,
            accepted=accepted,
            prompt_seconds=self._first - self._began,
            output_tokens=self.output_tokens,
            output_seconds=self._last - self._first,
        )

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
        self._count_text(item)
        return item

    def _count_text(self, item: wire.TextOutput) -> None:
        self._last = time.perf_counter()
        if not self._pieces:
            self._first, self._first_item = self._last, item
            self._live.prompt_tokens = item.prompt_tokens or self._live.prompt_tokens
        self._pieces.append(item.text)
        drafted, accepted = self._drafts
        self._live.count_token(item.drafted - drafted, item.accepted - accepted)
        self._drafts = (item.drafted, item.accepted)

    async def _count_prompt(self) -> int:
        """Prompt tokens of a run without output: at most a full context is read."""
        completion = self.generation.completion
        try:
            count = (await self._runner.count_tokens((completion.prompt,)))[0]
            return min(count, completion.num_ctx or count)
        except OllamaError:
            return 0  # the runner is gone; the reply still ends normally


def _thinking_text(reply: ReplyFormat, prompt: str, raw: str) -> str:
    """The output up to the beginning of the answer: thinking, closing tag and the white space after it."""
    assert reply.thinking is not None
    opening, closing = reply.thinking
    if not reply.begins_in_thinking(prompt) and not raw.lstrip().startswith(opening):
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
    logprobs = tuple(TokenLogprob(p.token, p.logprob, tuple((t.token, t.logprob) for t in p.top)) for p in probs)
    for at, event in enumerate(events):
        if isinstance(event, Delta):
            return [*events[:at], replace(event, logprobs=logprobs), *events[at + 1 :]]
    return [Delta(logprobs=logprobs), *events]


def run_record(generation: Generation, build: str) -> dict[str, Any]:
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
        "prompt_hash": _hash(completion.prompt),
        "options": shown,
        "seed": completion.options.seed & SEED_MASK,
        "engine_build": build,
    }


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"
