"""Generate: templates, raw, suffix, context, load and unload."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.service_harness import INSERTS, PLAIN, THINKS, ServiceHarness, collect, content, done, thinking

from ollama_nb.api.events import Done, Event
from ollama_nb.api.messages import Message
from ollama_nb.api.requests import GenerateRequest
from ollama_nb.errors import BadRequest, OllamaError


def ask(harness: ServiceHarness, prompt: str = "hi", model: str = "m", **fields: Any) -> list[Event]:
    return asyncio.run(collect(harness.service.generate(GenerateRequest(model=model, prompt=prompt, **fields))))


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "<system> own <user> hi <assistant>"),
        ({"system": "hush"}, "<system> hush <user> hi <assistant>"),
        ({"raw": True}, "hi"),
        ({"context": ()}, "<system> own <user> hi <assistant>"),
        ({"context": (3, 4)}, "<3><4><system> own <user> hi <assistant>"),
        ({"template": "T {{ .Prompt }}!"}, "T hi!"),
        ({"template": "{{ .System }}: {{ .Prompt }}", "system": "s"}, "s: hi"),
    ],
)
def test_prompts(tmp_path: Path, fields: dict[str, Any], prompt: str) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN, system="own")
    events = ask(harness, **fields)
    assert harness.asks[0]["prompt"] == prompt
    assert content(events) == "Hello there"
    assert done(events).context == (None if fields.get("raw") else (7, 8, 9))
    assert harness.asks[0]["return_tokens"] is not bool(fields.get("raw"))


def test_stored_messages_unless_a_context_goes_on(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN, messages=(Message("user", "q"), Message("assistant", "a")))
    ask(harness)
    ask(harness, context=())
    assert [asked["prompt"] for asked in harness.asks] == [
        "<user> q <assistant> a <user> hi <assistant>",
        "<user> hi <assistant>",
    ]


def test_what_goes_on_behind_a_context_does_not_begin_again(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template="<s>" + PLAIN)
    ask(harness)
    ask(harness, context=(3, 4))
    prompt = "<user> hi <assistant>"
    assert [asked["prompt"] for asked in harness.asks] == [f"<s>{prompt}", f"<3><4>{prompt}"]
    # ChatML models call the mark that begins each turn their BOS, and their tokenizers do not add it.
    harness.pool.runner.loaded = msgspec.structs.replace(harness.pool.runner.loaded, add_bos=False)
    ask(harness, context=(3, 4))
    assert harness.asks[-1]["prompt"] == f"<3><4><s>{prompt}"


def test_a_context_holds_tokens(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    for token in (-1, 100):
        with pytest.raises(BadRequest, match=f'^{token} is not a token of "m": its tokens are 0 to 99$'):
            ask(harness, context=(3, token))


def test_suffix(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=INSERTS)
    harness.make("plain", template=PLAIN)
    ask(harness, "def f():", suffix="return 1")
    assert harness.asks[0]["prompt"] == "<pre> def f(): <suf> return 1 <mid>"
    with pytest.raises(BadRequest, match=r"^registry\.ollama\.ai/library/plain:latest does not support insert$"):
        ask(harness, model="plain", suffix="x")


def test_the_models_own_jinja_template(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m")
    ask(harness, "Once upon a time")
    assert harness.renderer.jobs[0].kind == "jinja"
    assert "Once upon a time" in harness.asks[0]["prompt"]


def test_thinking_is_split_here_too(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("hm</think>", "\n\nyes"))
    harness.make("m", template=THINKS)
    events = ask(harness)
    assert (thinking(events), content(events)) == ("hm", "yes")
    # Raw text is not parsed.
    assert content(ask(harness, raw=True)) == "hm</think>\n\nyes"


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "", "top_logprobs": -1}, 400, "top_logprobs must be between 0 and 20"),
        ({"model": ""}, 404, "model '' not found"),
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({"model": "bert"}, 400, '"bert" does not support generate'),
        ({"model": "painter"}, 400, "image generation models are not currently supported"),
        ({"raw": True, "system": "s", "think": True}, 400, "raw mode does not support template, system, or context"),
        ({"raw": True, "context": (1,)}, 400, "raw mode does not support template, system, or context"),
        ({"raw": True, "template": "t"}, 400, "raw mode does not support template, system, or context"),
        ({"think": True}, 400, '"m" does not support thinking'),
        ({"options": {"stop": "x"}}, 400, 'option "stop" must be of type array'),
        ({"options": {"stop": ["x"] * 300}}, 400, "at most 256 stop strings of 8192 characters each can be used"),
        ({"options": {"repeat_penalty": -1}}, 400, 'option "repeat_penalty" must be greater than 0; 1.0 turns it off'),
        ({"images": (b"x",)}, 400, '"m" does not support vision: send the message without images'),
    ],
)
def test_errors(tmp_path: Path, fields: dict[str, Any], status: int, message: str) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    harness.make("bert", "all-MiniLM-L6-v2-q8_0.gguf")
    harness.make("painter", info={"capabilities": ["image"]})
    with pytest.raises(OllamaError) as caught:
        ask(harness, **fields)
    assert (caught.value.status, caught.value.message) == (status, message)
    assert harness.pool.acquired == []


def test_a_template_that_does_not_parse(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    with pytest.raises(BadRequest):
        ask(harness, template="{{ if }}")
    assert harness.pool.leases == 0


def test_load_and_unload(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    assert ask(harness, "") == [Done("load")]
    assert ask(harness, "", keep_alive=0.0) == [Done("unload")]
    assert content(ask(harness, "hi", keep_alive=0.0)) == "Hello there"
    assert harness.pool.unloaded == ["m:latest"]
    assert [keep for _, _, keep in harness.pool.acquired] == [None, 0.0]
