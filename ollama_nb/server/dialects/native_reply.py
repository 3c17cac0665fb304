"""The native dialect, replies: events → JSON objects, byte for byte as Go writes them.

Keys stand in Ollama's order and are left out when empty where Ollama leaves them out; our own come after them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from ollama_nb.api.chat import RerankRequest
from ollama_nb.api.encode import go_json, go_string
from ollama_nb.api.events import (
    Delta,
    Done,
    Embeddings,
    Event,
    Progress,
    Ranking,
    Rendered,
    Stats,
    TokenLogprob,
    ToolCalls,
)
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.server.dialects.times import nanoseconds, utc_now

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
WHOLE_PROGRESS = "application/json"  # what Ollama says for pull and create with "stream": false


def encode(value: Any, *, sort_keys: bool = False) -> bytes:
    return go_json(value, sort_keys=sort_keys).encode("utf-8")


def error(message: str, **more: str) -> bytes:
    return encode({"error": message, **more})


class Reply:
    """The objects of one reply. ``chunk`` gives the object of one event; ``whole`` gathers events into one object."""

    def __init__(self, model: str, request_id: str = "") -> None:
        self._model, self._id = model, request_id
        self._head = f'{{"model":{go_string(model)},"created_at":"'

    def chunk(self, event: Event) -> bytes:
        match event:
            case Delta(content, thinking, (), ""):
                return f'{self._head}{utc_now()}",{self._text(content, thinking)},"done":false}}'.encode()
            case Delta(content, thinking, logprobs, tool_error):
                return self._object(content, thinking, (), logprobs=logprobs, tool_error=tool_error)
            case ToolCalls(calls):
                return self._object("", "", calls)
            case Done():
                return self._object("", "", (), event)
            case Rendered():
                return self._object("", "", (), rendered=event)

    def whole(self, events: list[Event]) -> bytes:
        """One object: texts, log probabilities and calls of all events, everything else of the last one."""
        deltas = [event for event in events if isinstance(event, Delta)]
        last = events[-1] if events else None
        return self._object(
            "".join(delta.content for delta in deltas),
            "".join(delta.thinking for delta in deltas),
            tuple(call for event in events if isinstance(event, ToolCalls) for call in event.calls),
            last if isinstance(last, Done) else None,
            last if isinstance(last, Rendered) else None,
            tuple(entry for delta in deltas for entry in delta.logprobs),
            "\n".join(delta.tool_error for delta in deltas if delta.tool_error),
        )

    def _text(self, content: str, thinking: str) -> str:
        raise NotImplementedError

    def _object(
        self,
        content: str,
        thinking: str,
        calls: tuple[ToolCall, ...],
        done: Done | None = None,
        rendered: Rendered | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
        tool_error: str = "",
    ) -> bytes:
        raise NotImplementedError

    def _start(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": utc_now()}

    def _ours(self, done: Done | None) -> dict[str, Any]:
        """Our additions to the final object; load and unload replies have none but warnings."""
        if done is None:
            return {}
        found: dict[str, Any] = {}
        if done.stats is not None:
            found |= _additions(done.stats)
            found |= _filled({"request_id": self._id})
        return found | _filled({"warnings": done.warnings, "run": done.run})


class ChatReply(Reply):
    def _text(self, content: str, thinking: str) -> str:
        thought = f',"thinking":{go_string(thinking)}' if thinking else ""
        return f'"message":{{"role":"assistant","content":{go_string(content)}{thought}}}'

    def _object(
        self,
        content: str,
        thinking: str,
        calls: tuple[ToolCall, ...],
        done: Done | None = None,
        rendered: Rendered | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
        tool_error: str = "",
    ) -> bytes:
        answer = message(Message("assistant", content, thinking, tool_calls=calls))
        return encode(
            {
                **self._start(),
                "message": answer,
                "done": done is not None,
                **_filled({"done_reason": done.reason if done else ""}),
                **_debug(rendered),
                **_filled({"logprobs": [_logprob(entry) for entry in logprobs]}),
                **_metrics(done),
                **_filled({"tool_error": tool_error}),
                **self._ours(done),
            }
        )


class GenerateReply(Reply):
    def _text(self, content: str, thinking: str) -> str:
        return f'"response":{go_string(content)}' + (f',"thinking":{go_string(thinking)}' if thinking else "")

    def _object(
        self,
        content: str,
        thinking: str,
        calls: tuple[ToolCall, ...],
        done: Done | None = None,
        rendered: Rendered | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
        tool_error: str = "",
    ) -> bytes:
        return encode(
            {
                **self._start(),
                "response": content,
                **_filled({"thinking": thinking}),
                "done": done is not None,
                **_filled({"done_reason": done.reason if done else "", "context": (done and done.context) or ()}),
                **_metrics(done),
                **_filled({"tool_calls": [tool_call(call) for call in calls]}),
                **_debug(rendered),
                **_filled({"logprobs": [_logprob(entry) for entry in logprobs]}),
                **_filled({"tool_error": tool_error}),
                **self._ours(done),
            }
        )


def message(message: Message) -> dict[str, Any]:
    """Role and content always, the rest when there is any."""
    return {
        "role": message.role,
        "content": message.content,
        **_filled(
            {
                "thinking": message.thinking,
                "images": [base64.b64encode(image).decode() for image in message.images],
                "tool_calls": [tool_call(call) for call in message.tool_calls],
                "tool_name": message.tool_name,
                "tool_call_id": message.tool_call_id,
            }
        ),
    }


def tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"index": call.index, "name": call.name, "arguments": call.arguments}
    return {**_filled({"id": call.id}), "function": function}


def progress(line: Progress) -> bytes:
    more = _filled({"digest": line.digest, "total": line.total, "completed": line.completed})
    more |= _filled({"warnings": line.warnings})
    return encode({"status": line.status, **more})


def embed(model: str, result: Embeddings) -> Iterator[bytes]:
    """The reply of ``/api/embed``, a piece per vector: a large one takes time to write."""
    yield f'{{"model":{go_string(model)},"embeddings":['.encode()
    for number, vector in enumerate(result.vectors):
        yield (b"," if number else b"") + _vector(vector)
    stats = result.stats
    metrics = {
        "total_duration": nanoseconds(stats.total_seconds) if stats else 0,
        "load_duration": nanoseconds(stats.load_seconds) if stats else 0,
        "prompt_eval_count": stats.prompt_tokens if stats else 0,
    }
    yield b"]" + "".join(f',"{key}":{value}' for key, value in _filled(metrics).items()).encode() + b"}"


def embeddings(result: Embeddings) -> bytes:
    """The reply of ``/api/embeddings``."""
    return b'{"embedding":' + (_vector(result.vectors[0]) if result.vectors else b"[]") + b"}"


def ranking(request: RerankRequest, ranking: Ranking) -> bytes:
    """The reply of ``/api/rerank``; each result has its document's text when asked for."""

    def told(index: int, score: float) -> dict[str, Any]:
        document = {"document": request.documents[index]} if request.return_documents else {}
        return {"index": index, "relevance_score": score, **document}

    return encode(
        {
            "model": request.model,
            "results": [told(index, score) for index, score in ranking.results],
            "method": ranking.method,
            "usage": {"prompt_tokens": ranking.prompt_tokens, "total_tokens": ranking.prompt_tokens},
        }
    )


def openai_error(status: int, message: str) -> bytes:
    """An error as OpenAI's API words it, for the routes below ``/v1``."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def _vector(vector: tuple[float, ...]) -> bytes:
    return ("[" + ",".join(map(repr, vector)) + "]").encode()


def _metrics(done: Done | None) -> dict[str, Any]:
    if done is None or done.stats is None:
        return {}
    stats = done.stats
    return _filled(
        {
            "total_duration": nanoseconds(stats.total_seconds),
            "load_duration": nanoseconds(stats.load_seconds),
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": nanoseconds(stats.prompt_seconds),
            "eval_count": stats.output_tokens,
            "eval_duration": nanoseconds(stats.output_seconds),
        }
    )


def _additions(stats: Stats) -> dict[str, Any]:
    dropped = _filled(
        {"messages_dropped": stats.messages_dropped, "prompt_tokens_dropped": stats.prompt_tokens_dropped}
    )
    drafts = {"drafted_tokens": stats.drafted_tokens, "accepted_tokens": stats.accepted_tokens}
    return {
        **_filled({"truncated": dropped, "context_length": stats.context_length}),
        "cached_tokens": stats.cached_tokens,
        **(drafts if stats.drafted_tokens else {}),
    }


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [_token(token, value) for token, value in entry.top]
    return {**_token(entry.token, entry.logprob), **_filled({"top_logprobs": top})}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    """``bytes`` are the token's own, also where they are only part of a character."""
    # JSON has no infinities: what can never happen is as unlikely as a number can say.
    value = max(logprob, -1e9)
    return {"token": token.decode("utf-8", "replace"), "logprob": value, **_filled({"bytes": list(token)})}


def _debug(rendered: Rendered | None) -> dict[str, Any]:
    if rendered is None:
        return {}
    return {
        "_debug_info": {
            "rendered_template": rendered.template,
            **_filled({"image_count": rendered.image_count}),
        }
    }


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Go's ``omitempty``."""
    return {key: value for key, value in values.items() if value}
