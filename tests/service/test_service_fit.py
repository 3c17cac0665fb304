"""Fitting a conversation: the result of dropping one message at a time, in few round trips, and reported."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.service_harness import FakeLease, ServiceHarness

from ollama_nb.api.messages import Message
from ollama_nb.api.requests import PromptJob, TemplateKind
from ollama_nb.errors import TemplateError
from ollama_nb.service.prompt import PROBES, Prompt, dropped_count, fit, possible_drops, spread

GO = "{{ range .Messages }}{{ .Role }} {{ .Content }} {{ end }}"
LEGACY = "{{ if .System }}system {{ .System }} {{ end }}{{ .Prompt }} asked {{ .Response }} answered "
JINJA = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
TURNS = (
    "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('take turns') }}{% endif %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
)


def fitted(harness: ServiceHarness, job: PromptJob, limit: int, image_tokens: int = 0) -> Prompt:
    lease = FakeLease(harness.pool, limit + 1)
    harness.renderer.jobs.clear()
    fitting = fit(harness.service._backend, lease, job, limit, image_tokens=image_tokens)  # type: ignore[arg-type]
    return asyncio.run(fitting)


def rendered(harness: ServiceHarness, job: PromptJob, drop: int) -> str | None:
    """The prompt without the ``drop`` oldest messages; None where the template refuses that."""
    try:
        return asyncio.run(harness.renderer.render(replace(job, drops=(drop,))))[0]
    except TemplateError:
        return None


def one_at_a_time(harness: ServiceHarness, job: PromptJob, limit: int) -> tuple[int, str]:
    """The reference: drop the oldest message until the prompt fits or only the last message is left."""
    last = (0, "")
    for drop in [0, *possible_drops(job.messages)]:
        text = rendered(harness, job, drop)
        if text is not None:
            last = (drop, text)
            if len(text.split()) <= limit:
                break
    return last


roles = st.sampled_from(["user", "assistant", "tool", "system"])
talks = st.lists(st.tuples(roles, st.integers(0, 30)), min_size=1, max_size=60)


@pytest.mark.parametrize(("kind", "template"), [("go", GO), ("go", LEGACY), ("jinja", JINJA)])
@settings(max_examples=100, deadline=None)
@given(talks, st.integers(1, 400))
def test_the_result_equals_dropping_one_message_at_a_time(
    kind: TemplateKind, template: str, talk: list[tuple[str, int]], limit: int
) -> None:
    harness = ServiceHarness(Path("/nowhere"))
    messages = tuple(Message(role, "w " * words) for role, words in talk)
    job = PromptJob(kind=kind, template=template, messages=messages)
    drop, text = one_at_a_time(harness, job, limit)
    prompt = fitted(harness, job, limit)
    assert prompt.text == text
    assert len(harness.renderer.jobs) <= 2 + math.ceil(math.log(1 + len(possible_drops(messages)), PROBES))
    if template != LEGACY:  # where it does not show which messages are there, equal prompts may have lost more or less
        assert prompt.messages_dropped == dropped_count(messages, drop)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.booleans(), st.integers(1, 300))
def test_templates_with_alternating_roles_lose_whole_turns(lengths: list[int], system: bool, limit: int) -> None:
    harness = ServiceHarness(Path("/nowhere"))
    talk = [Message("assistant" if at % 2 else "user", "w " * words) for at, words in enumerate(lengths)]
    messages = tuple(
        ([Message("system", "s")] if system else []) + talk + [Message("user", "w")] * (len(talk) % 2 == 0)
    )
    job = PromptJob(kind="jinja", template=TURNS, messages=messages)
    drop, text = one_at_a_time(harness, job, limit)
    prompt = fitted(harness, job, limit)
    assert (prompt.text, prompt.messages_dropped) == (text, dropped_count(messages, drop))
    assert len(harness.renderer.jobs) <= 2 + 2 * math.ceil(math.log(1 + len(messages), PROBES))


def test_the_error_of_a_template_that_refuses_every_cut() -> None:
    refusing = "{% if messages | length < 5 %}{{ raise_exception('too short') }}{% endif %}" + JINJA
    messages = tuple(Message("user" if at % 2 == 0 else "assistant", "w " * 30) for at in range(5))
    with pytest.raises(TemplateError, match="too short"):
        fitted(ServiceHarness(Path("/nowhere")), PromptJob(kind="jinja", template=refusing, messages=messages), 40)


def test_images_count_while_their_message_is_kept() -> None:
    harness = ServiceHarness(Path("/nowhere"))
    look = [Message("user", "look", images=(b"a", b"b")), Message("assistant", "a cat"), Message("user", "sure?")]
    job = PromptJob(kind="go", template=GO, messages=tuple(look))
    whole = fitted(harness, job, 300, image_tokens=100)
    assert (whole.messages_dropped, whole.image_count) == (0, 2) and whole.text.count("[img-") == 2
    drop = fitted(harness, job, 150, image_tokens=100)
    assert (drop.messages_dropped, drop.image_count) == (1, 0) and "[img-" not in drop.text
    assert drop.tokens == 5 and drop.tokens_dropped == (whole.tokens or 0) - 5


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 5), (0, 7), (0, 100), (17, 1000)])
def test_probes_are_spread_up_to_the_end(low: int, high: int) -> None:
    places = spread(low, high)
    assert places == sorted(set(places))
    assert len(places) == min(PROBES, high - low + 1)
    assert places[0] >= low
    assert places[-1] == high


def test_a_thousand_messages_need_few_round_trips() -> None:
    harness = ServiceHarness(Path("/nowhere"))
    messages = tuple(Message("user" if at % 2 else "assistant", f"word{at} " * 10) for at in range(1000))
    job = PromptJob(kind="jinja", template="{% for m in messages %}{{ m.content }}{% endfor %}", messages=messages)

    async def run() -> Prompt:
        return await fit(harness.service._backend, FakeLease(harness.pool, 4096), job, 4095)  # type: ignore[arg-type]

    prompt = asyncio.run(run())
    assert prompt.messages_dropped == 1000 - 409
    assert prompt.tokens == 4090
    assert prompt.tokens_dropped == 10_000 - 4090
    assert len(harness.renderer.jobs) <= 5
    assert len(harness.pool.runner.counted) <= 5
