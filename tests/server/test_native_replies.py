"""Replies of the native API, byte for byte as Ollama writes them."""

from __future__ import annotations

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
from ollama_nb.api.models import GGUF, Layer, Listed, Manifest, Model, ModelConfig, Running, Shown, TensorInfo
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.server.dialects.native import replies
from ollama_nb.server.dialects.native.replies import ChatReply, GenerateReply
from ollama_nb.service.requests import QueueEntry

MOMENT = re.compile(r'"created_at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z"')
STATS = Stats(
    prompt_tokens=11, cached_tokens=4, prompt_seconds=0.5, output_tokens=2, output_seconds=0.25, load_seconds=0.001,
    total_seconds=1.0, context_length=512, messages_dropped=1,
)  # fmt: skip
COUNTERS = (
    '"total_duration":1000000000,"load_duration":1000000,"prompt_eval_count":11,"prompt_eval_duration":500000000,'
    '"eval_count":2,"eval_duration":250000000'
)
ADDITIONS = '"truncated":{"messages_dropped":1},"context_length":512,"cached_tokens":4,"request_id":"r"'
BAD = Delta("<tool_call>{bad}</tool_call>", tool_error="the tool call is not valid JSON")


def timeless(line: bytes) -> str:
    text, count = MOMENT.subn('"created_at":"T"', line.decode().removesuffix("\n"))
    assert count == 1
    return text


def test_draft_tokens_are_reported_if_there_are_any() -> None:
    done = Done("stop", replace(STATS, drafted_tokens=8, accepted_tokens=0))
    for reply in (ChatReply("m", "r"), GenerateReply("m", "r")):
        ours = ADDITIONS.replace('"cached_tokens":4', '"cached_tokens":4,"drafted_tokens":8,"accepted_tokens":0')
        assert timeless(reply.chunk(done)).endswith(f",{COUNTERS},{ours}}}")
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
        f'{COUNTERS},{ADDITIONS},"warnings":["w"]}}'
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
        head + f'"response":"","done":true,"done_reason":"length","context":[1,2],{COUNTERS},{ADDITIONS}}}'
    )
    assert timeless(reply.chunk(Done("unload"))) == head + '"response":"","done":true,"done_reason":"unload"}'
    assert timeless(reply.whole([Rendered("<p>", 2)])) == (
        head + '"response":"","done":false,"_debug_info":{"rendered_template":"\\u003cp\\u003e","image_count":2}}'
    )


def test_the_end_of_a_reply_names_its_stop_string_and_counts_the_thinking() -> None:
    done = Done("stop", replace(STATS, reasoning_tokens=1), stop_sequence="。")
    ours = ADDITIONS.replace('"cached_tokens":4', '"cached_tokens":4,"reasoning_tokens":1')
    assert timeless(ChatReply("m", "r").chunk(done)).endswith(f',{ours},"stop_sequence":"。"}}')


def test_chunks_of_choices_have_their_index() -> None:
    reply, head = ChatReply("m", "r", n=2), '{"model":"m","created_at":"T",'
    assert timeless(reply.chunk(Delta("Hi", choice=1))) == (
        head + '"index":1,"message":{"role":"assistant","content":"Hi"},"done":false}'
    )
    call = ToolCalls((ToolCall("f", {}, "c"),), choice=1)
    assert timeless(reply.chunk(call)).startswith(head + '"index":1,"message":{"role":"assistant","content":"",')
    assert timeless(reply.chunk(Done("stop", choice=0, stop_sequence="!"))) == (
        head + '"index":0,"message":{"role":"assistant","content":""},"done":false,"done_reason":"stop",'
        '"stop_sequence":"!"}'
    )
    assert timeless(reply.chunk(Done("length", STATS, choice=1))) == (
        head + '"index":1,"message":{"role":"assistant","content":""},"done":true,"done_reason":"length",'
        f"{COUNTERS},{ADDITIONS}}}"
    )
    assert '"index"' not in timeless(reply.chunk(Done("load")))


def test_a_whole_reply_lists_its_choices() -> None:
    events = [
        Delta("b", choice=1),
        Delta("a"),
        ToolCalls((ToolCall("f", {}, "c"),), choice=1),
        Done("length", context=(1, 2), choice=0),
        Done("stop", STATS, (1, 3), ("w",), choice=1, stop_sequence="x"),
    ]
    found = json.loads(GenerateReply("m", "r", n=2).whole(events))
    assert (found["response"], found["done_reason"], found["context"], found["done"]) == ("a", "length", [1, 2], True)
    assert (found["eval_count"], found["warnings"]) == (2, ["w"])
    first, second = found["choices"]
    assert first == {"index": 0, "response": "a", "context": [1, 2], "done_reason": "length"}
    assert (second["index"], second["response"], second["done_reason"]) == (1, "b", "stop")
    assert (second["tool_calls"][0]["function"]["name"], second["stop_sequence"]) == ("f", "x")
    (message, other) = (choice["message"] for choice in json.loads(ChatReply("m", n=2).whole(events))["choices"])
    assert (message["content"], other["content"]) == ("a", "b")
    assert "choices" not in json.loads(GenerateReply("m", n=2).whole([Done("load")]))


def test_logprobs_have_the_bytes_of_the_token() -> None:
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
        lines = b"".join(map(reply.chunk, events)).split(b"\n")
        assert lines.pop() == b""
        found = [json.loads(line) for line in lines]
        assert [chunk["done"] for chunk in found] == [False] * len(pieces) + [True]
        texts = [chunk["message"]["content"] if "message" in chunk else chunk["response"] for chunk in found]
        assert "".join(texts) == "".join(re.sub("[\ud800-\udfff]", "\ufffd", content) for content, _ in pieces)


def test_progress() -> None:
    assert replies.progress(Progress("success")) == b'{"status":"success"}'
    assert replies.progress(Progress("pulling abc", "sha256:abc", 10)) == (
        b'{"status":"pulling abc","digest":"sha256:abc","total":10}'
    )


def test_embeddings() -> None:
    result = Embeddings(((0.1, -2.5e-07), (1.0, 0.0)), Stats(prompt_tokens=3, total_seconds=0.5, load_seconds=0.25))
    assert b"".join(replies.embed("m", result)) == (
        b'{"model":"m","embeddings":[[0.1,-2.5e-07],[1.0,0.0]],'
        b'"total_duration":500000000,"load_duration":250000000,"prompt_eval_count":3}'
    )
    assert b"".join(replies.embed("m", Embeddings(()))) == b'{"model":"m","embeddings":[]}'
    assert len(replies.embed("m", result)) == 4, "the vectors are not joined"
    assert replies.embeddings(Embeddings(((0.5,),))) == b'{"embedding":[0.5]}'
    assert replies.embeddings(Embeddings(())) == b'{"embedding":[]}'


def test_an_invalid_tool_call_in_a_stream() -> None:
    chunk = json.loads(ChatReply("m").chunk(BAD))
    assert chunk["message"] == {"role": "assistant", "content": BAD.content}
    assert (chunk["tool_error"], chunk["done"]) == (BAD.tool_error, False)
    assert json.loads(GenerateReply("m").chunk(BAD))["tool_error"] == BAD.tool_error
    assert "tool_error" not in json.loads(ChatReply("m").chunk(Delta("fine")))


def test_an_invalid_tool_call_in_a_whole_reply() -> None:
    whole = json.loads(ChatReply("m").whole([Delta("a "), BAD, BAD, Done("stop")]))
    assert whole["message"]["content"] == "a " + BAD.content * 2
    assert whole["tool_error"] == BAD.tool_error + "\n" + BAD.tool_error
    assert "tool_error" not in json.loads(GenerateReply("m").whole([Delta("a"), Done("stop")]))


EPSILON = 9.999999747378752e-06  # what a float32 of 1e-5 is as a double
HEX = "ab" * 32


def model(**more: Any) -> Model:
    config = ModelConfig(model_family="llama", model_families=None, model_type="260K", file_type="F32")
    manifest = Manifest(Layer("t", Digest(HEX), 1), ())
    return Model(ModelName("m"), HEX, manifest, config, 1_785_578_400.0, 42, **more)


def shown(gguf: GGUF | None, basename: str = "", **more: Any) -> Any:
    parts: dict[str, Any] = {
        "model": model(messages=(Message("user", "hi", thinking="hm"),)), "capabilities": ("completion",), "parent": "",
        "modelfile": "FROM x", "parameters": "", "template": "", "system": "", "license": "", "gguf": gguf,
    }  # fmt: skip
    return json.loads(replies.show(Shown(**{**parts, **more}), basename))


def test_tags() -> None:
    (entry,) = json.loads(replies.tags([Listed(model(), ("completion",), "base", 512)]))["models"]
    assert list(entry) == ["name", "model", "modified_at", "size", "digest", "details", "capabilities"]
    assert entry["details"] == {
        "parent_model": "base", "format": "gguf", "family": "llama", "families": None, "parameter_size": "260K",
        "quantization_level": "F32", "context_length": 512,
    }  # fmt: skip
    assert (entry["name"], entry["size"], entry["digest"]) == ("m:latest", 42, HEX)
    assert replies.tags([]) == b'{"models":[]}'


def test_ps_shows_the_latest_expiry_first() -> None:
    listed = [Running(model(), 10, 0, moment, 256, slots=8) for moment in (100.0, math.inf, 200.0)]
    found = json.loads(replies.ps(listed))["models"]
    assert [int(entry["expires_at"][:4]) > 2300 for entry in found] == [True, False, False]
    assert found[1]["expires_at"] > found[2]["expires_at"]
    assert list(found[0]) == [
        "name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length", "slots",
    ]  # fmt: skip
    assert found[0]["slots"] == 8


def test_show() -> None:
    metadata = {
        "general.architecture": "llama", "general.name": "hidden", "tokenizer.chat_template": "hidden",
        "llama.rope.freq_base": 10000.0, "llama.epsilon": EPSILON, "llama.odd": math.inf, "tokenizer.tokens": None,
        "tokenizer.empty": [], "b.bool": True,
    }  # fmt: skip
    found = shown(GGUF(3, metadata, (TensorInfo("t", "F32", (2, 3), 0),)))
    assert found["model_info"] == {
        "b.bool": True, "general.architecture": "llama", "general.parameter_count": 6, "llama.epsilon": 1e-05,
        "llama.odd": None, "llama.rope.freq_base": 10000, "tokenizer.empty": [], "tokenizer.tokens": None,
    }  # fmt: skip
    assert list(found["model_info"]) == sorted(found["model_info"])
    assert found["tensors"] == [{"name": "t", "type": "F32", "shape": [2, 3]}]
    assert found["messages"] == [{"role": "user", "content": "hi"}]
    assert list(found) == [
        "modelfile", "details", "messages", "model_info", "tensors", "capabilities", "modified_at",
    ]  # fmt: skip
    assert shown(None)["model_info"] == {} and "tensors" not in shown(None)
    assert shown(None, projector=GGUF(3, {"a": 1}, ()))["projector_info"] == {"a": 1, "general.parameter_count": 0}


def test_show_with_another_base_name() -> None:
    gguf = GGUF(3, {"general.architecture": "llama", "general.basename": "Llama"}, ())
    assert shown(gguf)["model_info"]["general.basename"] == "Llama"
    assert shown(gguf, basename="mine")["model_info"]["general.basename"] == "mine"


def test_a_vocabulary() -> None:
    tokens = [f"<{n}>&\u2028" for n in range(1000)]
    scores = [0.1 if n % 2 else -3.5 for n in range(1000)]
    body = replies.show(
        Shown(model(), (), "", "", "", "", "", "", GGUF(3, {"tokens": tokens, "scores": scores, "types": [1] * 99}, ()))
    )
    assert b"<" not in body and b"\\u003c999\\u003e\\u0026\\u2028" in body
    found = json.loads(body)["model_info"]
    assert (found["tokens"], found["scores"], found["types"]) == (tokens, scores, [1] * 99)


@pytest.mark.parametrize(
    ("value", "text"),
    [(EPSILON, "0.00001"), (0.10000000149011612, "0.1"), (1e6, "1000000"), (0.1, "0.1"), (math.nan, "null"),
     (1e300, "1e+300"), (-0.5, "-0.5"), (0.0, "0"), (16777216.0, "16777216")],
)  # fmt: skip
def test_float32_metadata_has_few_digits(value: float, text: str) -> None:
    metadata = {"x": value}
    body = replies.show(Shown(model(), (), "", "", "", "", "", "", GGUF(3, metadata, ())))
    assert f'"x":{text}}}'.encode() in body


def test_queue() -> None:
    entry = QueueEntry("r", "m", "chat", "generating", 0, 1.5, 3, 4, 5.25)
    (found,) = json.loads(replies.queue([entry]))["requests"]
    assert list(found) == [
        "id", "model", "kind", "state", "position", "created_at", "prompt_tokens", "output_tokens",
        "tokens_per_second",
    ]  # fmt: skip
    assert found["created_at"].startswith("19") and found["tokens_per_second"] == 5.25
    entry = QueueEntry("r", "m", "chat", "generating", 0, 1.5, 3, 4, 5.25, 6, 0)
    (found,) = json.loads(replies.queue([entry]))["requests"]
    assert (found["drafted_tokens"], found["accepted_tokens"]) == (6, 0)
    (found,) = json.loads(replies.queue([replace(entry, background=True)]))["requests"]
    assert found["priority"] == "low"
