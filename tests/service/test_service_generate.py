"""Generate: templates, raw, suffix, context, load and unload."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.kitchen import INSERTS, PLAIN, THINKS, Kitchen, collect, content, done, thinking

from ollama_nb.api.chat import GenerateRequest
from ollama_nb.api.events import Done, Event
from ollama_nb.api.messages import Message
from ollama_nb.errors import BadRequest, OllamaError


def ask(kitchen: Kitchen, prompt: str = "hi", model: str = "m", **fields: Any) -> list[Event]:
    return asyncio.run(collect(kitchen.service.generate(GenerateRequest(model=model, prompt=prompt, **fields))))


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
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template=PLAIN, system="own")
    events = ask(kitchen, **fields)
    assert kitchen.asks[0]["prompt"] == prompt
    assert content(events) == "Hello there"
    assert done(events).context == (None if fields.get("raw") else (7, 8, 9))
    assert kitchen.asks[0]["return_tokens"] is not bool(fields.get("raw"))


def test_stored_messages_unless_a_context_goes_on(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template=PLAIN, messages=(Message("user", "q"), Message("assistant", "a")))
    ask(kitchen)
    ask(kitchen, context=())
    assert [asked["prompt"] for asked in kitchen.asks] == [
        "<user> q <assistant> a <user> hi <assistant>",
        "<user> hi <assistant>",
    ]


def test_what_goes_on_behind_a_context_does_not_begin_again(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template="<s>" + PLAIN)
    ask(kitchen)
    ask(kitchen, context=(3, 4))
    prompt = "<user> hi <assistant>"
    assert [asked["prompt"] for asked in kitchen.asks] == [f"<s>{prompt}", f"<3><4>{prompt}"]
    # ChatML models call the mark that begins each turn their BOS, and their tokenizers do not add it.
    kitchen.pool.runner.loaded = msgspec.structs.replace(kitchen.pool.runner.loaded, add_bos=False)
    ask(kitchen, context=(3, 4))
    assert kitchen.asks[-1]["prompt"] == f"<3><4><s>{prompt}"


def test_a_context_holds_tokens(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template=PLAIN)
    for token in (-1, 100):
        with pytest.raises(BadRequest, match=f'^{token} is no token of "m": its tokens are 0 to 99$'):
            ask(kitchen, context=(3, token))


def test_suffix(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template=INSERTS)
    kitchen.make("plain", template=PLAIN)
    ask(kitchen, "def f():", suffix="return 1")
    assert kitchen.asks[0]["prompt"] == "<pre> def f(): <suf> return 1 <mid>"
    with pytest.raises(BadRequest, match=r"^registry\.ollama\.ai/library/plain:latest does not support insert$"):
        ask(kitchen, model="plain", suffix="x")


def test_the_models_own_jinja_template(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m")
    ask(kitchen, "Once upon a time")
    assert kitchen.renderer.jobs[0].kind == "jinja"
    assert "Once upon a time" in kitchen.asks[0]["prompt"]


def test_thinking_is_split_here_too(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path, lambda prompt, format: ("hm</think>", "\n\nyes"))
    kitchen.make("m", template=THINKS)
    events = ask(kitchen)
    assert (thinking(events), content(events)) == ("hm", "yes")
    # Raw text is nobody's to read.
    assert content(ask(kitchen, raw=True)) == "hm</think>\n\nyes"


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
        ({"images": (b"x",)}, 400, '"m" does not support vision: send the message without images'),
    ],
)
def test_errors(tmp_path: Path, fields: dict[str, Any], status: int, message: str) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template=PLAIN)
    kitchen.make("bert", "all-MiniLM-L6-v2-q8_0.gguf")
    kitchen.make("painter", info={"capabilities": ["image"]})
    with pytest.raises(OllamaError) as caught:
        ask(kitchen, **fields)
    assert (caught.value.status, caught.value.message) == (status, message)
    assert kitchen.pool.acquired == []


def test_a_template_that_does_not_parse(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template=PLAIN)
    with pytest.raises(BadRequest):
        ask(kitchen, template="{{ if }}")
    assert kitchen.pool.leases == 0


def test_load_and_unload(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make("m", template=PLAIN)
    assert ask(kitchen, "") == [Done("load")]
    assert ask(kitchen, "", keep_alive=0.0) == [Done("unload")]
    assert content(ask(kitchen, "hi", keep_alive=0.0)) == "Hello there"
    assert kitchen.pool.unloaded == ["m:latest"]
    assert [keep for _, _, keep in kitchen.pool.acquired] == [None, 0.0]
