"""A whole reply, in one run of the model or two, with its figures.

Rule: a ``format`` binds the answer, not the thinking before it. A model that thinks does so unbound, then continues
its own text with the constraint in force, so that neither spoils the other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ollama_nb.api.events import Delta, Stats, ToolCalls
from ollama_nb.runner import wire
from ollama_nb.runner.process import Runner
from ollama_nb.service.passes import Ask, Pass
from ollama_nb.service.requests import LiveRequest


class Answer:
    """Iterate ``events()`` to its end, then read ``reason``, ``stats()`` and ``context``."""

    def __init__(self, runner: Runner, live: LiveRequest, ask: Ask) -> None:
        self.reason = "stop"
        self.context: tuple[int, ...] | None = None
        self._runner, self._live, self._ask = runner, live, ask
        self._figures: list[wire.Finished] = []

    async def events(self) -> AsyncGenerator[Delta | ToolCalls, None]:
        """Everything that the model says. A cancelled request ends with ``reason`` "cancelled", not with an error."""
        ask: Ask | None = self._ask
        if self._ask.format and not self._ask.thinks:
            ask = bound(self._ask)
        elif self._ask.format:
            thoughts = Pass(self._runner, self._live, replace(self._ask, format=""))
            answering = called = False
            async with aclosing(thoughts.events()) as events:
                async for event in events:
                    if isinstance(event, Delta) and event.content:
                        answering = True
                        if event.thinking:
                            yield Delta(thinking=event.thinking)
                        break
                    called = called or isinstance(event, ToolCalls)
                    yield event
            await self._note(thoughts)
            ask = bound_part(self._ask, thoughts, answering=answering, called=called)
        if ask is not None:
            answer = Pass(self._runner, self._live, ask)
            async with aclosing(answer.events()) as events:
                async for event in events:
                    yield event
            await self._note(answer)

    def stats(self) -> Stats:
        """The figures of both runs together; what the second one reads of the first one's output counts once."""
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

    async def _note(self, run: Pass) -> None:
        self.reason = run.reason
        figures = await run.figures()
        self._figures.append(figures)
        self._live.prompt_tokens = self._figures[0].prompt_tokens
        if run.ask.return_tokens and run.finished is not None:
            self.context = figures.tokens


def bound(ask: Ask) -> Ask:
    """An answer without thoughts, where the family's answers stand, the constraint in force from its first token."""
    if ask.family is None:
        return ask
    return replace(ask, prompt=ask.prompt + ask.family.create(ask.turn).answer_prefix, family=None, tools=())


def bound_part(ask: Ask, thoughts: Pass, *, answering: bool, called: bool) -> Ask | None:
    """The second run: the prompt and the thoughts, the constraint in force. None: nothing is left to say.

    A model that ended without an answer still owes one, unless it called a tool, ran out of room or was cancelled.
    """
    if not answering and (called or thoughts.reason != "stop"):
        return None
    options = ask.options
    if options.num_predict > 0:
        options = replace(options, num_predict=max(1, options.num_predict - thoughts.output_tokens))
    prompt = ask.prompt + thoughts.up_to_answer()
    # Thoughts that filled the context lose their middle: an answer is wanted, not an error after all that thinking.
    return replace(ask, prompt=prompt, options=options, thinking=None, family=None, truncate=True)
