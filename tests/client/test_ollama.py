"""The Python API: requests, result types, and mistakes that are refused before a request is sent."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from support.fake_servers import ScriptedServer, error, ndjson, ok
from support.scripted_client import FIGURES

import ollama_nb
from ollama_nb.client.aio import AsyncOllama
from ollama_nb.client.chat import HistoryDropped
from ollama_nb.client.ollama import Ollama
from ollama_nb.errors import BadRequest, ContextOverflow, OllamaError

TOO_LONG = "the prompt is longer than the context length currently available to the model; shorten the prompt"


def generate_reply(text: str, **final: Any) -> Any:
    return ok({"response": text, "done": True, "done_reason": "stop", **FIGURES, **final})


def chat_reply(text: str, **final: Any) -> Any:
    message = {"role": "assistant", "content": text, "thinking": final.pop("thinking", "")}
    return ok({"message": message, "done": True, "done_reason": "stop", **FIGURES, **final})


def test_an_answer_is_a_text_with_figures(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = generate_reply("Blue.", thinking="hm", warnings=["w"])
    answer = ollama.ask("m", "Sky?", system="Be short.", temperature=0, think=True)
    assert (answer, answer.text, answer.response) == ("Blue.", "Blue.", "Blue.")
    assert (answer.model, answer.thinking, answer.reason, answer.warnings) == ("m", "hm", "stop", ("w",))
    assert answer.stats is not None
    assert (answer.stats.output_tokens, answer.stats.output_seconds) == (20, 0.5)
    (asked,) = server.asked("POST /api/generate")
    assert asked == {
        "model": "m", "prompt": "Sky?", "system": "Be short.", "options": {"temperature": 0}, "think": True,
        "truncate": False, "stream": False,
    }  # fmt: skip
    assert server.seen[-1].headers["X-Ollama-Strict"] == "true"


def test_an_answer_survives_pickling(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = generate_reply("Blue.")
    answer = ollama.ask("m", "Sky?")
    again = pickle.loads(pickle.dumps(answer))
    assert (again, again.model, again.stats) == (answer, "m", answer.stats)


def test_several_answers(server: ScriptedServer, ollama: Ollama) -> None:
    listed = [
        {"index": 0, "response": "蓝", "done_reason": "length"},
        {"index": 1, "response": "Red.", "thinking": "hm", "done_reason": "stop", "stop_sequence": "!"},
    ]
    final = {"done_reason": "length", "choices": listed, "reasoning_tokens": 2}
    server.routes["POST /api/generate"] = generate_reply("蓝", **final)
    answer = ollama.ask("m", "Sky?", n=2, think_budget=7, logit_bias={"5": -100}, user="ann")
    assert answer.choices == ("蓝", "Red.") and answer.choices[0] is answer
    other = answer.choices[1]
    assert (answer.reason, other.reason, other.thinking, other.stop_sequence) == ("length", "stop", "hm", "!")
    assert answer.stats is not None and answer.stats.reasoning_tokens == 2
    (asked,) = server.asked("POST /api/generate")
    assert (asked["n"], asked["think_budget"], asked["user"]) == (2, 7, "ann")
    assert asked["options"] == {"logit_bias": {"5": -100}}
    assert pickle.loads(pickle.dumps(answer)).choices == answer.choices
    with pytest.raises(BadRequest, match="leave out `n`"):
        ollama.ask("m", "Sky?", n=2, returns=list[int])


def test_several_answers_in_a_stream(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = ndjson(
        {"index": 1, "response": "R", "done": False},
        {"index": 0, "response": "蓝", "done": False},
        {"index": 0, "response": "", "done": False, "done_reason": "length", "stop_sequence": "x"},
        {"index": 1, "response": "ed.", "done": False},
        {"index": 1, "response": "", "done": True, "done_reason": "stop", "stop_sequence": "!", **FIGURES},
    )
    pieces = ollama.stream("m", "Sky?", n=2)
    assert [*pieces] == ["蓝"], "the pieces are those of the first one"
    assert pieces.answer.choices == ("蓝", "Red.")
    assert [(one.reason, one.stop_sequence) for one in pieces.answer.choices] == [("length", "x"), ("stop", "!")]


def test_a_prompt_of_token_ids(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = generate_reply("Blue.", stop_sequence="。")
    answer = ollama.ask("m", [1, 5])
    assert (answer, answer.stop_sequence, answer.choices) == ("Blue.", "。", ("Blue.",))
    (asked,) = server.asked("POST /api/generate")
    assert (asked["tokens"], asked["prompt"]) == ([1, 5], "")
    for wrong in ([], ["a"]):
        with pytest.raises(BadRequest, match="at least one token id"):
            ollama.ask("m", wrong)  # type: ignore[arg-type]


def test_misspelt_keywords_are_refused_with_the_nearest_name(server: ScriptedServer, ollama: Ollama) -> None:
    with pytest.raises(BadRequest, match='unknown option "temprature", did you mean "temperature"'):
        ollama.ask("m", "Sky?", temprature=0)
    with pytest.raises(BadRequest, match='option "top_k" must be of type integer'):
        ollama.chat_session("m", top_k="many")
    with pytest.raises(BadRequest, match='on_overflow must be "error" or "truncate", not "cut"'):
        ollama.ask("m", "Sky?", on_overflow="cut")  # type: ignore[call-overload]
    with pytest.raises(BadRequest, match=r"at most one of format.*choices and regex"):
        ollama.ask("m", "Sky?", choices=["a"], regex="a")
    with pytest.raises(BadRequest, match="no prompt"):
        ollama.ask("m", "")
    assert server.asked("POST /api/generate") == []


@pytest.mark.parametrize(
    ("prompt", "keywords", "words"),
    [
        (5, {}, "the prompt must be a string, not 5 of type int"),
        ("", {}, "no prompt: there is nothing to ask"),
        (None, {}, "the prompt must be a string, not None"),
        ("Sky?", {"choices": "blue"}, "choices must be a list of strings, not 'blue'"),
        ("Sky?", {"choices": [1, 2]}, r"choices must be a list of strings, not \[1, 2\]"),
        ("Sky?", {"returns": {"a": 5}}, 'field "a": 5 is neither a type nor a list of choices nor a description'),
    ],
)
def test_wrong_types_are_refused_in_terms_of_python(
    server: ScriptedServer, ollama: Ollama, prompt: Any, keywords: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        ollama.ask("m", prompt, **keywords)
    if not keywords:
        with pytest.raises(BadRequest, match=words.replace("prompt", "message")):
            ollama.chat_session("m").ask(prompt)
    assert server.asked("POST /api/generate") == server.asked("POST /api/chat") == []


def test_methods_of_the_client_are_suggested(ollama: Ollama) -> None:
    with pytest.raises(AttributeError, match=r"`list` is a method of Ollama's own API: `\.client\.list\("):
        ollama.list  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ollama.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(ollama, "_http")


def test_options_may_also_be_given_as_ollama_names_them(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = generate_reply("Blue.")
    ollama.ask("m", "Sky?", options={"seed": 7, "temperature": 1}, temperature=0)
    assert server.asked("POST /api/generate")[0]["options"] == {"seed": 7, "temperature": 0}


def test_a_prompt_that_does_not_fit_is_an_error_unless_asked_for(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = error(400, TOO_LONG, "context_overflow")
    with pytest.raises(ContextOverflow, match="longer than the context"):
        ollama.ask("m", "Sky?")
    server.routes["POST /api/generate"] = generate_reply("Blue.")
    ollama.ask("m", "Sky?", on_overflow="truncate")
    assert [asked["truncate"] for asked in server.asked("POST /api/generate")] == [False, True]


def test_other_errors_keep_their_class(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = error(400, "no such thing")
    with pytest.raises(BadRequest, match="no such thing") as caught:
        ollama.ask("m", "Sky?")
    assert not isinstance(caught.value, ContextOverflow)


@dataclass
class City:
    name: str
    people: int


def test_an_answer_of_a_type(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = generate_reply('{"name": "北京", "people": 22}')
    assert ollama.ask("m", "Biggest city?", returns=City) == City("北京", 22)
    asked = server.asked("POST /api/generate")[0]
    assert asked["format"]["required"] == ["name", "people"]
    assert asked["system"] == "Answer with one JSON object that has these fields:\n- name (string)\n- people (integer)"


def test_a_type_without_fields_leaves_the_system_message_alone(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = generate_reply("[1, 2]")
    assert ollama.ask("m", "Numbers?", returns=list[int]) == [1, 2]
    assert "system" not in server.asked("POST /api/generate")[0]


def test_the_system_message_of_a_typed_answer_lists_its_fields(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/chat"] = chat_reply('{"name": "Ann", "people": 1}')
    chat = ollama.chat_session("m", system="Be short.")
    assert chat.ask("I am Ann.", returns=City) == City("Ann", 1)
    assert chat.ask("Again.", returns={"name": str, "people": int}) == {"name": "Ann", "people": 1}
    first = server.asked("POST /api/chat")[0]["messages"][0]["content"]
    assert first.startswith("Be short.\n\nAnswer with one JSON object that has these fields:\n- name")
    assert len(chat.messages) == 4


def test_an_answer_of_a_type_that_was_cut_off_is_an_error(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/generate"] = generate_reply('{"name": "Bei', done_reason="length")
    with pytest.raises(OllamaError, match=r"cut off after 13 characters.*`num_predict`"):
        ollama.ask("m", "Biggest city?", returns=City)
    with pytest.raises(BadRequest, match="give `returns` or `format`"):
        ollama.ask("m", "Biggest city?", returns=City, format="json")


def test_a_stream_gives_pieces_and_then_the_answer(server: ScriptedServer, ollama: Ollama) -> None:
    pieces = [{"response": "Bl", "done": False}, {"response": "", "thinking": "x", "done": False}]
    server.routes["POST /api/generate"] = ndjson(*pieces, {"response": "ue", "done": True, "done_reason": "stop"})
    with ollama.stream("m", "Sky?") as stream:
        assert next(stream) == "Bl"
        assert (stream.answer, stream.answer.reason) == ("Bl", "interrupted")
        assert [*stream] == ["ue"]
    assert (stream.answer, stream.answer.thinking, stream.answer.reason) == ("Blue", "x", "stop")


def test_a_conversation_remembers(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/chat"] = [chat_reply("Hi Ann."), chat_reply("Ann.", thinking="easy"), chat_reply("Blue.")]
    chat = ollama.chat_session("m", system="Be short.", temperature=0)
    chat.ask("I am Ann.")
    assert chat.ask("Who am I?", seed=1) == "Ann."
    asked = server.asked("POST /api/chat")[1]
    assert [(m["role"], m["content"]) for m in asked["messages"]] == [
        ("system", "Be short."), ("user", "I am Ann."), ("assistant", "Hi Ann."), ("user", "Who am I?"),
    ]  # fmt: skip
    assert asked["options"] == {"temperature": 0, "seed": 1}
    assert chat.messages[-1] == {"role": "assistant", "content": "Ann.", "thinking": "easy"}
    chat.undo()
    assert [m["content"] for m in chat.messages] == ["I am Ann.", "Hi Ann."]


def test_a_streamed_answer_joins_the_conversation_when_it_is_whole(server: ScriptedServer, ollama: Ollama) -> None:
    line = {"message": {"role": "assistant", "content": "Hi"}, "done": False}
    last = {"message": {"role": "assistant", "content": "!"}, "done": True, "done_reason": "stop"}
    server.routes["POST /api/chat"] = ndjson(line, last)
    chat = ollama.chat_session("m")
    with chat.stream("Hello") as stream:
        next(stream)
    assert chat.messages == []
    assert [*chat.stream("Hello")] == ["Hi", "!"]
    assert [m["content"] for m in chat.messages] == ["Hello", "Hi!"]


def test_dropped_history_is_a_warning(server: ScriptedServer, ollama: Ollama) -> None:
    dropped = {"messages_dropped": 2, "prompt_tokens_dropped": 9}
    server.routes["POST /api/chat"] = chat_reply("Hi.", truncated=dropped, context_length=64)
    with pytest.warns(HistoryDropped, match="2 oldest messages did not fit into the context of 64"):
        ollama.chat_session("m").ask("Hello")


def test_the_warning_names_the_line_of_the_caller(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/chat"] = chat_reply("Hi.", truncated={"messages_dropped": 2}, context_length=64)
    chat, awaited = ollama.chat_session("m"), AsyncOllama(ollama).chat_session("m")

    async def ask() -> None:
        await awaited.ask("Hello")

    async def gathered() -> None:
        await asyncio.gather(awaited.ask("Hello"))

    async def stream() -> None:
        async for _ in await awaited.stream("Hello"):
            pass

    def each() -> None:
        for _ in chat.stream("Hello"):
            pass

    calls: tuple[Callable[[], object], ...] = (
        lambda: chat.ask("Hello"),
        each,
        lambda: list(chat.stream("Hello")),
        lambda: asyncio.run(ask()),
        lambda: asyncio.run(gathered()),
        lambda: asyncio.run(stream()),
    )
    for call in calls:
        with pytest.warns(HistoryDropped) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_a_message_that_a_server_cut_is_a_warning_unless_asked_for(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/chat"] = chat_reply("Hi.", truncated={"prompt_tokens_dropped": 9}, context_length=64)
    for stream in (False, True):  # a server that cuts the message itself: the answer is complete and kept
        chat = ollama.chat_session("m")
        with pytest.warns(HistoryDropped, match="9 tokens of the prompt did not fit into the context of 64"):
            assert "".join(chat.stream("Hello") if stream else [chat.ask("Hello")]) == "Hi."
        assert [message["content"] for message in chat.messages] == ["Hello", "Hi."]
    assert ollama.chat_session("m", on_overflow="truncate").ask("Hello") == "Hi."


def test_vectors_are_arrays(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/embed"] = ok({"embeddings": [[0.6, 0.8], [1.0, 0.0]]})
    vectors = ollama.embed("m", ["a", "b"])
    assert (vectors.shape, vectors.dtype) == ((2, 2), np.float32)
    assert ollama.embed("m", "a", dimensions=2).shape == (2,)
    assert server.asked("POST /api/embed")[1] == {"model": "m", "input": ["a"], "dimensions": 2, "truncate": False}
    assert ollama.embed("m", []).size == 0


def test_documents_come_back_best_first(server: ScriptedServer, ollama: Ollama) -> None:
    results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
    server.routes["POST /api/rerank"] = ok({"results": results, "method": "rank"})
    best, _ = ollama.rerank("m", "q", iter(["a", "b"]), top_n=2)
    assert (best.index, best.score, best.document, best.method) == (1, 0.9, "b", "rank")
    assert ollama.rerank("m", "q", []) == []


def test_tokens_and_their_text(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/tokenize"] = ok({"tokens": [1, 2]})
    server.routes["POST /api/detokenize"] = ok({"content": "天"})
    assert ollama.tokens("m", "天", special=False) == [1, 2]
    assert ollama.detokenize("m", [1, 2]) == "天"
    assert server.asked("POST /api/tokenize")[0]["add_special"] is False


def test_an_image_is_a_path_or_bytes(server: ScriptedServer, ollama: Ollama, tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    server.routes["POST /api/generate"] = generate_reply("A cat.")
    ollama.ask("m", "What is it?", images=[tmp_path / "a.png", b"png"])
    assert server.asked("POST /api/generate")[0]["images"] == ["cG5n", "cG5n"]
    with pytest.raises(BadRequest, match=r"cannot read the image .*none\.png: No such file"):
        ollama.ask("m", "What is it?", images=[tmp_path / "none.png"])


def test_connect_is_public(server: ScriptedServer, home: Any) -> None:
    found = ollama_nb.connect(server.url)
    assert isinstance(found, ollama_nb.Ollama)
    assert repr(found) == f"Ollama('{server.url}')"
    assert "connect" in dir(ollama_nb)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ollama_nb.nothing  # noqa: B018


def test_batches(server: ScriptedServer, ollama: Ollama) -> None:
    counts = {"total": 9, "completed": 4, "failed": 1}
    batch = {"id": "batch_1", "endpoint": "/v1/embeddings", "model": None, "status": "failed", "request_counts": counts}
    server.routes["GET /v1/batches?limit=100"] = ok({"data": [batch]})
    (found,) = ollama.batches()
    assert (found.id, found.model, found.status, found.total, found.completed, found.failed) == (
        "batch_1", "", "failed", 9, 4, 1,
    )  # fmt: skip
    server.routes["POST /v1/batches/batch_1/cancel"] = ok(batch)
    ollama.cancel_batch("batch_1")
    assert server.asked("POST /v1/batches/batch_1/cancel") == [{}]
