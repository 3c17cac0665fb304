"""A call that could not be read: the reason stands beside the text, in streams and in whole replies."""

from __future__ import annotations

import json

from ollama_nb.api.events import Delta, Done
from ollama_nb.server.dialects.native_reply import ChatReply, GenerateReply

BAD = Delta("<tool_call>{bad}</tool_call>", tool_error="the tool call is not valid JSON")


def test_in_a_stream() -> None:
    chunk = json.loads(ChatReply("m").chunk(BAD))
    assert chunk["message"] == {"role": "assistant", "content": BAD.content}
    assert (chunk["tool_error"], chunk["done"]) == (BAD.tool_error, False)
    assert json.loads(GenerateReply("m").chunk(BAD))["tool_error"] == BAD.tool_error
    assert "tool_error" not in json.loads(ChatReply("m").chunk(Delta("fine")))


def test_in_a_whole_reply() -> None:
    whole = json.loads(ChatReply("m").whole([Delta("a "), BAD, BAD, Done("stop")]))
    assert whole["message"]["content"] == "a " + BAD.content * 2
    assert whole["tool_error"] == BAD.tool_error + "\n" + BAD.tool_error
    assert "tool_error" not in json.loads(GenerateReply("m").whole([Delta("a"), Done("stop")]))
