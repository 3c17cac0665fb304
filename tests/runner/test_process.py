"""A runner process with a scripted child: streams, cancellation, and every kind of crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.aio import in_loop
from support.processes import children, until

from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest, Busy, InsufficientMemory, LoadError, RunnerCrashed, SlowReader
from ollama_nb.runner import process, wire
from ollama_nb.runner.process import Runner

FAKE = (sys.executable, "-P", str(Path(__file__).parent.parent / "support" / "fake_runner.py"))
STOPPED = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"


@pytest.fixture
def before() -> set[int]:
    """The children that existed before the test."""
    return children()


async def start(script: str = "ok", timeout: float = 30.0) -> Runner:
    return await Runner.start(wire.EngineConfig(path=script, n_ctx=128, n_seq=4), timeout, command=FAKE)


@contextlib.asynccontextmanager
async def running(script: str = "ok") -> AsyncIterator[Runner]:
    runner = await start(script)
    try:
        yield runner
    finally:
        await runner.stop()
        assert not exists(runner.pid)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def text_of(runner: Runner, prompt: str) -> tuple[str, str]:
    out, reason = "", ""
    async for item in runner.complete(wire.CompletionRequest(prompt=prompt, options=Options())):
        if isinstance(item, wire.TextOutput):
            out += item.text
        else:
            reason = item.reason
    return out, reason


@in_loop
async def test_loads_and_streams_many_at_once() -> None:
    async with running() as runner:
        assert runner.loaded.n_seq == 4
        assert runner.alive
        answers = await asyncio.gather(*(text_of(runner, f"stream {n} says 你好 !length") for n in range(6)))
        assert answers == [(f"stream {n} says 你好 ", "length") for n in range(6)]
        assert runner.busy == 0


@in_loop
async def test_embeds_tokenizes_and_counts() -> None:
    async with running() as runner:
        embedded = await runner.embed(["a", "b"])
        assert (embedded.dimensions, len(embedded.vectors)) == (4, 2 * 4 * 4)
        assert await runner.tokenize(["ab", ""]) == ((97, 98), ())
        assert await runner.count_tokens(["ab", ""]) == (2, 0)
        assert await runner.detokenize([104, 105]) == "hi"


@in_loop
async def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    async with running() as runner:
        env = (await runner.stats())["env"]
    assert "secret" not in str(env)
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["GGML_NO_BACKTRACE"] == "1"
    assert env["PATH"] == os.environ["PATH"]


@in_loop
async def test_closing_a_stream_cancels_it_at_once() -> None:
    async with running() as runner:
        stream = runner.complete(wire.CompletionRequest(prompt="one !wait", options=Options()))
        assert isinstance(await anext(stream), wire.TextOutput)
        assert (await runner.stats())["busy"] == 1
        await stream.aclose()
        stats = await runner.stats()
        assert (stats["busy"], stats["cancels"], runner.busy) == (0, 1, 0)


@in_loop
async def test_a_cancelled_task_cancels_its_request_and_a_finished_one_sends_nothing() -> None:
    async with running() as runner:
        task = asyncio.create_task(text_of(runner, "!wait"))
        while (await runner.stats())["busy"] == 0:
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await text_of(runner, "fine") == ("fine ", "stop")
        assert (await runner.stats())["cancels"] == 1


@in_loop
async def test_errors_of_one_request_keep_their_status() -> None:
    async with running() as runner:
        with pytest.raises(BadRequest, match="failed with 400"):
            await text_of(runner, "!fail:400")
        with pytest.raises(Busy):
            await text_of(runner, "!fail:503")
        assert await text_of(runner, "alive") == ("alive ", "stop")


@in_loop
async def test_a_request_that_cannot_be_encoded_is_refused() -> None:
    async with running() as runner:
        with pytest.raises(BadRequest, match="cannot be encoded"):
            await text_of(runner, "\ud800")
        with pytest.raises(BadRequest, match="cannot be encoded"):
            await runner.detokenize([1 << 65])
        assert runner.busy == 0


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("!die:SIGKILL", "killed by SIGKILL, perhaps because memory ran out"),
        ("!die:SIGSEGV", "died by SIGSEGV"),
        ("!die:SIGILL", "died by SIGILL: llama-cpp-python was built for another processor"),
        ("!garbage", "invalid message frame"),
        ("!close", "it closed its connection"),
    ],
)
@in_loop
async def test_a_crash_fails_every_stream_with_its_cause(command: str, cause: str) -> None:
    runner = await start()
    before_answer = runner.complete(wire.CompletionRequest(prompt="!wait", options=Options()))
    waiting = asyncio.ensure_future(anext(before_answer))
    midway = runner.complete(wire.CompletionRequest(prompt=f"some text {command}", options=Options()))
    assert [(await anext(midway)).text for _ in range(2)] == ["some ", "text "]  # type: ignore[union-attr]
    with pytest.raises(RunnerCrashed) as middle:
        await anext(midway)
    assert middle.value.message.startswith(f"an error was encountered while running the model: {cause}")
    with pytest.raises(RunnerCrashed) as early:
        await waiting
    assert early.value.message.startswith(STOPPED)
    assert cause in early.value.message
    with pytest.raises(RunnerCrashed, match=STOPPED):
        await runner.embed(["too late"])
    assert not runner.alive
    end = await runner.wait()
    assert cause in end.cause
    assert end.killed == (command == "!die:SIGKILL")
    await runner.stop()
    assert not exists(runner.pid)


@in_loop
async def test_messages_before_a_crash_are_read_even_when_a_write_fails_first() -> None:
    runner = await start()
    last_words = runner.complete(wire.CompletionRequest(prompt="last words !close", options=Options()))
    first = asyncio.ensure_future(anext(last_words))
    await asyncio.sleep(0)
    hung_up = select.poll()
    hung_up.register(runner._link.child.channel, 0)
    assert hung_up.poll(10_000)  # waited for without letting the loop read
    runner._link.send(wire.Ping())
    assert (await first).text == "last "  # type: ignore[union-attr]
    assert (await anext(last_words)).text == "words "  # type: ignore[union-attr]
    with pytest.raises(RunnerCrashed, match="while running the model"):
        await anext(last_words)
    await runner.stop()


@in_loop
async def test_kill_from_outside_is_noticed_as_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_nb.runner.process.TICK", 3600.0)  # no check for silence
    runner = await start()
    stream = runner.complete(wire.CompletionRequest(prompt="word !wait", options=Options()))
    await anext(stream)
    os.kill(runner.pid, signal.SIGKILL)
    with pytest.raises(RunnerCrashed, match="killed by SIGKILL"):
        await anext(stream)
    await runner.stop()


@in_loop
async def test_a_stopped_runner_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_nb.runner.process.TICK", 0.01)
    runner = await start()
    with pytest.raises(RunnerCrashed, match="did not answer"):
        await text_of(runner, "a !stop")
    await runner.stop()


@in_loop
async def test_a_silent_runner_that_answers_pings_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_nb.runner.process.TICK", 0.15)  # an answer may take 1.5 s
    pings = []
    async with running() as runner:
        send = runner._link.send
        monkeypatch.setattr(runner._link, "send", lambda message: (pings.append(message), send(message)))
        stream = runner.complete(wire.CompletionRequest(prompt="a !wait", options=Options()))
        await anext(stream)
        silence = asyncio.ensure_future(anext(stream))
        while len(pings) < 4:
            await asyncio.wait([silence], timeout=0.02)
        assert runner.alive
        silence.cancel()
        await asyncio.wait([silence])


@pytest.mark.parametrize("script", ["ok", "flood:30"])
@in_loop
async def test_a_flood_of_output_neither_blocks_nor_grows(script: str) -> None:
    async with running(script) as runner:
        assert await text_of(runner, "before !flood:30 after") == ("before after ", "stop")
        assert len(runner._link.child.printed.text()) <= 1 << 20


@in_loop
async def test_unread_text_is_merged_and_other_streams_continue() -> None:
    """F24: what a caller does not read takes the memory of its text only, and nothing of it is lost."""
    words = [f"w{at}" for at in range(20_000)]
    async with running() as runner:
        unread = runner.complete(wire.CompletionRequest(prompt=" ".join(words), options=Options()))
        first = await anext(unread)
        assert await text_of(runner, "one two") == ("one two ", "stop")
        (request,) = runner._pending.values()
        await asyncio.to_thread(until, lambda: request.ended)
        assert len(request.unread) < process.MERGE_AFTER + 60
        texts = [item.text for item in request.unread if isinstance(item, wire.TextOutput)]
        assert max(map(len, texts)) <= process.MERGED_TEXT
        items = [first, *[item async for item in unread]]
        assert "".join(item.text for item in items if isinstance(item, wire.TextOutput)) == " ".join(words) + " "
        assert items[-2].output_tokens == len(words)


@in_loop
async def test_a_caller_with_too_many_unread_outputs_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """F24: outputs that cannot be merged are bounded by their number; the runner stops working on the request."""
    monkeypatch.setattr(process, "MERGED_TEXT", 0)
    monkeypatch.setattr(process, "MAX_UNREAD", 500)
    async with running() as runner:
        unread = runner.complete(wire.CompletionRequest(prompt="word " * 20_000, options=Options()))
        await anext(unread)
        (request,) = runner._pending.values()
        await asyncio.to_thread(until, lambda: request.ended)
        assert len(request.unread) == 501
        with pytest.raises(SlowReader):
            async for _ in unread:
                pass
        assert (await runner.stats())["cancels"] == 1
        assert await text_of(runner, "one two") == ("one two ", "stop")


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("fail:no such tensor", LoadError, "no such tensor"),
        ("die:SIGKILL", InsufficientMemory, "the model runner process has terminated: killed by SIGKILL"),
        ("die:SIGABRT", RunnerCrashed, "the model runner process has terminated: died by SIGABRT"),
        ("exit:3:GGML_ASSERT failed", RunnerCrashed, "exited with status 3: GGML_ASSERT failed"),
        ("garbage", RunnerCrashed, "invalid message frame"),
        ("close", RunnerCrashed, "closed its connection"),
    ],
)
@in_loop
async def test_the_error_of_a_failed_load(script: str, kind: type[Exception], message: str, before: set[int]) -> None:
    with pytest.raises(kind, match=message):
        await start(script)
    assert children() <= before


@in_loop
async def test_a_load_that_hangs_times_out_with_its_last_output(before: set[int]) -> None:
    with pytest.raises(LoadError, match="timed out waiting for the model runner to start - loading tensors"):
        await start("hang", timeout=3.0)
    assert children() <= before


@in_loop
async def test_a_load_that_still_logs_does_not_time_out_and_can_be_cancelled(before: set[int]) -> None:
    task = asyncio.create_task(start("chatter", timeout=3.0))
    await asyncio.wait([task], timeout=4.0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() <= before


@in_loop
async def test_a_missing_command() -> None:
    with pytest.raises(LoadError, match="cannot be started: No such file"):
        await Runner.start(wire.EngineConfig(path="ok", n_ctx=1), command=("/nonexistent/python",))


@in_loop
async def test_stop_ends_even_a_stopped_process() -> None:
    runner = await start()
    os.kill(runner.pid, signal.SIGSTOP)
    await runner.stop(grace=0.1)
    assert not exists(runner.pid)


@in_loop
async def test_no_descriptor_leaks() -> None:
    async with running():
        pass
    before = descriptors()
    for _ in range(3):
        async with running() as runner:
            await text_of(runner, "a b c")
    assert descriptors() <= before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
