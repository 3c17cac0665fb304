"""Replies of OpenAI's API, byte for byte: whole ones, streams, errors, and replies to several prompts."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aio import in_loop
from support.fake_service import FakeService
from support.service_harness import ServiceHarness

from ollama_nb.api.events import (
    Delta,
    Done,
    Embeddings,
    Event,
    PromptRead,
    Ranking,
    Rendered,
    Stats,
    TokenLogprob,
    ToolCallDelta,
    ToolCalls,
)
from ollama_nb.api.messages import ToolCall
from ollama_nb.api.requests import GenerateRequest
from ollama_nb.errors import BadRequest, Busy, Cancelled, Forbidden, ModelNotFound, OllamaError, Unauthorized
from ollama_nb.server.dialects.encoder import timings, warnings_of
from ollama_nb.server.dialects.openai import answers, replies
from ollama_nb.server.dialects.openai.replies import ChatCompletionReply, CompletionReply, TextPosition
from ollama_nb.server.dialects.openai.requests import Completion, ReplyForm

STATS = Stats(
    prompt_tokens=11, cached_tokens=4, prompt_seconds=0.5, output_tokens=5, output_seconds=0.25, total_seconds=1.0,
    context_length=512, reasoning_tokens=3,
)  # fmt: skip
USAGE = (
    '{"prompt_tokens":11,"completion_tokens":5,"total_tokens":16,"prompt_tokens_details":{"cached_tokens":4},'
    '"completion_tokens_details":{"reasoning_tokens":3}}'
)
CALL = ToolCall("f", {"x": "<é>"}, "call_a", 0)
CALL_JSON = (
    '{"id":"call_a","index":0,"type":"function","function":'
    '{"name":"f","arguments":"{\\"x\\":\\"\\\\u003cé\\\\u003e\\"}"}}'
)
PROB = TokenLogprob(b"Hi", -0.5, ((b"Hi", -0.5), (b"\xe4\xb8", float("-inf"))))
PROB_JSON = (
    '{"content":[{"token":"Hi","logprob":-0.5,"bytes":[72,105],"top_logprobs":[{"token":"Hi","logprob":-0.5,'
    '"bytes":[72,105]},{"token":"�","logprob":-9999,"bytes":[228,184]}]}]}'
)
HEAD = re.compile(
    r'"id":"(?:chatcmpl|cmpl|score)-[0-9a-f]{24}"(,"object":"[a-z._]+","created":)\d{10}(,"model":"m\\u003c1\\u003e",)'
    r'"system_fingerprint":"fp_ollama",'
)
MODEL = "m<1>"


def plain(text: bytes) -> str:
    """The text without what is in every object: id, time, model, fingerprint. Each of them is checked."""
    found, count = HEAD.subn("", text.decode())
    assert count == found.count('"choices":')
    return found


def frames(text: bytes) -> list[str]:
    """The data of the frames of a stream."""
    blocks = plain(text).split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def stream(encoder: CompletionReply, *events: Event) -> list[str]:
    assert not any(encoder.is_whole(event) for event in events)
    return frames(encoder.start() + b"".join(encoder.chunk(event) for event in events) + encoder.end())


def chat(*, usage: bool = False, timed: bool = False) -> ChatCompletionReply:
    return ChatCompletionReply(MODEL, ReplyForm(stream=True, include_usage=usage), timed=timed)


def text(*, usage: bool = False, echoes: Sequence[str] = ()) -> CompletionReply:
    return CompletionReply(MODEL, ReplyForm(stream=True, include_usage=usage), echoes=echoes)


def delta(delta: str, reason: str = "null", index: int = 0, more: str = "", usage: str = "") -> str:
    return f'{{"choices":[{{"index":{index},"delta":{delta},"finish_reason":{reason}{more}}}]{usage}}}'


def test_a_whole_chat() -> None:
    done = Done("stop", STATS, warnings=("w",), run={"seed": 7})
    events = [PromptRead(11, 4), Delta("", "hm "), Delta("", "so"), Delta("Hi", logprobs=(PROB,)), Delta(" <天>"), done]
    assert plain(chat().whole(events)) == (
        '{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi \\u003c天\\u003e","reasoning":"hm so",'
        f'"reasoning_content":"hm so"}},"finish_reason":"stop","logprobs":{PROB_JSON}}}],"usage":{USAGE},'
        '"warnings":["w"],"run":{"seed":7}}\n'
    )


def test_a_whole_chat_with_calls() -> None:
    other = ToolCall("g", {}, "call_b", 1)
    whole = plain(chat().whole([ToolCalls((CALL,)), ToolCalls((other,)), Done("stop", STATS)]))
    second = '{"id":"call_b","index":1,"type":"function","function":{"name":"g","arguments":"{}"}}'
    assert whole == (
        f'{{"choices":[{{"index":0,"message":{{"role":"assistant","content":"","tool_calls":[{CALL_JSON},{second}]}},'
        f'"finish_reason":"tool_calls"}}],"usage":{USAGE}}}\n'
    )
    cut = json.loads(chat().whole([ToolCalls((CALL,)), Done("length", STATS)]))
    assert cut["choices"][0]["finish_reason"] == "length"


def test_a_whole_chat_with_choices() -> None:
    events = [Delta("b", choice=1), Delta("a"), Delta("c", choice=2), Done("length", choice=1), Done("stop", choice=2)]
    choices = json.loads(chat().whole([*events, Done("stop", STATS)]))["choices"]
    assert [(choice["index"], choice["message"]["content"], choice["finish_reason"]) for choice in choices] == [
        (0, "a", "stop"), (1, "b", "length"), (2, "c", "stop"),
    ]  # fmt: skip


def test_a_rendered_prompt() -> None:
    for encoder in (chat(), text()):
        assert encoder.is_whole(Rendered("<s>"))
        found = json.loads(encoder.whole([Rendered("<s>", 2)]))
        assert found["_debug_info"] == {"rendered_template": "<s>", "image_count": 2}
        assert found["choices"][0]["finish_reason"] is None and found["usage"]["total_tokens"] == 0


def test_a_streamed_chat() -> None:
    assert stream(
        chat(), PromptRead(11), Delta("", "hm"), Delta("<天>", logprobs=(PROB,)), Delta(""), Done("stop", STATS)
    ) == [
        delta('{"role":"assistant","content":"","reasoning":"hm","reasoning_content":"hm"}'),
        delta('{"content":"\\u003c天\\u003e"}', more=f',"logprobs":{PROB_JSON}'),
        delta('{"content":""}'),
        delta("{}", '"stop"'),
        "[DONE]",
    ]


def test_thinking_and_content_of_one_event_are_two_frames() -> None:
    assert stream(chat(), Delta("a", "b", (PROB,)), Done("length", STATS)) == [
        delta('{"role":"assistant","reasoning":"b","reasoning_content":"b"}', more=f',"logprobs":{PROB_JSON}'),
        delta('{"content":"a"}'),
        delta("{}", '"length"'),
        "[DONE]",
    ]


def test_a_streamed_chat_without_text() -> None:
    assert stream(chat(), Done("stop", STATS)) == [
        delta('{"role":"assistant","content":""}'), delta("{}", '"stop"'), "[DONE]",
    ]  # fmt: skip


def test_usage_warnings_and_timings_come_last() -> None:
    done = Done("stop", STATS, warnings=("w",), run={"seed": 7})
    null = ',"usage":null'
    start = [delta('{"role":"assistant","content":"a"}', usage=null), delta("{}", '"stop"', usage=null)]
    last = f'{{"choices":[],"usage":{USAGE},"warnings":["w"],"run":{{"seed":7}}}}'
    assert stream(chat(usage=True), Delta("a"), done) == [*start, last, "[DONE]"]
    without = stream(chat(), Delta("a"), done)
    assert without[-2:] == ['{"choices":[],"warnings":["w"],"run":{"seed":7}}', "[DONE]"]
    timed = json.loads(stream(chat(timed=True), Done("stop", STATS))[-2])
    assert timed["choices"] == [] and timed["timings"]["predicted_n"] == 5 and "usage" not in timed


def test_streamed_calls() -> None:
    whole = [Delta("a"), ToolCalls((CALL,)), Done("stop", STATS)]
    assert stream(chat(), *whole)[1:] == [
        delta(f'{{"content":"","tool_calls":[{CALL_JSON}]}}'), delta("{}", '"tool_calls"'), "[DONE]",
    ]  # fmt: skip


def test_calls_in_pieces() -> None:
    pieces = [
        ToolCallDelta(0, "", "f", "call_a"), ToolCallDelta(0, '{"x":'), ToolCallDelta(0, "1}"),
        ToolCalls((ToolCall("f", {"x": 1}, "call_a", 0),)),
        ToolCallDelta(1, "{", "g", "call_b"), ToolCallDelta(1, "}"),
        ToolCalls((ToolCall("g", {}, "call_b", 1), ToolCall("h", {}, "call_c", 2))),
    ]  # fmt: skip

    def call(inner: str) -> str:
        return delta(f'{{"tool_calls":[{inner}]}}')

    first = '{"id":"call_a","index":0,"type":"function","function":{"name":"f","arguments":""}}'
    assert stream(chat(), *pieces, Done("stop", STATS)) == [
        delta(f'{{"role":"assistant","tool_calls":[{first}]}}'),
        call('{"index":0,"function":{"arguments":"{\\"x\\":"}}'),
        call('{"index":0,"function":{"arguments":"1}"}}'),
        call('{"id":"call_b","index":1,"type":"function","function":{"name":"g","arguments":"{"}}'),
        call('{"index":1,"function":{"arguments":"}"}}'),
        delta('{"content":"","tool_calls":[{"id":"call_c","index":2,"type":"function","function":'
              '{"name":"h","arguments":"{}"}}]}'),
        delta("{}", '"tool_calls"'),
        "[DONE]",
    ]  # fmt: skip
    broken = [ToolCallDelta(0, "{", "f", "call_a"), Delta("<call>f{", tool_error="not closed"), Done("stop", STATS)]
    assert stream(chat(), *broken)[-2] == delta("{}", '"stop"')


def test_streamed_choices() -> None:
    events = [Delta("a"), Delta("b", choice=1), Delta("c"), Done("stop"), Done("length", STATS, choice=1)]
    assert stream(chat(), *events) == [
        delta('{"role":"assistant","content":"a"}'),
        delta('{"role":"assistant","content":"b"}', index=1),
        delta('{"content":"c"}'),
        delta("{}", '"stop"'),
        delta("{}", '"length"', index=1),
        "[DONE]",
    ]


def test_a_whole_completion() -> None:
    first = TokenLogprob(b"\xe5\xa4", -0.25)
    second = TokenLogprob(b"\xa9!", -0.5, ((b"\xa9", -0.125),))
    events = [Delta("", "hm"), Delta("", logprobs=(first,)), Delta("天!", logprobs=(second,)), Done("stop", STATS)]
    assert plain(text(echoes=["<p>"]).whole(events)) == (
        '{"choices":[{"text":"\\u003cp\\u003e天!","index":0,"reasoning":"hm","reasoning_content":"hm","finish_reason":"stop",'
        '"logprobs":{"tokens":["bytes:\\\\xe5\\\\xa4","bytes:\\\\xa9!"],"token_logprobs":[-0.25,-0.5],'
        '"top_logprobs":[{"bytes:\\\\xe5\\\\xa4":-0.25},{"bytes:\\\\xa9":-0.125,"bytes:\\\\xa9!":-0.5}],'
        f'"text_offset":[3,3]}}}}],"usage":{USAGE}}}\n'
    ).replace("bytes:\\\\xa9!", "bytes:\\\\xa9\\\\x21")


def test_a_streamed_completion() -> None:
    token = TokenLogprob(b"a", -0.5)
    events = [Delta("a", logprobs=(token,)), Delta("b", choice=1), Done("load", choice=1), Done("length", STATS)]
    lone = '"logprobs":{"tokens":["a"],"token_logprobs":[-0.5],"top_logprobs":[{"a":-0.5}],"text_offset":[2]}'
    assert stream(text(usage=True, echoes=["天:", "x"]), *events) == [
        f'{{"choices":[{{"text":"天:a","index":0,"finish_reason":null,{lone}}}],"usage":null}}',
        '{"choices":[{"text":"xb","index":1,"finish_reason":null}],"usage":null}',
        '{"choices":[{"text":"","index":1,"finish_reason":"load"}],"usage":null}',
        '{"choices":[{"text":"","index":0,"finish_reason":"length"}],"usage":null}',
        f'{{"choices":[],"usage":{USAGE}}}',
        "[DONE]",
    ]
    assert stream(text(echoes=["p"]), Done("length", STATS))[0] == (
        '{"choices":[{"text":"p","index":0,"finish_reason":"length"}]}'
    )


def test_calls_that_a_model_makes_unasked_are_in_completions() -> None:
    events = [Delta("a"), ToolCalls((CALL,)), Done("stop", STATS)]
    assert stream(text(), *events)[1] == (
        f'{{"choices":[{{"text":"","index":0,"tool_calls":[{CALL_JSON}],"finish_reason":null}}]}}'
    )
    assert f'"tool_calls":[{CALL_JSON}],"finish_reason":"stop"' in plain(text().whole(events))


def test_a_whole_reply_to_a_streamed_request() -> None:
    """Batches gather the events of a stream, in which those of several choices are mixed."""
    call = ToolCall("f", {}, "call_a", 0)
    events = [
        PromptRead(1), Done("stop"), ToolCallDelta(0, "{}", "f", "call_a", 1), ToolCalls((call,), 1),
        Done("stop", STATS, choice=1),
    ]  # fmt: skip
    choices = json.loads(chat().whole(events))["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "tool_calls"]


def test_a_cancelled_reply_is_an_error() -> None:
    for encoder in (chat(), text()):
        with pytest.raises(Cancelled):
            encoder.whole([Delta("a"), Done("cancelled", STATS)])
        with pytest.raises(Cancelled):
            encoder.chunk(Done("cancelled", STATS))


@pytest.mark.parametrize(
    ("error", "kind", "param"),
    [
        (BadRequest("a <b>", field="n"), "invalid_request_error", '"n"'),
        (Unauthorized("a <b>"), "authentication_error", "null"),
        (Forbidden("a <b>"), "permission_error", "null"),
        (ModelNotFound("a <b>"), "not_found_error", "null"),
        (OllamaError("a <b>", status=429, code="slow_down"), "rate_limit_error", "null"),
        (Cancelled("a <b>"), "invalid_request_error", "null"),
        (Busy("a <b>"), "api_error", "null"),
        (OllamaError("a <b>"), "api_error", "null"),
    ],
)
def test_errors(error: OllamaError, kind: str, param: str) -> None:
    body = f'{{"error":{{"message":"a \\u003cb\\u003e","type":"{kind}","param":{param},"code":"{error.code}"}}}}'
    assert replies.ERRORS.encode(error, "id").decode() == body + "\n"
    in_stream = f"data: {body}\n\ndata: [DONE]\n\n"
    assert chat().fail(error).decode() == replies.ERRORS.in_stream(error, "id").decode() == in_stream


def test_embeddings() -> None:
    result = Embeddings(((0.1, -2.5), (1.0, 0.0)), Stats(prompt_tokens=3))
    end = '"model":"m","usage":{"prompt_tokens":3,"total_tokens":3}'
    assert b"".join(replies.embeddings("m", result, (), as_base64=False)).decode() == (
        '{"object":"list","data":[{"object":"embedding","embedding":[0.1,-2.5],"index":0},'
        f'{{"object":"embedding","embedding":[1.0,0.0],"index":1}}],{end}}}\n'
    )
    assert len(replies.embeddings("m", result, (), as_base64=False)) == 4, "the vectors are not joined"
    encoded = json.loads(b"".join(replies.embeddings("m", result, ("w",), as_base64=True)))
    assert struct.unpack("<2f", base64.b64decode(encoded["data"][0]["embedding"])) == pytest.approx((0.1, -2.5))
    assert encoded["warnings"] == ["w"]


def test_scores_are_in_the_order_of_the_pairs() -> None:
    rankings = [Ranking(((1, 0.75), (0, 0.5)), "rank", 9), Ranking(((0, 0.25),), "rank", 2)]
    found = json.loads(replies.scores("m", rankings, ()))
    assert found["data"] == [
        {"index": index, "object": "score", "score": score} for index, score in enumerate((0.5, 0.75, 0.25))
    ]
    assert found["usage"] == {"prompt_tokens": 11, "total_tokens": 11, "completion_tokens": 0}


def test_timings() -> None:
    assert timings(STATS) == {
        "cache_n": 4, "prompt_n": 7, "prompt_ms": 500.0, "prompt_per_token_ms": 71.429, "prompt_per_second": 14.0,
        "predicted_n": 5, "predicted_ms": 250.0, "predicted_per_token_ms": 50.0, "predicted_per_second": 20.0,
    }  # fmt: skip
    assert timings(Stats(drafted_tokens=3, accepted_tokens=2))["draft_n_accepted"] == 2
    assert timings(Stats())["predicted_per_second"] == 0


def test_what_was_dropped_is_a_warning() -> None:
    done = Done("stop", Stats(context_length=64, messages_dropped=2, prompt_tokens_dropped=9), warnings=("w",))
    assert warnings_of(done) == [
        "w", "2 messages and 9 tokens of the prompt dropped, to fit into the context of 64 tokens",
    ]  # fmt: skip
    assert warnings_of(Done("load")) == []


@given(st.text(), st.data())
def test_positions_of_tokens(text: str, data: st.DataObject) -> None:
    """However a text is cut into tokens, each begins where the characters before it end."""
    encoded = text.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))) | {0, len(encoded)})
    position = TextPosition(3)
    for start, end in itertools.pairwise(cuts):
        assert position.before(encoded[start:end]) == 3 + len(encoded[:start].decode("utf-8", "ignore"))


# Replies to several prompts, and the best of several replies


class ScriptedPrompts:
    """A service that answers each prompt with the events that ``script`` has for it."""

    def __init__(self, script: dict[str, list[Any]]) -> None:
        self.script, self.running, self.most, self.closed = script, 0, 0, 0
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Any]:
        self.asked.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for step in self.script[request.prompt]:
                await asyncio.sleep(0)
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.running -= 1
            self.closed += 1

    async def detokenize(self, model: str, tokens: tuple[int, ...]) -> str:
        return f"<{tokens[0]}>"


async def complete(service: Any, *prompts: str, n: int = 1, best_of: int = 1, **more: Any) -> list[Event]:
    requests = tuple(GenerateRequest(model="m", prompt=prompt, n=max(n, best_of)) for prompt in prompts)
    found = await answers.answer_completion(service, Completion(requests=requests, form=ReplyForm(), n=n, **more))
    return [event async for event in found.events]


@in_loop
async def test_several_prompts_are_served_together_and_counted_together() -> None:
    stats = Stats(
        prompt_tokens=2, output_tokens=3, cached_tokens=1, output_seconds=0.5, total_seconds=1, context_length=64
    )
    script = {
        str(at): [
            Delta(f"a{at}"),
            Delta(f"b{at}", choice=1),
            Done("stop"),
            Done("length", stats, choice=1, warnings=("w",)),
        ]
        for at in range(20)
    }
    service = ScriptedPrompts(script)
    events = await complete(service, *script, n=2)
    texts = {event.choice: event.content for event in events if isinstance(event, Delta)}
    assert texts == {at * 2 + choice: f"{'ab'[choice]}{at}" for at in range(20) for choice in range(2)}
    assert 2 <= service.most <= answers.MAX_RUNNING
    ends = [event for event in events if isinstance(event, Done)]
    assert sorted(end.choice for end in ends) == list(range(40)) and ends[-1] is events[-1]
    assert [end.reason for end in sorted(ends, key=lambda end: end.choice)] == ["stop", "length"] * 20
    assert [end.stats for end in ends[:-1]] == [None] * 39 and ends[-1].warnings == ("w",)
    assert ends[-1].stats == Stats(
        prompt_tokens=40, output_tokens=60, cached_tokens=20, output_seconds=10.0, total_seconds=1, context_length=64,
    )  # fmt: skip


@in_loop
async def test_an_empty_prompt_among_several_only_loads() -> None:
    loads = [Done("load", warnings=("w",))]
    service: Any = ScriptedPrompts({"": loads, "a": [Delta("a"), Done("stop", STATS)]})
    requests = tuple(GenerateRequest(model="m", prompt=prompt) for prompt in ("", "a", ""))
    found = await answers.answer_completion(service, Completion(requests=requests, form=ReplyForm()))
    whole = json.loads(found.encoder.whole([event async for event in found.events]))
    assert [(choice["index"], choice["finish_reason"]) for choice in whole["choices"]] == [
        (0, "load"), (1, "stop"), (2, "load"),
    ]  # fmt: skip
    assert whole["usage"]["total_tokens"] == 16 and whole["warnings"] == ["w"]
    events = await complete(ScriptedPrompts({"": loads, "b": loads}), "", "b", best_of=2)
    assert [(event.choice, event.reason) for event in events if isinstance(event, Done)] == [(0, "load"), (1, "load")]
    rendered = await complete(ScriptedPrompts({"a": [Rendered("<s>")]}), "a", best_of=2)
    assert rendered == [Rendered("<s>")]


@in_loop
async def test_usage_is_sent_after_a_load_too() -> None:
    encoder = text(usage=True)
    assert '"usage":{"prompt_tokens":0' in stream(encoder, Done("load"))[-2]


@in_loop
async def test_an_error_of_one_prompt_ends_the_others() -> None:
    service = ScriptedPrompts({"a": [Delta("x"), asyncio.Event()], "b": [Delta("y"), BadRequest("no")]})
    with pytest.raises(BadRequest, match="no"):
        await complete(service, "a", "b")
    assert (service.running, service.closed) == (0, 2)


@in_loop
async def test_closing_a_reply_to_several_prompts_ends_all_of_them() -> None:
    never = asyncio.Event()
    service: Any = ScriptedPrompts({str(at): [Delta("x"), never] for at in range(12)})
    requests = tuple(GenerateRequest(model="m", prompt=str(at)) for at in range(12))
    found = await answers.answer_completion(service, Completion(requests=requests, form=ReplyForm()))
    assert isinstance(await anext(found.events), Delta)
    await found.events.aclose()
    assert service.running == 0 and service.closed == len(service.asked) <= answers.MAX_RUNNING


def scored(choice: int, *logprobs: float) -> list[Event]:
    return [Delta(f"{choice}", logprobs=(TokenLogprob(b"x", prob),), choice=choice) for prob in logprobs]


@in_loop
async def test_the_best_replies_are_those_with_the_highest_mean() -> None:
    stats = Stats(prompt_tokens=2, output_tokens=9)
    script = [
        *scored(0, -1.0, -1.0), *scored(1, -0.5), *scored(2, -0.1, -0.2, -0.3), Done("stop", choice=2), Done("length"),
        Done("stop", choice=3), Done("stop", stats, choice=1, warnings=("w",), run={"seed": 1}),
    ]  # fmt: skip
    for logprobs in (False, True):
        events = await complete(ScriptedPrompts({"p": script}), "p", n=2, best_of=4, logprobs=logprobs)
        texts = [(event.choice, event.content, bool(event.logprobs)) for event in events if isinstance(event, Delta)]
        assert texts == [(1, "1", logprobs), *[(0, "2", logprobs)] * 3]
        assert [(end.choice, end.reason, end.stats) for end in events if isinstance(end, Done)] == [
            (0, "stop", None), (1, "stop", stats),
        ]  # fmt: skip
        assert isinstance(events[-1], Done) and (events[-1].warnings, events[-1].run) == (("w",), {"seed": 1})


@in_loop
async def test_prompts_are_echoed() -> None:
    service: Any = ScriptedPrompts({"天": [Delta("a"), Done("stop", STATS)], "": [Delta("b"), Done("stop", STATS)]})
    requests = (GenerateRequest(model="m", prompt="天"), GenerateRequest(model="m", tokens=(7,)))
    found = await answers.answer_completion(service, Completion(requests=requests, form=ReplyForm(), echo=True))
    whole = json.loads(found.encoder.whole([event async for event in found.events]))
    assert [choice["text"] for choice in whole["choices"]] == ["天a", "<7>b"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("auto", [("", "a"), ("b", "c"), ("d", "")]),
        ("deepseek", [("", "a"), ("b", "c"), ("d", "")]),
        ("none", [("<think>a", ""), ("c</think>b", ""), ("d", "")]),
        ("deepseek-legacy", [("<think>a", "a"), ("c</think>b", "c"), ("d", "")]),
    ],
)
def test_where_thinking_is_written(form: Any, expected: list[tuple[str, str]]) -> None:
    @in_loop
    async def check() -> None:
        script = {"p": [Delta("", "a"), Delta("b", "c"), Delta("d"), Done("stop", STATS)]}
        requests = (GenerateRequest(model="m", prompt="p"),)
        service: Any = ScriptedPrompts(script)
        found = await answers.answer_completion(service, Completion(requests=requests, form=ReplyForm(reasoning=form)))
        texts = [(e.content, e.thinking) async for e in found.events if isinstance(e, Delta)]
        assert texts == expected

    check()


@in_loop
async def test_thinking_in_the_content_is_closed_before_a_call_and_at_the_end() -> None:
    script = {
        "p": [
            Delta("", "a"), Delta("", "x", choice=1), ToolCalls((CALL,)), Done("stop"), Done("length", STATS, choice=1),
        ]
    }  # fmt: skip
    service: Any = ScriptedPrompts(script)
    requests = (GenerateRequest(model="m", prompt="p", n=2),)
    body = Completion(requests=requests, form=ReplyForm(reasoning="none"), n=2)
    events = [event async for event in (await answers.answer_completion(service, body)).events]
    assert events == [
        Delta("<think>a"), Delta("<think>x", choice=1), Delta("</think>"), ToolCalls((CALL,)), Done("stop"),
        Delta("</think>", choice=1), Done("length", STATS, choice=1),
    ]  # fmt: skip


# Without HTTP, as batches do


def run(service: Any, url: str, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.loads(asyncio.run(answers.answer(service, url, data, "batch-1")))


def test_answers_without_http(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m")
    harness.make("embedder", "all-MiniLM-L6-v2-q8_0.gguf")
    service = harness.service
    hi = [{"role": "user", "content": "hi"}]
    found = run(service, "/v1/chat/completions", {"model": "m", "messages": hi, "stream": True, "n": 2})
    assert [choice["message"]["content"] for choice in found["choices"]] == ["Hello there"] * 2
    found = run(service, "/v1/completions", {"model": "m", "prompt": ["a", "b"]})
    assert [choice["text"] for choice in found["choices"]] == ["Hello there"] * 2
    assert len(run(service, "/v1/embeddings", {"model": "embedder", "input": ["a", "天"]})["data"]) == 2
    for url, body, error in (
        ("/v1/chat/completions", {"model": "no", "messages": hi}, ModelNotFound),
        ("/v1/chat/completions", {"model": "m", "messages": []}, BadRequest),
        ("/v1/chat/completions", b"{", BadRequest),
        ("/v1/embeddings", {"model": "m", "input": []}, BadRequest),
    ):
        with pytest.raises(error):
            run(service, url, body)
    assert harness.pool.leases == 0


def test_a_reply_that_ends_prematurely_is_an_error(tmp_path: Path) -> None:
    service = FakeService(tmp_path)
    service.script = [Delta("a")]
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(OllamaError, match="prematurely"):
        run(service, "/v1/chat/completions", body)
    assert (service.asked[0].request_id, service.asked[0].background) == ("batch-1", True)
    service.script = [Delta("a"), Done("cancelled", STATS)]
    with pytest.raises(Cancelled):
        run(service, "/v1/chat/completions", body)
