"""Replies of OpenAI's API: events and results → JSON and server-sent events.

Keys are in Ollama's order. Our additional keys come last.
"""

from __future__ import annotations

import base64
import codecs
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ollama_nb.api.encode import filled, go_json, go_string
from ollama_nb.api.events import (
    Delta,
    Done,
    Embeddings,
    Event,
    Ranking,
    Rendered,
    Stats,
    TokenLogprob,
    ToolCallDelta,
    ToolCalls,
)
from ollama_nb.api.messages import ToolCall
from ollama_nb.api.models import Model
from ollama_nb.errors import Cancelled, OllamaError
from ollama_nb.server.dialects.encoder import JSON, SSE, SSE_COMMENT, ErrorFormat, GatheredReply, timings, warnings_of
from ollama_nb.server.dialects.openai.requests import ReplyForm

DONE = b"data: [DONE]\n\n"  # the end of every stream
_IMPOSSIBLE = -9999.0  # stands for the log probability of a token that cannot follow: JSON has no infinities
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def encode(value: Any) -> bytes:
    """One JSON value and a line break, as a body."""
    return (go_json(value) + "\n").encode()


def frame(value: Any) -> bytes:
    """One JSON value as a server-sent event."""
    return f"data: {go_json(value)}\n\n".encode()


def error_object(failure: OllamaError) -> dict[str, Any]:
    """The error envelope of OpenAI's API."""
    kind = _KINDS.get(failure.status) or ("invalid_request_error" if 400 <= failure.status < 500 else "api_error")
    param = failure.field or None
    return {"error": {"message": failure.message, "type": kind, "param": param, "code": failure.code}}


def error(failure: OllamaError) -> bytes:
    """The body of an error reply."""
    return encode(error_object(failure))


def error_frames(failure: OllamaError) -> bytes:
    """The end of a stream that fails."""
    return frame(error_object(failure)) + DONE


ERRORS = ErrorFormat(lambda failure, _id: error(failure), lambda failure, _id: error_frames(failure), empty_body="EOF")


def new_id(prefix: str) -> str:
    """A random id such as ``chatcmpl-…``."""
    return f"{prefix}-{secrets.token_hex(12)}"


class CompletionReply:
    """Writes the replies of ``/v1/completions``.

    ``echoes``: the text before the reply of each choice. With ``timed``, the reply has llama-server's ``timings``.
    """

    whole_type, stream_type, keep_alive = JSON, SSE, SSE_COMMENT
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, form: ReplyForm, *, timed: bool = False, echoes: Sequence[str] = ()) -> None:
        self._include_usage, self._timed = form.include_usage, timed
        self._head = {
            "id": new_id(self.prefix), "object": self.kind, "created": int(time.time()), "model": model,
            "system_fingerprint": "fp_ollama",
        }  # fmt: skip
        self._start = f'data: {go_json({**self._head, "object": self.chunk_kind})[:-1]},"choices":['
        self._end_of_choice = ',"usage":null}\n\n' if self._include_usage else "}\n\n"
        self._echoes = dict(enumerate(echoes))
        self._positions = {index: TextPosition(len(echo)) for index, echo in self._echoes.items()}
        self._done: Done | None = None  # the last one has the figures of all choices

    def is_whole(self, event: Event) -> bool:
        return isinstance(event, Rendered)

    def start(self) -> bytes:
        return b""

    def chunk(self, event: Event) -> bytes:
        self._done = event if isinstance(event, Done) else self._done
        return "".join(f"{self._start}{{{choice}}}]{self._end_of_choice}" for choice in self._choices(event)).encode()

    def end(self) -> bytes:
        """The last frame has the usage, if it is asked for, and our additional keys, if there are any."""
        last = self._additions(self._done)
        if self._include_usage and self._done is not None:
            last = {"usage": usage(self._done.stats), **last}
        return (f"{self._start}],{go_json(last)[1:]}\n\n".encode() if last else b"") + DONE

    def fail(self, failure: OllamaError) -> bytes:
        return error_frames(failure)

    def whole(self, events: Sequence[Event]) -> bytes:
        choices = GatheredReply.by_choice(events)
        done = next((event for event in reversed(events) if isinstance(event, Done)), None)
        body = {**self._head, "choices": [self._whole_choice(choice) for choice in choices]}
        body["usage"] = usage(done.stats if done is not None else None)
        if (rendered := choices[0].rendered) is not None:
            images = filled({"image_count": rendered.image_count})
            body["_debug_info"] = {"rendered_template": rendered.template, **images}
        return encode({**body, **self._additions(done)})

    def _choices(self, event: Event) -> Iterator[str]:
        """The choices of the frames that an event becomes: the inner part of their JSON objects."""
        if isinstance(event, Delta):
            text = go_string(self._echoes.pop(event.choice, "") + event.content)
            more = go_json({**reasoning(event.thinking), "finish_reason": None, **self._logprobs(event, event.choice)})
            yield f'"text":{text},"index":{event.choice},{more[1:-1]}'
        elif isinstance(event, ToolCalls):
            calls = go_json([call_object(call) for call in event.calls])
            yield f'"text":"","index":{event.choice},"tool_calls":{calls},"finish_reason":null'
        elif isinstance(event, Done):
            text = go_string(self._echoes.pop(event.choice, ""))
            yield f'"text":{text},"index":{event.choice},"finish_reason":{go_json(finish_reason(event))}'

    def _whole_choice(self, choice: GatheredReply) -> dict[str, Any]:
        index = choice.done.choice if choice.done is not None else 0
        return {
            "text": self._echoes.get(index, "") + choice.text.content,
            "index": index,
            **reasoning(choice.text.thinking),
            **filled({"tool_calls": [call_object(call) for call in choice.calls]}),
            "finish_reason": finish_reason(choice.done),
            **self._logprobs(choice.text, index),
        }

    def _logprobs(self, delta: Delta, index: int) -> dict[str, Any]:
        """The log probabilities of a piece of text, with the positions of its tokens in the text of the choice."""
        if not delta.logprobs:
            return {}
        position = self._positions.setdefault(index, TextPosition())
        found = {
            "tokens": [token_text(entry.token) for entry in delta.logprobs],
            "token_logprobs": [finite(entry.logprob) for entry in delta.logprobs],
            "top_logprobs": [_by_token(entry) for entry in delta.logprobs],
            "text_offset": [position.before(entry.token) for entry in delta.logprobs],
        }
        return {"logprobs": found}

    def _additions(self, done: Done | None) -> dict[str, Any]:
        if done is None:
            return {}
        times = timings(done.stats) if self._timed and done.stats is not None else {}
        return filled({"timings": times, "warnings": warnings_of(done), "run": done.run})


class ChatCompletionReply(CompletionReply):
    """Writes the replies of ``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, form: ReplyForm, *, timed: bool = False) -> None:
        super().__init__(model, form, timed=timed)
        self._begun: set[int] = set()  # choices that have a role already
        self._sent: set[tuple[int, int]] = set()  # choice and index of the calls that have been sent in pieces
        self._called: set[int] = set()  # choices with a complete call

    def _choices(self, event: Event) -> Iterator[str]:
        match event:
            case Delta(content, thinking, choice=index) if thinking and content:
                yield self._delta(index, reasoning(thinking), self._logprobs(event, index))
                yield self._delta(index, {"content": content})
            case Delta(content, thinking, choice=index):
                yield self._delta(index, {"content": content} | reasoning(thinking), self._logprobs(event, index))
            case ToolCallDelta(number, arguments, name, id, index):
                call: dict[str, Any] = {"index": number, "function": {"arguments": arguments}}
                if (index, number) not in self._sent:
                    call = _call(id, number, name, arguments)
                self._sent.add((index, number))
                yield self._delta(index, {"tool_calls": [call]})
            case ToolCalls(calls, index):
                self._called.add(index)
                if new := [call_object(call) for call in calls if (index, call.index) not in self._sent]:
                    yield self._delta(index, {"content": "", "tool_calls": new})
            case Done(choice=index):
                if index not in self._begun:
                    yield self._delta(index, {"content": ""})
                reason = finish_reason(event, called=index in self._called)
                yield f'"index":{index},"delta":{{}},"finish_reason":{go_json(reason)}'

    def _delta(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> str:
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", **delta}
        more = go_json({"finish_reason": None, **(logprobs or {})})
        return f'"index":{index},"delta":{go_json(delta)},{more[1:-1]}'

    def _whole_choice(self, choice: GatheredReply) -> dict[str, Any]:
        index = choice.done.choice if choice.done is not None else 0
        message = {
            "role": "assistant",
            "content": choice.text.content,
            **reasoning(choice.text.thinking),
            **filled({"tool_calls": [call_object(call) for call in choice.calls]}),
        }
        return {
            "index": index,
            "message": message,
            "finish_reason": finish_reason(choice.done, called=bool(choice.calls)),
            **self._logprobs(choice.text, index),
        }

    def _logprobs(self, delta: Delta, index: int) -> dict[str, Any]:
        return {"logprobs": {"content": [logprob_object(entry) for entry in delta.logprobs]}} if delta.logprobs else {}


class TextPosition:
    """Where the next token is in a text, in characters; a token can be a part of a character."""

    def __init__(self, start: int = 0) -> None:
        self._at, self._decoder = start, codecs.getincrementaldecoder("utf-8")("replace")

    def before(self, token: bytes) -> int:
        """The position of a token, which is then part of the text."""
        at = self._at
        self._at += len(self._decoder.decode(token))
        return at


def reasoning(thinking: str) -> dict[str, str]:
    """Thinking under Ollama's name, and under that of llama-server, vLLM and DeepSeek."""
    return {"reasoning": thinking, "reasoning_content": thinking} if thinking else {}


def call_object(call: ToolCall) -> dict[str, Any]:
    """A complete tool call."""
    return _call(call.id, call.index, call.name, go_json(call.arguments))


def _call(id: str, index: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "index": index, "type": "function", "function": {"name": name, "arguments": arguments}}


def finish_reason(done: Done | None, *, called: bool = False) -> str | None:
    """Why a reply ended. Raises Cancelled for a reply that was cancelled, for which OpenAI has no finish reason."""
    if done is None:
        return None
    if done.reason == "cancelled":
        raise Cancelled
    return "tool_calls" if called and done.reason == "stop" else done.reason


def usage(stats: Stats | None) -> dict[str, Any]:
    stats = stats or Stats()
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.output_tokens,
        "total_tokens": stats.prompt_tokens + stats.output_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": stats.reasoning_tokens},
    }


def finite(logprob: float) -> float:
    """A log probability as JSON can have it; a token that a constraint rules out has the log probability -inf."""
    return max(logprob, _IMPOSSIBLE)


def token_text(token: bytes) -> str:
    """The text of a token in text completions; of a part of a character, its bytes as OpenAI writes them."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _by_token(entry: TokenLogprob) -> dict[str, float]:
    """The most probable tokens, and the chosen one."""
    return {token_text(token): finite(logprob) for token, logprob in (*entry.top, (entry.token, entry.logprob))}


def logprob_object(entry: TokenLogprob) -> dict[str, Any]:
    """A token, its log probability and the most probable tokens."""
    top = [_token(token, logprob) for token, logprob in entry.top]
    return {**_token(entry.token, entry.logprob), "top_logprobs": top}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(token)}


def embeddings(model: str, result: Embeddings, warnings: Sequence[str], *, as_base64: bool) -> list[bytes]:
    """The reply of ``/v1/embeddings``, one piece per vector. Slow for many vectors: call it in a worker thread."""
    written = _base64 if as_base64 else _numbers
    vectors = [
        f'{"," * (at > 0)}{{"object":"embedding","embedding":{written(vector)},"index":{at}}}'.encode()
        for at, vector in enumerate(result.vectors)
    ]
    tokens = result.stats.prompt_tokens if result.stats is not None else 0
    rest = {
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **filled({"warnings": [*warnings, *result.warnings]}),
    }
    return [b'{"object":"list","data":[', *vectors, f"],{go_json(rest)[1:]}\n".encode()]


def _numbers(vector: tuple[float, ...]) -> str:
    return "[" + ",".join(map(repr, vector)) + "]"


def _base64(vector: tuple[float, ...]) -> str:
    return f'"{base64.b64encode(np.array(vector, "<f4").tobytes()).decode()}"'


def models(found: Iterable[Model]) -> bytes:
    """The reply of ``GET /v1/models``."""
    return encode({"object": "list", "data": [_model(model, model.name.short) for model in found]})


def model(found: Model, id: str) -> bytes:
    """The reply of ``GET /v1/models/{id}``: the id is repeated as it was given."""
    return encode(_model(found, id))


def _model(model: Model, id: str) -> dict[str, Any]:
    created = int(model.modified_at)
    return {"id": id, "object": "model", "created": created, "owned_by": model.name.namespace}


def scores(name: str, rankings: Sequence[Ranking], warnings: Sequence[str]) -> bytes:
    """The reply of ``/v1/score``: the scores of all pairs, in their order."""
    found: list[float] = []
    for ranking in rankings:
        found += [score for _, score in sorted(ranking.results)]
    tokens = sum(ranking.prompt_tokens for ranking in rankings)
    return encode(
        {
            "id": new_id("score"),
            "object": "list",
            "created": int(time.time()),
            "model": name,
            "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(found)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
            **filled({"warnings": [*warnings, *(text for ranking in rankings for text in ranking.warnings)]}),
        }
    )
