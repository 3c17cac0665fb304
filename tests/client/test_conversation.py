"""A conversation and its turns: what is sent, what joins the conversation, what was left out."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_servers import ScriptedServer, error, ndjson

from ollama_nb.api.events import Stats
from ollama_nb.client.chunks import DoneChunk, TextChunk, ThinkingChunk, collect, parse_chunks
from ollama_nb.client.client import Client
from ollama_nb.client.conversation import Conversation, assistant_message, describe_omission, user_message
from ollama_nb.errors import BadRequest, ContextOverflow

REPLY = ndjson(
    {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
    {"message": {"role": "assistant", "content": "Hi"}, "done": False},
    {"message": {"role": "assistant", "content": "!"}, "done": True, "done_reason": "stop", "eval_count": 2},
)


def ask(server: ScriptedServer, conversation: Conversation, text: str = "Hello", **fields: Any) -> None:
    turn = conversation.start(Client(server.url), "m", user_message(text), fields=fields)
    collect(turn)
    turn.commit()


def test_a_turn_is_a_stream_of_chunks_and_joins_when_committed(server: ScriptedServer) -> None:
    server.routes["POST /api/chat"] = REPLY
    conversation = Conversation(system="Be short.")
    turn = conversation.start(Client(server.url), "m", user_message("Hello", ["aW1n"]), fields={"think": True})
    *pieces, done = turn
    assert pieces == [ThinkingChunk("hm"), TextChunk("Hi"), TextChunk("!")]
    assert isinstance(done, DoneChunk) and (done.reason, done.stats.output_tokens) == ("stop", 2)
    assert conversation.messages == []
    turn.commit()
    assert conversation.messages == [user_message("Hello", ["aW1n"]), assistant_message("Hi!", "hm")]
    (asked,) = server.asked("POST /api/chat")
    assert asked["messages"][0] == {"role": "system", "content": "Be short."}
    assert (asked["truncate"], asked["think"], asked["stream"]) == ("messages", True, True)


def test_the_next_request_contains_what_was_committed(server: ScriptedServer) -> None:
    server.routes["POST /api/chat"] = lambda request: REPLY
    conversation = Conversation()
    ask(server, conversation, "one")
    conversation.start(Client(server.url), "m", user_message("abandoned")).close()
    ask(server, conversation, "two")
    asked = server.asked("POST /api/chat")[-1]["messages"]
    assert [message["content"] for message in asked] == ["one", "Hi!", "two"]
    conversation.undo()
    assert [message["content"] for message in conversation.messages] == ["one", "Hi!"]
    conversation.clear()
    assert conversation.messages == []


def test_an_interrupted_reply_can_be_committed_as_far_as_it_arrived(server: ScriptedServer) -> None:
    server.routes["POST /api/chat"] = REPLY
    conversation = Conversation()
    turn = conversation.start(Client(server.url), "m", user_message("Hello"))
    next(turn), next(turn)
    turn.close()
    turn.commit()
    assert conversation.messages[-1] == assistant_message("Hi", "hm")


def test_a_server_that_accepts_only_a_bool_gets_one(server: ScriptedServer) -> None:
    server.routes["POST /api/chat"] = [error(400, "json: cannot unmarshal string into bool"), REPLY, REPLY]
    conversation = Conversation()
    ask(server, conversation)
    ask(server, conversation)
    assert [asked["truncate"] for asked in server.asked("POST /api/chat")] == ["messages", True, True]


def test_other_refusals_are_raised(server: ScriptedServer) -> None:
    conversation = Conversation()
    server.routes["POST /api/chat"] = [error(400, "too long", "context_overflow")]
    with pytest.raises(ContextOverflow):
        ask(server, conversation)
    server.routes["POST /api/chat"] = [error(400, "no such option"), error(400, "no such option")]
    with pytest.raises(BadRequest, match="no such option"):
        ask(server, conversation)
    assert (conversation.messages, conversation.truncate) == ([], "messages")


def test_one_object_can_hold_several_chunks() -> None:
    found = {"response": "a", "thinking": "b", "done": True, "warnings": ["w"]}
    thinking, text, done = parse_chunks(found)
    assert (thinking, text) == (ThinkingChunk("b"), TextChunk("a"))
    assert isinstance(done, DoneChunk) and (done.reason, done.warnings, done.final) == ("stop", ("w",), found)


@pytest.mark.parametrize(
    ("stats", "text"),
    [
        (Stats(), ""),
        (Stats(messages_dropped=1), "the oldest message did not fit into the context and was left out; X widens it"),
        (
            Stats(messages_dropped=2, prompt_tokens_dropped=9, context_length=64),
            "the 2 oldest messages did not fit into the context of 64 tokens and were left out; X widens it",
        ),
        (
            Stats(prompt_tokens_dropped=9, context_length=64),
            "9 tokens of the prompt did not fit into the context of 64 tokens and were left out; X widens it",
        ),
    ],
)
def test_an_omission_is_described(stats: Stats, text: str) -> None:
    assert describe_omission(stats, "X") == text
