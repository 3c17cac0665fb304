"""The render process: prompts come back in order, and a hostile template fails only its own request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.aio import in_loop

from ollama_nb.api.messages import Message
from ollama_nb.api.requests import PromptJob
from ollama_nb.errors import BadRequest, RunnerCrashed, TemplateError
from ollama_nb.runner.renderer import Renderer

TOO_MUCH = "template took too long or too much memory"
LIST_BOMB = "{{ [0]*200000000 }}"
MEMORY_BOMB = "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
TIME_BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def jinja(template: str, text: str = "hi") -> PromptJob:
    return PromptJob(kind="jinja", template=template, messages=(Message("user", text),))


def echo(text: str) -> PromptJob:
    return jinja("{% for m in messages %}<{{ m.content }}>{% endfor %}", text)


@contextlib.asynccontextmanager
async def open_renderer(seconds: float = 2.0) -> AsyncIterator[Renderer]:
    renderer = Renderer(job_seconds=seconds)
    try:
        yield renderer
    finally:
        await renderer.close()


def pid_of(renderer: Renderer) -> int:
    assert renderer._process is not None
    return renderer._process.link.child.pid


@in_loop
async def test_renders_go_and_jinja() -> None:
    go = PromptJob(
        kind="go", template="{{ range .Messages }}[{{ .Content }}]{{ end }}", messages=(Message("user", "你好"),)
    )
    async with open_renderer() as renderer:
        await renderer.render(echo("ready"))
        assert await renderer.render(go) == ("[你好]",)
        assert await renderer.render(echo("again")) == ("<again>",)


@in_loop
async def test_renders_by_name() -> None:
    messages = (Message("user", "你好", images=(b"png",)),)
    job = PromptJob(kind="renderer", template="", renderer="qwen3-vl-instruct", messages=messages)
    async with open_renderer() as renderer:
        prompt = "<|im_start|>user\n[img-0] 你好<|im_end|>\n<|im_start|>assistant\n"
        assert await renderer.render(job) == (prompt,)
        with pytest.raises(TemplateError, match="no user message"):
            await renderer.render(PromptJob(kind="renderer", template="", renderer="qwen3.8", messages=()))


@in_loop
async def test_concurrent_callers_share_one_process() -> None:
    async with open_renderer() as renderer:
        answers = await asyncio.gather(*(renderer.render(echo(str(n))) for n in range(30)))
        assert answers == [(f"<{n}>",) for n in range(30)]


@pytest.mark.parametrize(
    ("bomb", "message"), [(LIST_BOMB, ""), (MEMORY_BOMB, "too much memory"), (TIME_BOMB, TOO_MUCH)]
)
@in_loop
async def test_a_hostile_template_fails_only_its_own_request(bomb: str, message: str) -> None:
    async with open_renderer() as renderer:
        await renderer.render(echo("ready"))
        before, hostile, after = await asyncio.gather(
            renderer.render(echo("before")),
            renderer.render(jinja(bomb)),
            renderer.render(echo("after")),
            return_exceptions=True,
        )
        assert (before, after) == (("<before>",), ("<after>",))
        assert isinstance(hostile, TemplateError)
        assert message in str(hostile)


@in_loop
async def test_time_on_a_busy_machine_does_not_count() -> None:
    """The job waits longer than its limit but uses almost no processor time."""
    async with open_renderer(seconds=1.0) as renderer:
        await renderer.render(echo("ready"))
        os.kill(pid_of(renderer), signal.SIGSTOP)
        waiting = asyncio.ensure_future(renderer.render(echo("late")))
        await asyncio.wait([waiting], timeout=1.5)
        os.kill(pid_of(renderer), signal.SIGCONT)
        assert await waiting == ("<late>",)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
@in_loop
async def test_a_job_whose_process_dies_or_stops_is_run_again(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ollama_nb.runner.renderer.WAIT_FACTOR", 2)
    async with open_renderer(seconds=1.0) as renderer:
        await renderer.render(echo("ready"))
        os.kill(pid_of(renderer), signal.SIGSTOP)  # the job is received, but does not begin
        job = asyncio.ensure_future(renderer.render(echo("again")))
        await asyncio.sleep(0.1)
        os.kill(pid_of(renderer), number)
        assert await job == ("<again>",)


@pytest.mark.parametrize(
    ("number", "error", "cause"),
    [
        (signal.SIGKILL, RunnerCrashed, "SIGKILL"),
        (signal.SIGSTOP, RunnerCrashed, "no answer within 1 s"),
        (signal.SIGSEGV, TemplateError, "SIGSEGV"),
    ],
)
@in_loop
async def test_a_job_whose_process_dies_or_stops_twice(
    number: signal.Signals, error: type[Exception], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a crash can be the fault of the template."""
    monkeypatch.setattr("ollama_nb.runner.renderer.WAIT_FACTOR", 1)
    children: list[int] = []
    run = Renderer._run

    async def hurt(renderer: Renderer, process: Any, data: bytes) -> Any:
        children.append(process.link.child.pid)
        os.kill(children[-1], number)
        return await run(renderer, process, data)

    async with open_renderer(seconds=1.0) as renderer:
        await renderer.render(echo("ready"))
        monkeypatch.setattr(Renderer, "_run", hurt)
        with pytest.raises(error, match=cause):
            await renderer.render(echo("never"))
        assert len(set(children)) == 2
        monkeypatch.undo()
        assert await renderer.render(echo("on")) == ("<on>",)


@in_loop
async def test_texts_of_gigabytes_are_refused_without_ending_the_process() -> None:
    bombs = (
        "{{ 'a' | center(2000000000) }}",
        "{{ '%2000000000d' % 1 }}",
        "{{ '%2000000000d' | format(1) }}",
        "{{ '{:>2000000000}'.format(1) }}",
        "{{ 'a'.ljust(2000000000) }}",
        "{% macro m() %}{{ caller() }}{{ m() }}{% endmacro %}{{ m() }}",
    )
    async with open_renderer() as renderer:
        await renderer.render(echo("ready"))
        pid = pid_of(renderer)
        for bomb in bombs:
            with pytest.raises(TemplateError):
                await renderer.render(jinja(bomb))
            assert await renderer.render(echo("on")) == ("<on>",)
        assert pid_of(renderer) == pid


@in_loop
async def test_the_message_of_a_template_error() -> None:
    async with open_renderer() as renderer:
        with pytest.raises(TemplateError):
            await renderer.render(PromptJob(kind="go", template="{{ .Nope"))
        with pytest.raises(TemplateError):
            await renderer.render(jinja("{{ raise_exception('roles must alternate') }}"))
        assert await renderer.render(echo("fine")) == ("<fine>",)


@in_loop
async def test_a_process_killed_between_jobs_is_replaced() -> None:
    async with open_renderer() as renderer:
        await renderer.render(echo("ready"))
        process = renderer._process
        assert process is not None
        os.kill(pid_of(renderer), signal.SIGKILL)
        await process.link.ended
        assert await renderer.render(echo("on")) == ("<on>",)


@in_loop
async def test_a_caller_that_goes_away_does_not_hold_up_the_next() -> None:
    async with open_renderer(seconds=30.0) as renderer:
        await renderer.render(echo("ready"))
        slow = asyncio.create_task(renderer.render(jinja(TIME_BOMB)))
        await asyncio.sleep(0)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert await renderer.render(echo("next")) == ("<next>",)


@in_loop
async def test_a_job_that_cannot_be_encoded_is_refused() -> None:
    async with open_renderer() as renderer:
        with pytest.raises(BadRequest, match="cannot be encoded"):
            await renderer.render(echo("\ud800"))


@in_loop
async def test_a_process_that_cannot_be_started() -> None:
    renderer = Renderer(command=("/nonexistent/python",))
    for _ in range(2):
        with pytest.raises(RunnerCrashed, match="the render process cannot be started: No such file"):
            await renderer.render(echo("x"))
    renderer = Renderer(command=(sys.executable, "-c", "import sys; sys.exit('no jinja here')"))
    with pytest.raises(RunnerCrashed, match="did not start: exited with status 1: no jinja here"):
        await renderer.render(echo("x"))
    await renderer.close()


@in_loop
async def test_closing_twice_and_closing_unused() -> None:
    renderer = Renderer()
    await renderer.close()
    await renderer.render(echo("ready"))
    await renderer.close()
    await renderer.close()


def test_the_server_side_loads_neither_templates_nor_the_engine() -> None:
    code = (
        "import sys, ollama_nb.runner.renderer, ollama_nb.runner.pool;"
        "heavy = {'jinja2', 'llama_cpp', 'numpy', 'ollama_nb.template', 'ollama_nb.engine.llama'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
