"""llama-server's API: requests, replies, the end of an infill, and the routes over the real service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.aio import in_loop
from support.service_harness import INSERTS, PLAIN, ServiceHarness, serve_harness
from test_handler import serve

from ollama_nb.api.events import Delta, Done, Stats, TokenLogprob
from ollama_nb.api.requests import GenerateRequest, Infill, SourceFile
from ollama_nb.errors import BadRequest, RunnerCrashed
from ollama_nb.runner import wire
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.llamacpp.replies import InfillReply
from ollama_nb.server.dialects.llamacpp.requests import InfillBody, read_infill
from ollama_nb.server.dialects.llamacpp.routes import InfillEnd

GAP = {"input_prefix": "def f():\n", "input_suffix": "\n"}
STATS = Stats(prompt_tokens=12, cached_tokens=10, prompt_seconds=0.5, output_tokens=4, output_seconds=0.5)
RUN = {"options": {"num_ctx": 64, "num_predict": 9, "num_keep": 4, "temperature": 0.5, "stop": ["终"]}}


def read(**fields: Any) -> InfillBody:
    return read_infill(Fields({**GAP, **fields}, "InfillRequest"))


def test_a_request_of_an_editor() -> None:
    body = read(
        prompt="    ",
        input_extra=[{"filename": "数据.py", "text": "x = 1\n"}, {"text": "y"}],
        n_predict=128,
        n_keep=2,
        n_indent=4,
        stop=["终"],
        top_k=40,
        top_p=0.9,
        seed=4294967295,
        logit_bias=[[5, -1.5], ["x", False]],
        n_probs=3,
        cache_prompt=True,
        id_slot=0,
        t_max_prompt_ms=500,
        t_max_predict_ms=1500,
        samplers=["top_k", "infill"],
        response_fields=["content", "timings/prompt_n"],
        stream=False,
    )
    assert body == InfillBody(
        request=GenerateRequest(
            model="",
            infill=Infill(
                prefix="def f():\n    ",
                suffix="\n",
                files=(SourceFile("数据.py", "x = 1\n"), SourceFile("tmp", "y")),
            ),
            options={
                "num_predict": 128, "num_keep": 2, "stop": ["终"], "top_k": 40, "top_p": 0.9, "seed": -1,
                "logit_bias": {"5": -1.5, "x": -1e4},
            },
            logprobs=True,
            top_logprobs=3,
            run_record=True,
            ignored=('ignored field "samplers"',),
        ),
        fields=("content", "timings/prompt_n"),
        seconds=1.5,
        indent=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_prefix": None}, '"input_prefix" is required'),
        ({"input_suffix": None}, '"input_suffix" is required'),
        ({"input_prefix": 5}, "InfillRequest.input_prefix of type string"),
        ({"input_extra": ["x"]}, "InfillRequest.input_extra of type"),
        ({"logit_bias": [5]}, "logit_bias: expected pairs"),
        ({"stop": "x"}, "InfillRequest.stop of type"),
    ],
)
def test_wrong_requests(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read(**fields)


def test_a_whole_reply() -> None:
    reply = InfillReply(read(model="m", n_probs=1, stop=["终"]))
    probable = (TokenLogprob(b"\xe5", -0.5, ((b"a", -1.0),)),)
    events = [Delta("天\n", logprobs=probable), Done("stop", STATS, run=RUN, stop_sequence="终", warnings=("w",))]
    assert json.loads(reply.whole(events)) == {
        "index": 0,
        "content": "天\n",
        "tokens": [],
        "id_slot": -1,
        "stop": True,
        "model": "m",
        "tokens_predicted": 4,
        "tokens_evaluated": 12,
        "tokens_cached": 10,
        "generation_settings": {
            "n_ctx": 64, "n_predict": 9, "max_tokens": 9, "temperature": 0.5, "stop": ["终"], "n_keep": 4,
            "stream": False, "n_probs": 1,
        },
        "has_new_line": True,
        "truncated": False,
        "stop_type": "word",
        "stopping_word": "终",
        "timings": {
            "cache_n": 10, "prompt_n": 2, "prompt_ms": 500, "prompt_per_token_ms": 250, "prompt_per_second": 4,
            "predicted_n": 4, "predicted_ms": 500, "predicted_per_token_ms": 125, "predicted_per_second": 8,
        },
        "completion_probabilities": [
            {
                "token": "\ufffd", "bytes": [0xE5], "logprob": -0.5,
                "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -1}],
            }
        ],
        "warnings": ["w"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("done", "kind"),
    [
        (Done("stop", STATS), "eos"),
        (Done("stop", STATS, stop_sequence="<|im_end|>"), "eos"),  # of the model, not of the request
        (Done("length", STATS), "limit"),
        (Done("cancelled", STATS), "limit"),
    ],
)
def test_why_a_reply_ended(done: Done, kind: str) -> None:
    found = json.loads(InfillReply(read(stop=["终"])).whole([Delta("a"), done]))
    assert (found["stop_type"], found["stopping_word"], found["has_new_line"]) == (kind, "", False)


def test_only_the_fields_that_the_client_asks_for() -> None:
    reply = InfillReply(read(response_fields=["content", "timings/prompt_n", "stop", "no", "content/no"]))
    assert json.loads(reply.whole([Delta("a"), Done("stop", STATS)])) == {
        "content": "a", "timings/prompt_n": 2, "stop": True,
    }  # fmt: skip
    assert reply.chunk(Delta("b")) == b'data: {"content":"b","stop":false}\n\n'


def test_a_stream() -> None:
    reply = InfillReply(read(stream=True))
    assert reply.chunk(Delta("天")) == b'data: {"index":0,"content":"\xe5\xa4\xa9","tokens":[],"stop":false}\n\n'
    end = json.loads(reply.chunk(Done("stop", STATS)).removeprefix(b"data: "))
    assert (end["content"], end["stop"], end["tokens_predicted"]) == ("", True, 4)
    error = reply.fail(RunnerCrashed("gone"))
    assert error == b'data: {"error":{"code":"runner_crashed","message":"gone","type":"server_error"}}\n\n'


@pytest.mark.parametrize(
    ("indent", "pieces", "kept", "reached"),
    [
        (4, ["return 1\n", "    x\n", "\n", "    y\n", "de", "f g"], "return 1\n    x\n\n    y\n", True),
        (4, ["a\n  ", "  b\n  c"], "a\n    b\n  ", True),
        (4, ["def f():", "\n    pass"], "def f():\n    pass", False),
        (0, ["a\n", "b"], "a\nb", False),
    ],
)
def test_a_reply_ends_at_a_smaller_indent(indent: int, pieces: list[str], kept: str, reached: bool) -> None:
    end = InfillEnd(0, indent)
    assert ("".join(end.kept(piece, 0) for piece in pieces), end.reached) == (kept, reached)


def test_a_reply_ends_after_its_time_and_a_line_break() -> None:
    end = InfillEnd(1.0, 0)
    assert [end.kept("a", 10), end.kept("b", 12), end.reached] == ["a", "b", False]
    assert [end.kept("\n", 12.5), end.reached, end.kept("c", 13)] == ["\n", True, ""]
    quick = InfillEnd(1.0, 0)
    assert [quick.kept("a\n", 10), quick.kept("b", 10.5), quick.reached] == ["a\n", "b", False]


@in_loop
async def test_errors_have_the_format_of_llama_server(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        for path, body in (("/infill", GAP), ("/apply-template", {"messages": [{"role": "user", "content": "x"}]})):
            for content in (b"", b"{", b"[]", json.dumps(body).encode()):
                reply = await h.client.post(path, content=content)
                error = reply.json()["error"]
                assert reply.status_code == 400 and error["type"] == "invalid_request_error"
                assert error["code"] == "bad_request" and error["message"]
            assert error["message"] == 'no model is loaded and the request has no "model": pull a model first'
        h.service.script = [Delta("a"), RunnerCrashed("gone")]
        broken = await h.client.post("/infill", json={**GAP, "model": "m", "stream": True})
        assert broken.text.endswith(
            'data: {"error":{"code":"runner_crashed","message":"gone","type":"server_error"}}\n\n'
        )


@in_loop
async def test_the_end_of_a_reply_cancels_the_request(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        h.service.script = [Delta("a\n"), Delta("b"), *([Delta("c")] * 3), Done("cancelled", STATS)]
        cancelled: list[str] = []
        h.service.requests.cancel = lambda id: bool(cancelled.append(id))  # type: ignore[method-assign]
        headers = {"X-Request-Id": "r1"}
        reply = await h.client.post("/infill", json={**GAP, "model": "m", "n_indent": 4}, headers=headers)
        assert (reply.json()["content"], reply.json()["stop_type"]) == ("a\n", "limit")
        assert set(cancelled) == {"r1"}


@in_loop
async def test_the_model_of_a_request_without_one(tmp_path: Path) -> None:
    h = ServiceHarness(tmp_path)
    async with serve_harness(h) as client:
        empty = (await client.get("/props")).json()
        assert (empty["model_path"], empty["is_sleeping"]) == ("", True)
        h.make("one", template=INSERTS)
        only = await client.post("/infill", json=GAP)
        assert only.json()["model"] == "one:latest"
        h.make("two", template=PLAIN)
        unclear = await client.post("/infill", json=GAP)
        assert unclear.status_code == 400 and "one:latest" in unclear.json()["error"]["message"]
        assert "two:latest" in unclear.json()["error"]["message"]
        named = (await client.get("/props?model=two")).json()
        assert named["model_alias"] == "two:latest" and named["model_path"].startswith(str(tmp_path))
        assert (await client.get("/props?model=no")).status_code == 404
        assert (await client.get("/health")).json() == {"status": "ok"}


@in_loop
async def test_templates_with_a_suffix_fill_gaps_too(tmp_path: Path) -> None:
    h = ServiceHarness(tmp_path)
    async with serve_harness(h) as client:
        h.make("inserts", template=INSERTS)
        h.make("plain", template=PLAIN)
        body = {"model": "inserts", "input_prefix": "before", "input_suffix": "after", "prompt": " here"}
        await client.post("/infill", json={**body, "input_extra": [{"filename": "a.py", "text": "文件"}]})
        assert h.pool.runner.asks[-1]["prompt"] == "<pre> 文件\nbefore here <suf> after <mid>"
        refused = await client.post("/infill", json={**body, "model": "plain"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "insert_unsupported")


WORDS = {"p": 1, "s": 2, "x": 3, "project": 10, "current": 11, "a.py": 12, "b.py": 13}
FIM = wire.FillTokens(90, 91, 92, 93, 94)


async def tokenize(
    texts: tuple[str, ...], *, add_special: bool = True, parse_special: bool = True
) -> tuple[tuple[int, ...], ...]:
    """One token for each word, and a BOS where special tokens are added."""
    assert add_special or not parse_special  # code that contains the text of a special token is only text
    return tuple((*([99] if add_special else []), *(WORDS[word] for word in text.split())) for text in texts)


@pytest.mark.parametrize(
    ("fim", "fields", "expected"),
    [
        (FIM, {}, (99, 90, 1, 91, 2, 92)),
        (
            FIM,
            {"input_extra": [{"filename": "a.py", "text": "x"}, {"filename": "b.py", "text": "x x"}]},
            (99, 93, 10, 94, 12, 3, 94, 13, 3, 3, 94, 11, 90, 1, 91, 2, 92),
        ),
        (wire.FillTokens(90, 91, 92), {"input_extra": [{"filename": "a.py", "text": "x"}]}, (99, 3, 90, 1, 91, 2, 92)),
        # 64 tokens: 1 for BOS, 3 markers, 1 for the first token of the reply and 16 for the rest leave 43 for the gap.
        (FIM, {"input_prefix": "x p " * 40, "n_predict": 16}, (99, 90, *(3, 1) * 21, 91, 2, 92)),
        (FIM, {"input_prefix": "x p " * 40, "n_predict": 4000}, (99, 90, *(3, 1) * 21, 91, 2, 92)),
    ],
)
def test_prompts_of_the_models_own_tokens(tmp_path: Path, fim: Any, fields: Any, expected: tuple[int, ...]) -> None:
    @in_loop
    async def check() -> None:
        h = ServiceHarness(tmp_path)
        async with serve_harness(h) as client:
            h.make("m")
            runner = h.pool.runner
            runner.loaded = msgspec.structs.replace(runner.loaded, fim=fim)
            runner.tokenize = tokenize  # type: ignore[method-assign]
            body = {"model": "m", "input_prefix": "p", "input_suffix": "s", "num_ctx": 64, **fields}
            reply = await client.post("/infill", json=body)
            assert reply.status_code == 200, reply.text
            assert runner.asks[-1]["tokens"] == expected
            assert reply.json()["truncated"] == ("n_predict" in fields)

    check()
