"""The native dialect, replies: events → JSON objects, byte for byte as Go writes them.

Keys stand in Ollama's order and are left out when empty where Ollama leaves them out; our own come after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.chat import RerankRequest
from ollama_nb.api.encode import call_object, filled, go_json, go_string, message_object
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
from ollama_nb.errors import OllamaError
from ollama_nb.server.dialects.times import nanoseconds, utc_now

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
WHOLE_PROGRESS = "application/json"  # what Ollama says for pull and create with "stream": false


def encode(value: Any) -> bytes:
    return go_json(value).encode("utf-8")


def error(failure: OllamaError) -> bytes:
    """The body of an error reply, and the last line of a stream that fails."""
    return encode({"error": failure.message, "code": failure.code})


@dataclass(frozen=True, slots=True)
class _Said:
    """What events say together: texts, log probabilities and calls of them all, everything else of the last one."""

    text: Delta
    calls: tuple[ToolCall, ...]
    done: Done | None
    rendered: Rendered | None

    @classmethod
    def of(cls, events: Sequence[Event]) -> _Said:
        deltas = [event for event in events if isinstance(event, Delta)]
        last = events[-1] if events else None
        return cls(
            text=Delta(
                "".join(delta.content for delta in deltas),
                "".join(delta.thinking for delta in deltas),
                tuple(entry for delta in deltas for entry in delta.logprobs),
                "\n".join(delta.tool_error for delta in deltas if delta.tool_error),
            ),
            calls=tuple(call for event in events if isinstance(event, ToolCalls) for call in event.calls),
            done=last if isinstance(last, Done) else None,
            rendered=last if isinstance(last, Rendered) else None,
        )


class Reply:
    """The objects of one reply. ``chunk`` gives the object of one event; ``whole`` gathers events into one object."""

    def __init__(self, model: str, request_id: str = "") -> None:
        self._model, self._id = model, request_id
        self._head = f'{{"model":{go_string(model)},"created_at":"'

    def chunk(self, event: Event) -> bytes:
        if isinstance(event, Delta) and not event.logprobs and not event.tool_error:  # nearly all are: written fast
            return f'{self._head}{utc_now()}",{self._text(event)},"done":false}}'.encode()
        return self.whole([event])

    def whole(self, events: Sequence[Event]) -> bytes:
        return encode({"model": self._model, "created_at": utc_now(), **self._body(_Said.of(events))})

    def _text(self, delta: Delta) -> str:
        raise NotImplementedError

    def _body(self, said: _Said) -> dict[str, Any]:
        raise NotImplementedError

    def _ours(self, said: _Said) -> dict[str, Any]:
        """Our additions, which come last; load and unload replies have none but warnings."""
        found = filled({"tool_error": said.text.tool_error})
        if said.done is None:
            return found
        if said.done.stats is not None:
            found |= _additions(said.done.stats) | filled({"request_id": self._id})
        return found | filled({"warnings": said.done.warnings, "run": said.done.run})


class ChatReply(Reply):
    def _text(self, delta: Delta) -> str:
        thought = f',"thinking":{go_string(delta.thinking)}' if delta.thinking else ""
        return f'"message":{{"role":"assistant","content":{go_string(delta.content)}{thought}}}'

    def _body(self, said: _Said) -> dict[str, Any]:
        answer = Message("assistant", said.text.content, said.text.thinking, tool_calls=said.calls)
        return {
            "message": message_object(answer),
            "done": said.done is not None,
            **filled({"done_reason": said.done.reason if said.done else ""}),
            **_debug(said.rendered),
            **_logprobs(said.text),
            **_metrics(said.done),
            **self._ours(said),
        }


class GenerateReply(Reply):
    def _text(self, delta: Delta) -> str:
        thought = f',"thinking":{go_string(delta.thinking)}' if delta.thinking else ""
        return f'"response":{go_string(delta.content)}{thought}'

    def _body(self, said: _Said) -> dict[str, Any]:
        return {
            "response": said.text.content,
            **filled({"thinking": said.text.thinking}),
            "done": said.done is not None,
            **(filled({"done_reason": said.done.reason, "context": said.done.context}) if said.done else {}),
            **_metrics(said.done),
            **filled({"tool_calls": [call_object(call) for call in said.calls]}),
            **_debug(said.rendered),
            **_logprobs(said.text),
            **self._ours(said),
        }


def progress(line: Progress) -> bytes:
    more = filled({"digest": line.digest, "total": line.total, "completed": line.completed})
    more |= filled({"warnings": line.warnings})
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
    yield b"]" + "".join(f',"{key}":{value}' for key, value in filled(metrics).items()).encode() + b"}"


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


def openai_error(failure: OllamaError) -> bytes:
    """The body of an error reply in the format of OpenAI's API, for the routes below ``/v1``."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(failure.status, "api_error")
    return encode({"error": {"message": failure.message, "type": kind, "param": None, "code": None}})


def _vector(vector: tuple[float, ...]) -> bytes:
    return ("[" + ",".join(map(repr, vector)) + "]").encode()


def _metrics(done: Done | None) -> dict[str, Any]:
    if done is None or done.stats is None:
        return {}
    stats = done.stats
    return filled(
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
    dropped = filled({"messages_dropped": stats.messages_dropped, "prompt_tokens_dropped": stats.prompt_tokens_dropped})
    drafts = {"drafted_tokens": stats.drafted_tokens, "accepted_tokens": stats.accepted_tokens}
    return {
        **filled({"truncated": dropped, "context_length": stats.context_length}),
        "cached_tokens": stats.cached_tokens,
        **(drafts if stats.drafted_tokens else {}),
    }


def _logprobs(delta: Delta) -> dict[str, Any]:
    return filled({"logprobs": [_logprob(entry) for entry in delta.logprobs]})


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [_token(token, value) for token, value in entry.top]
    return {**_token(entry.token, entry.logprob), **filled({"top_logprobs": top})}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    """``bytes`` are the token's own, also where they are only part of a character."""
    # JSON has no infinities: what can never happen is as unlikely as a number can say.
    value = max(logprob, -1e9)
    return {"token": token.decode("utf-8", "replace"), "logprob": value, **filled({"bytes": list(token)})}


def _debug(rendered: Rendered | None) -> dict[str, Any]:
    if rendered is None:
        return {}
    return {"_debug_info": {"rendered_template": rendered.template, **filled({"image_count": rendered.image_count})}}
