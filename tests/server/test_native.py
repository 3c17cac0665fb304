"""The native dialect: bodies become requests, events become Ollama's own bytes."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.api.events import Delta, Done, Embeddings, Progress, Rendered, Stats, TokenLogprob, ToolCalls
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects import gojson, native, native_reply
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.native_reply import ChatReply, GenerateReply

MOMENT = re.compile(r'"created_at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z"')


def chat(**body: Any) -> Any:
    return native.read_chat(Fields(body, "ChatRequest"))


def timeless(line: bytes) -> str:
    text, count = MOMENT.subn('"created_at":"T"', line.decode())
    assert count == 1
    return text


# Requests


def test_a_chat_request() -> None:
    request = chat(
        model="m",
        messages=[
            {"role": "USER", "content": "hi", "images": [base64.b64encode(b"png").decode()]},
            {
                "role": "assistant",
                "thinking": "hm",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"index": 2, "name": "f", "arguments": {"x": 1}}}
                ],
            },
            {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": "c1"},
            {"role": "user", "content": None},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}],
        options={"temperature": 0},
        format={"type": "object"},
        keep_alive="5m",
        think="high",
        logprobs=True,
        top_logprobs=3,
        truncate=False,
        shift=True,
        _debug_render_only=True,
    )
    call = ToolCall("f", {"x": 1}, "c1", 2)
    assert request.messages == (
        Message("user", "hi", images=(b"png",)),
        Message("assistant", thinking="hm", tool_calls=(call,)),
        Message("tool", "1", tool_name="f", tool_call_id="c1"),
        Message("user"),
    )
    assert request.tools == ({"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}},)
    assert (request.model, request.options, request.format) == ("m", {"temperature": 0}, {"type": "object"})
    assert (request.keep_alive, request.think, request.logprobs, request.top_logprobs) == (300, "high", True, 3)
    assert (request.truncate, request.shift, request.render_only) == (False, True, True)


def test_defaults() -> None:
    request = chat()
    assert (request.model, request.messages, request.tools, request.options) == ("", (), (), {})
    assert (request.format, request.keep_alive, request.think, request.shift) == (None, None, None, None)
    assert request.truncate is True and not request.logprobs and not request.render_only
    assert native.wants_stream(Fields({}, "S")) and not native.wants_stream(Fields({"stream": False}, "S"))


def test_a_chat_may_drop_whole_messages_only() -> None:
    assert chat(truncate="messages").truncate == "messages"
    with pytest.raises(BadRequest):
        chat(truncate="tokens")
    with pytest.raises(BadRequest):
        native.read_generate(Fields({"truncate": "messages"}, "S"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), (0, 0.0), (10, 10.0), (1.5, 1.5), (-1, math.inf), (-0.5, math.inf), (10**400, math.inf),
        ("5m", 300.0), ("1h30m", 5400.0), ("300ms", 0.3), ("-1m", math.inf), ("2562047h", 2562047 * 3600.0),
        ("0", 0.0), ("0s", 0.0),
    ],
)  # fmt: skip
def test_keep_alive(value: Any, seconds: float | None) -> None:
    assert chat(keep_alive=value).keep_alive == seconds


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"keep_alive": "10"}, 'time: missing unit in duration "10"'),
        ({"keep_alive": "-1"}, 'time: missing unit in duration "-1"'),
        ({"keep_alive": ""}, 'time: invalid duration ""'),
        ({"keep_alive": "5x"}, 'time: unknown unit "x" in duration "5x"'),
        ({"keep_alive": "99999999h"}, 'time: invalid duration "99999999h"'),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
        ({"keep_alive": {}}, "Unsupported type: 'map[string]interface {}'"),
        ({"keep_alive": []}, "Unsupported type: '[]interface {}'"),
        ({"think": "much"},
         'invalid think value: "much" (must be "high", "medium", "low", "max", true, or false)'),
        ({"think": 1}, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'),
        ({"messages": {}},
         "json: cannot unmarshal object into Go struct field ChatRequest.messages of type []api.Message"),
        ({"messages": ["hi"]},
         "json: cannot unmarshal string into Go struct field ChatRequest.messages of type api.Message"),
        ({"messages": [{"content": [{"type": "text"}]}]},
         "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string"),
        ({"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]},
         "json: cannot unmarshal string into Go struct field ChatRequest.messages.tool_calls.function.arguments "
         "of type api.ToolCallFunctionArguments"),
        ({"tools": {}}, "json: cannot unmarshal object into Go struct field ChatRequest.tools of type api.Tools"),
        ({"tools": [{"function": {"name": 1}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.name of type string"),
        ({"tools": [{"function": {"parameters": {"properties": {"a": 1}}}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.parameters.properties "
         "of type api.ToolProperty"),
        ({"tools": [{"function": {"parameters": {"properties": {"a": {"type": 5}}}}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.parameters.properties.type "
         "of type []string"),
        ({"tools": [{"function": {"parameters": {"properties": {"a": {"type": ["string", 5]}}}}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.parameters.properties.type "
         "of type string"),
        ({"options": []},
         "json: cannot unmarshal array into Go struct field ChatRequest.options of type map[string]interface {}"),
        ({"stream": "no", "top_logprobs": "3"},
         "json: cannot unmarshal string into Go struct field ChatRequest.top_logprobs of type int"),
    ],
)  # fmt: skip
def test_what_the_json_makes_wrong(body: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest) as error:
        chat(**body)
    assert error.value.message == text


def test_think_levels() -> None:
    for think in (True, False, "low", "medium", "high", "max"):
        assert chat(think=think).think is think or chat(think=think).think == think


def test_a_generate_request() -> None:
    body = {"model": "m", "prompt": "p", "suffix": "s", "system": "y", "template": "t", "raw": True, "context": [1, 2]}
    request = native.read_generate(Fields(body, "GenerateRequest"))
    assert (request.prompt, request.suffix, request.system, request.template) == ("p", "s", "y", "t")
    assert request.raw and request.context == (1, 2)
    assert native.read_generate(Fields({"context": []}, "GenerateRequest")).context == ()
    assert native.read_generate(Fields({}, "GenerateRequest")).context is None


@pytest.mark.parametrize(
    ("value", "inputs"),
    [(None, None), ("", None), ([], None), ("a", ("a",)), (["a", ""], ("a", "")), ([""], ("",))],
)
def test_embed_inputs(value: Any, inputs: Any) -> None:
    assert native.read_embed(Fields({"input": value}, "EmbedRequest")).inputs == inputs


@pytest.mark.parametrize("value", [1, {"a": 1}, [1], ["a", None], True])
def test_embed_inputs_that_are_none(value: Any) -> None:
    with pytest.raises(BadRequest, match="invalid input type"):
        native.read_embed(Fields({"input": value}, "EmbedRequest"))


def test_create_and_pull() -> None:
    request = native.read_create(
        Fields({"name": "m", "from": "b", "license": "MIT", "quantization": "q8_0", "files": {"a": "b"}}, "C")
    )
    assert (request.model, request.from_, request.licenses, request.quantize) == ("m", "b", ("MIT",), "q8_0")
    assert request.files == {"a": "b"}
    assert native.read_create(Fields({"license": ["a", "", "b"]}, "C")).licenses == ("a", "b")
    assert native.read_create(Fields({"draft_files": {"a": "b"}}, "C")).draft_files == {"a": "b"}
    with pytest.raises(BadRequest, match="--draft-quantize requires a DRAFT model"):
        native.read_create(Fields({"draft_quantize": "q8_0"}, "C"))
    pull = native.read_pull(Fields({"name": "pip://x", "model": "", "as": "y", "insecure": True}, "P"))
    assert (pull.model, pull.as_, pull.insecure) == ("pip://x", "y", True)


NAMES = st.sampled_from(
    [
        "model",
        "name",
        "prompt",
        "suffix",
        "system",
        "template",
        "context",
        "raw",
        "images",
        "format",
        "options",
        "keep_alive",
        "think",
        "logprobs",
        "messages",
        "tools",
        "role",
        "content",
        "tool_calls",
        "function",
        "arguments",
        "input",
        "truncate",
        "dimensions",
        "from",
        "files",
        "adapters",
        "license",
        "parameters",
        "stream",
        "quantize",
        "info",
        "verbose",
        "as",
        "insecure",
        "top_logprobs",
        "required",
        "properties",
        "type",
        "index",
    ]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=15,
)
READERS = [
    native.read_chat,
    native.read_generate,
    native.read_embed,
    native.read_embeddings,
    native.read_pull,
    native.read_create,
    native.read_show,
    native.wants_stream,
]


@settings(max_examples=200)
@given(st.dictionaries(NAMES, ANY_JSON, max_size=8) | ANY_JSON, st.sampled_from(READERS))
def test_any_json_is_read_or_is_a_bad_request(value: Any, read: Any) -> None:
    try:
        read(Fields(gojson.decode(json.dumps(value).encode()), "S"))
    except BadRequest as error:
        assert error.message and error.status == 400


def test_constraints_beside_format() -> None:
    request = chat(grammar='root ::= "a"', regex="a+", choices=["a", "天"])
    assert (request.grammar, request.regex, request.choices) == ('root ::= "a"', "a+", ("a", "天"))
    assert (chat().grammar, chat().regex, chat().choices, chat(choices=[]).choices) == ("", "", None, ())
    for wrong in ({"grammar": {}}, {"regex": 1}, {"choices": "a"}, {"choices": [1]}):
        with pytest.raises(BadRequest, match=f"ChatRequest.{next(iter(wrong))} of type "):
            chat(**wrong)


def test_fields_that_mean_nothing_are_told() -> None:
    assert chat(model="m", stream=True, options={}, think=None, keep_alive="5m", format="", tools=[]).ignored == ()
    assert chat(Mesages=[], sturm=None, x=1).ignored == (
        'ignored field "Mesages", did you mean "messages"?',
        'ignored field "x"',
    )
    for name in ("prompt", "images", "raw", "context", "suffix", "system", "template"):
        assert chat(**{name: 1}).ignored and not native.read_generate(Fields({name: None}, "G")).ignored
    known = {"model": "m", "prompt": "", "suffix": "", "stream": False, "raw": True, "context": [], "images": []}
    assert native.read_generate(Fields(known, "GenerateRequest")).ignored == ()
    embed = native.read_embed(Fields({"model": "m", "inputs": "x"}, "EmbedRequest"))
    assert embed.ignored == ('ignored field "inputs", did you mean "input"?',)
    assert len(chat(**{f"x{n}": n for n in range(10_000)}).ignored) == 16


def test_a_tokenize_request() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{"function": {"name": "f"}}]}
    request = native.read_tokenize(Fields({**body, "think": "low", "add_special": False, "parse_special": True}, "T"))
    assert request.messages == (Message("user", "hi"),) and request.tools == ({"function": {"name": "f"}},)
    assert (request.prompt, request.think, request.add_special, request.parse_special) == (None, "low", False, True)
    request = native.read_tokenize(Fields({"model": "m", "prompt": ""}, "T"))
    assert (request.prompt, request.add_special, request.parse_special) == ("", True, False)


def test_what_a_create_request_has_in_vain() -> None:
    request = native.read_create(Fields({"model": "m", "from": "b", "stream": False, "sistem": "x"}, "T"))
    assert request.ignored == ('ignored field "sistem", did you mean "system"?',)
    line = Progress("success", warnings=request.ignored)
    assert json.loads(native_reply.progress(line)) == {"status": "success", "warnings": [*request.ignored]}
    assert native_reply.progress(Progress("success")) == b'{"status":"success"}'


# Replies

STATS = Stats(
    prompt_tokens=11, cached_tokens=4, prompt_seconds=0.5, output_tokens=2, output_seconds=0.25, load_seconds=0.001,
    total_seconds=1.0, context_length=512, messages_dropped=1,
)  # fmt: skip
FIGURES = (
    '"total_duration":1000000000,"load_duration":1000000,"prompt_eval_count":11,"prompt_eval_duration":500000000,'
    '"eval_count":2,"eval_duration":250000000'
)
OURS = '"truncated":{"messages_dropped":1},"context_length":512,"cached_tokens":4,"request_id":"r"'


def test_drafts_are_told_where_there_were_any() -> None:
    done = Done("stop", replace(STATS, drafted_tokens=8, accepted_tokens=0))
    for reply in (ChatReply("m", "r"), GenerateReply("m", "r")):
        ours = OURS.replace('"cached_tokens":4', '"cached_tokens":4,"drafted_tokens":8,"accepted_tokens":0')
        assert timeless(reply.chunk(done)).endswith(f",{FIGURES},{ours}}}")
        assert "drafted_tokens" not in timeless(reply.chunk(Done("stop", STATS)))


def test_chat_chunks() -> None:
    reply = ChatReply("m<1>", "r")
    head = '{"model":"m\\u003c1\\u003e","created_at":"T",'
    assert timeless(reply.chunk(Delta("Hi"))) == head + '"message":{"role":"assistant","content":"Hi"},"done":false}'
    assert timeless(reply.chunk(Delta("", "a&b"))) == (
        head + '"message":{"role":"assistant","content":"","thinking":"a\\u0026b"},"done":false}'
    )
    assert timeless(reply.chunk(ToolCalls((ToolCall("f", {"x": [1.5, "é"]}, "call_a"),)))) == (
        head + '"message":{"role":"assistant","content":"","tool_calls":[{"id":"call_a","function":'
        '{"index":0,"name":"f","arguments":{"x":[1.5,"é"]}}}]},"done":false}'
    )
    assert timeless(reply.chunk(Done("stop", STATS, warnings=("w",)))) == (
        head + '"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",'
        f'{FIGURES},{OURS},"warnings":["w"]}}'
    )
    assert timeless(reply.chunk(Done("load"))) == (
        head + '"message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}'
    )


def test_generate_chunks() -> None:
    reply = GenerateReply("m", "r")
    head = '{"model":"m","created_at":"T",'
    assert timeless(reply.chunk(Delta("Hi"))) == head + '"response":"Hi","done":false}'
    assert timeless(reply.chunk(Delta("", "t"))) == head + '"response":"","thinking":"t","done":false}'
    assert timeless(reply.chunk(Done("length", STATS, (1, 2)))) == (
        head + f'"response":"","done":true,"done_reason":"length","context":[1,2],{FIGURES},{OURS}}}'
    )
    assert timeless(reply.chunk(Done("unload"))) == head + '"response":"","done":true,"done_reason":"unload"}'
    assert timeless(reply.whole([Rendered("<p>", 2)])) == (
        head + '"response":"","done":false,"_debug_info":{"rendered_template":"\\u003cp\\u003e","image_count":2}}'
    )


def test_logprobs_carry_the_bytes_of_the_token() -> None:
    entry = TokenLogprob(b"\xe4\xbd", -0.5, ((b"\xe4\xbd", -0.5), (b"a", -math.inf)))
    line = json.loads(ChatReply("m").chunk(Delta("", "", (entry,))))
    assert line["logprobs"] == [
        {
            "token": "\ufffd",
            "logprob": -0.5,
            "bytes": [0xE4, 0xBD],
            "top_logprobs": [
                {"token": "\ufffd", "logprob": -0.5, "bytes": [0xE4, 0xBD]},
                {"token": "a", "logprob": -1e9, "bytes": [97]},
            ],
        }
    ]


def test_a_whole_reply_joins_its_events() -> None:
    call = ToolCall("f", {}, "c")
    logprob = TokenLogprob(b"a", -1.0)
    events = [Delta("", "th"), Delta("a", "ink", (logprob,)), ToolCalls((call,)), Delta("b"), Done("stop", STATS)]
    whole = json.loads(ChatReply("m", "r").whole(events))
    assert whole["message"] == {
        "role": "assistant",
        "content": "ab",
        "thinking": "think",
        "tool_calls": [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {}}}],
    }
    assert whole["done"] and whole["eval_count"] == 2 and len(whole["logprobs"]) == 1
    assert json.loads(GenerateReply("m").whole(events))["response"] == "ab"


@settings(max_examples=200)
@given(st.lists(st.tuples(st.text(), st.text()), max_size=8), st.text(min_size=1))
def test_a_stream_is_one_object_per_line(pieces: list[tuple[str, str]], model: str) -> None:
    for reply in (ChatReply(model), GenerateReply(model)):
        events = [*(Delta(*piece) for piece in pieces), Done("stop", Stats())]
        lines = b"".join(reply.chunk(event) + b"\n" for event in events).split(b"\n")
        assert lines.pop() == b""
        found = [json.loads(line) for line in lines]
        assert [chunk["done"] for chunk in found] == [False] * len(pieces) + [True]
        texts = [chunk["message"]["content"] if "message" in chunk else chunk["response"] for chunk in found]
        assert "".join(texts) == "".join(re.sub("[\ud800-\udfff]", "\ufffd", content) for content, _ in pieces)


def test_progress() -> None:
    assert native_reply.progress(Progress("success")) == b'{"status":"success"}'
    assert native_reply.progress(Progress("pulling abc", "sha256:abc", 10)) == (
        b'{"status":"pulling abc","digest":"sha256:abc","total":10}'
    )


def test_embeddings() -> None:
    result = Embeddings(((0.1, -2.5e-07), (1.0, 0.0)), Stats(prompt_tokens=3, total_seconds=0.5, load_seconds=0.25))
    assert native_reply.embed("m", result) == (
        b'{"model":"m","embeddings":[[0.1,-2.5e-07],[1.0,0.0]],'
        b'"total_duration":500000000,"load_duration":250000000,"prompt_eval_count":3}'
    )
    assert native_reply.embed("m", Embeddings(())) == b'{"model":"m","embeddings":[]}'
    assert native_reply.embeddings(Embeddings(((0.5,),))) == b'{"embedding":[0.5]}'
    assert native_reply.embeddings(Embeddings(())) == b'{"embedding":[]}'


# Times


@pytest.mark.parametrize(
    ("unix_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_785_578_400_000_000_000, "2026-08-01T10:00:00Z"),
        (1_785_578_400_100_000_000, "2026-08-01T10:00:00.1Z"),
        (1_785_578_400_000_000_001, "2026-08-01T10:00:00.000000001Z"),
    ],
)
def test_utc(unix_ns: int, text: str) -> None:
    assert gojson.utc(unix_ns) == text


def test_local_time_has_the_offset_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def at(zone: str) -> str:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        return gojson.local(1_785_578_400.25)

    try:
        assert at("UTC") == "2026-08-01T10:00:00.25Z"
        assert at("Asia/Shanghai") == "2026-08-01T18:00:00.25+08:00"
        assert at("NST03:30") == "2026-08-01T06:30:00.25-03:30"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_for_ever_is_292_years() -> None:
    assert gojson.nanoseconds(math.inf) == (1 << 63) - 1
    assert gojson.nanoseconds(0.0015) == 1_500_000
    years = int(gojson.local(math.inf)[:4]) - int(gojson.utc_now()[:4])
    assert 292 <= years <= 293
