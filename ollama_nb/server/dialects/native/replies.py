"""Replies of the native API: events and models → JSON, byte for byte as Ollama writes it.

Keys are in Ollama's order, and are left out when empty where Ollama leaves them out. Our additional keys come last.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ollama_nb.api.encode import (
    call_object,
    escaped,
    filled,
    float32,
    go_json,
    go_string,
    message_object,
    shortest,
)
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
from ollama_nb.api.messages import Message
from ollama_nb.api.models import GGUF, Listed, Model, Running, Shown
from ollama_nb.api.requests import RerankRequest
from ollama_nb.errors import OllamaError
from ollama_nb.server.dialects.encoder import ErrorFormat, GatheredReply
from ollama_nb.server.dialects.gojson import local, nanoseconds, utc_now
from ollama_nb.service.batches import BatchJob
from ollama_nb.service.requests import QueueEntry

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
WHOLE_PROGRESS = "application/json"  # Ollama's content type for pull and create with "stream": false
_HIDDEN = frozenset({"general.name", "tokenizer.chat_template"})  # GGUF keys that Ollama does not show
_LONG = 64  # items; longer arrays are written by the C encoder


def encode(value: Any) -> bytes:
    return go_json(value).encode("utf-8")


def error(failure: OllamaError) -> bytes:
    """The body of an error reply."""
    return encode({"error": failure.message, "code": failure.code})


def error_line(failure: OllamaError) -> bytes:
    """The last line of a stream that fails."""
    return error(failure) + b"\n"


ERRORS = ErrorFormat(lambda failure, _id: error(failure), lambda failure, _id: error_line(failure), JSON)


class NativeReply:
    """Writes the objects of one reply: ``chunk`` the line of one event, ``whole`` one object of all events.

    The replies to load, unload and render requests are one object also where a stream was requested.

    With ``n`` choices, the objects of a stream have the ``index`` of their choice, and only the very last one is
    ``done``; the ends of the others are the objects that have a ``done_reason``. One object of all events is that of
    the first choice and has a list of all ``choices``.
    """

    whole_type = JSON
    stream_type = NDJSON
    keep_alive = b""

    def __init__(self, model: str, request_id: str = "", *, n: int = 1) -> None:
        self._model, self._id, self._n = model, request_id, n
        self._head = f'{{"model":{go_string(model)},"created_at":"'

    def is_whole(self, event: Event) -> bool:
        return isinstance(event, Rendered) or (isinstance(event, Done) and event.reason in ("load", "unload"))

    def start(self) -> bytes:
        return b""

    def chunk(self, event: Event) -> bytes:
        if isinstance(event, Delta) and not event.logprobs and not event.tool_error:  # the common case
            index = f'"index":{event.choice},' if self._n > 1 else ""
            return f'{self._head}{utc_now()}",{index}{self._text(event)},"done":false}}\n'.encode()
        if self._n == 1 or not isinstance(event, Delta | ToolCalls | Done) or self.is_whole(event):
            return self.whole([event]) + b"\n"
        body = {"index": event.choice, **self._body(GatheredReply.of([event]))}
        if isinstance(event, Done) and event.stats is None:
            body["done"] = False
        return self._object(body) + b"\n"

    def end(self) -> bytes:
        return b""

    def fail(self, failure: OllamaError) -> bytes:
        return error_line(failure)

    def whole(self, events: Sequence[Event]) -> bytes:
        if self._n == 1 or not isinstance(last := events[-1], Done) or self.is_whole(last):
            return self._object(self._body(GatheredReply.of(events)))
        choices = GatheredReply.by_choice(events)
        done = choices[0].done or last
        first = replace(choices[0], done=replace(done, stats=last.stats, warnings=last.warnings, run=last.run))
        listed = [{"index": index, **self._choice(choice)} for index, choice in enumerate(choices)]
        return self._object({**self._body(first), "choices": listed})

    def _object(self, body: Mapping[str, Any]) -> bytes:
        return encode({"model": self._model, "created_at": utc_now(), **body})

    def _choice(self, gathered: GatheredReply) -> dict[str, Any]:
        """The entry of one choice in the list of all."""
        done = gathered.done
        return {
            **self._answer(gathered),
            "done_reason": done.reason if done else "",
            **_logprobs(gathered.text),
            **filled({"stop_sequence": done.stop_sequence if done else ""}),
        }

    def _answer(self, gathered: GatheredReply) -> dict[str, Any]:
        """What the model wrote."""
        raise NotImplementedError

    def _text(self, delta: Delta) -> str:
        raise NotImplementedError

    def _body(self, gathered: GatheredReply) -> dict[str, Any]:
        raise NotImplementedError

    def _ours(self, gathered: GatheredReply) -> dict[str, Any]:
        """Our additional keys. Load and unload replies have warnings only."""
        found = filled({"tool_error": gathered.text.tool_error})
        if gathered.done is None:
            return found
        if gathered.done.stats is not None:
            found |= _additions(gathered.done.stats) | filled({"request_id": self._id})
        done = gathered.done
        return found | filled({"stop_sequence": done.stop_sequence, "warnings": done.warnings, "run": done.run})


class ChatReply(NativeReply):
    def _text(self, delta: Delta) -> str:
        thought = f',"thinking":{go_string(delta.thinking)}' if delta.thinking else ""
        return f'"message":{{"role":"assistant","content":{go_string(delta.content)}{thought}}}'

    def _answer(self, gathered: GatheredReply) -> dict[str, Any]:
        answer = Message("assistant", gathered.text.content, gathered.text.thinking, tool_calls=gathered.calls)
        return {"message": message_object(answer)}

    def _body(self, gathered: GatheredReply) -> dict[str, Any]:
        return {
            **self._answer(gathered),
            "done": gathered.done is not None,
            **filled({"done_reason": gathered.done.reason if gathered.done else ""}),
            **_debug(gathered.rendered),
            **_logprobs(gathered.text),
            **_metrics(gathered.done),
            **self._ours(gathered),
        }


class GenerateReply(NativeReply):
    def _text(self, delta: Delta) -> str:
        thought = f',"thinking":{go_string(delta.thinking)}' if delta.thinking else ""
        return f'"response":{go_string(delta.content)}{thought}'

    def _answer(self, gathered: GatheredReply) -> dict[str, Any]:
        done = gathered.done
        return {
            "response": gathered.text.content,
            **filled({"thinking": gathered.text.thinking, "context": done.context if done else None}),
            **filled({"tool_calls": [call_object(call) for call in gathered.calls]}),
        }

    def _body(self, gathered: GatheredReply) -> dict[str, Any]:
        return {
            "response": gathered.text.content,
            **filled({"thinking": gathered.text.thinking}),
            "done": gathered.done is not None,
            **(filled({"done_reason": done.reason, "context": done.context}) if (done := gathered.done) else {}),
            **_metrics(gathered.done),
            **filled({"tool_calls": [call_object(call) for call in gathered.calls]}),
            **_debug(gathered.rendered),
            **_logprobs(gathered.text),
            **self._ours(gathered),
        }


def progress(line: Progress) -> bytes:
    more = filled({"digest": line.digest, "total": line.total, "completed": line.completed})
    more |= filled({"warnings": line.warnings})
    return encode({"status": line.status, **more})


def embed(model: str, result: Embeddings) -> list[bytes]:
    """The reply of ``/api/embed``, one piece per vector. Slow for many vectors: call it in a worker thread.

    Joining the pieces would stop the other threads for as long as it takes to copy them.
    """
    stats = result.stats
    metrics = {
        "total_duration": nanoseconds(stats.total_seconds) if stats else 0,
        "load_duration": nanoseconds(stats.load_seconds) if stats else 0,
        "prompt_eval_count": stats.prompt_tokens if stats else 0,
    }
    end = "".join(f',"{key}":{value}' for key, value in filled(metrics).items())
    if result.truncated:
        end += f',"truncated":{{"inputs":{list(result.truncated)}}},"warnings":{encode(result.warnings).decode()}'
    vectors = [b"," * (at > 0) + _vector(vector) for at, vector in enumerate(result.vectors)]
    return [f'{{"model":{go_string(model)},"embeddings":['.encode(), *vectors, f"]{end}}}".encode()]


def embeddings(result: Embeddings) -> bytes:
    """The reply of ``/api/embeddings``."""
    return b'{"embedding":' + (_vector(result.vectors[0]) if result.vectors else b"[]") + b"}"


def ranking(request: RerankRequest, ranking: Ranking) -> bytes:
    """The reply of ``/api/rerank``; each result holds its document's text if the request asks for it."""

    def result(index: int, score: float) -> dict[str, Any]:
        document = {"document": request.documents[index]} if request.return_documents else {}
        return {"index": index, "relevance_score": score, **document}

    return encode(
        {
            "model": request.model,
            "results": [result(index, score) for index, score in ranking.results],
            "method": ranking.method,
            "usage": {"prompt_tokens": ranking.prompt_tokens, "total_tokens": ranking.prompt_tokens},
            **filled({"truncated": {"documents": [*ranking.truncated]} if ranking.truncated else None}),
            **filled({"warnings": ranking.warnings}),
        }
    )


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
        **filled({"reasoning_tokens": stats.reasoning_tokens}),
        **(drafts if stats.drafted_tokens else {}),
    }


def _logprobs(delta: Delta) -> dict[str, Any]:
    return filled({"logprobs": [_logprob(entry) for entry in delta.logprobs]})


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [_token(token, value) for token, value in entry.top]
    return {**_token(entry.token, entry.logprob), **filled({"top_logprobs": top})}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    """A token with its log probability. ``bytes`` can be a part of a character."""
    # JSON has no infinities; a token that the constraint rules out has the logprob -inf.
    value = max(logprob, -1e9)
    return {"token": token.decode("utf-8", "replace"), "logprob": value, **filled({"bytes": list(token)})}


def _debug(rendered: Rendered | None) -> dict[str, Any]:
    if rendered is None:
        return {}
    return {"_debug_info": {"rendered_template": rendered.template, **filled({"image_count": rendered.image_count})}}


def tags(models: Iterable[Listed]) -> bytes:
    """The body of ``/api/tags``."""
    return encode({"models": [_listed(entry) for entry in models]})


def ps(models: Iterable[Running]) -> bytes:
    """The body of ``/api/ps``: latest expiry first."""
    ordered = sorted(models, key=lambda entry: entry.expires_at, reverse=True)
    return encode({"models": [_running(entry) for entry in ordered]})


def show(shown: Shown, basename: str = "") -> bytes:
    """The body of ``/api/show``. ``basename`` replaces ``general.basename`` of the file."""
    model, config = shown.model, shown.model.config
    parts: dict[str, str] = {}

    def put(key: str, value: Any, *, always: bool = False) -> None:
        if value or always:
            parts[key] = value if key in ("model_info", "projector_info") else go_json(value)

    put("license", shown.license)
    put("modelfile", shown.modelfile)
    put("parameters", shown.parameters)
    put("template", shown.template)
    put("system", shown.system)
    put("details", _details(model, shown.parent), always=True)
    put("messages", [message_object(Message(m.role, m.content)) for m in model.messages])
    put("remote_model", config.remote_model)
    put("remote_host", config.remote_host)
    put("model_info", _metadata(shown.gguf, basename), always=True)
    put("projector_info", _metadata(shown.projector) if shown.projector else "")
    put("tensors", _tensors(shown.gguf))
    put("capabilities", shown.capabilities)
    put("modified_at", local(model.modified_at), always=True)
    put("requires", config.requires)
    return ("{" + ",".join(f'"{key}":{value}' for key, value in parts.items()) + "}").encode()


def queue(entries: Iterable[QueueEntry], unfinished: Sequence[BatchJob] = ()) -> bytes:
    """The body of ``/api/queue``: waiting and running requests and unfinished batches, without any text of prompts."""

    def described(entry: QueueEntry) -> dict[str, Any]:
        found = {**dataclasses.asdict(entry), "created_at": local(entry.created_at)}
        if not entry.drafted_tokens:
            del found["drafted_tokens"], found["accepted_tokens"]
        return found | ({"priority": "low"} if found.pop("background") else {})

    batches = {"batches": [_batch(job) for job in unfinished]} if unfinished else {}
    return encode({"requests": [described(entry) for entry in entries], **batches})


def _batch(job: BatchJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "model": ", ".join(job.models),
        "endpoint": job.endpoint,
        "status": job.status,
        "total": job.total,
        "completed": job.completed,
        "failed": job.failed,
        "created_at": local(job.created_at),
    }


def _listed(entry: Listed) -> dict[str, Any]:
    model = entry.model
    details = _details(model, entry.parent)
    details |= filled({"context_length": entry.context_length, "embedding_length": entry.embedding_length})
    return {
        "name": model.name.short,
        "model": model.name.short,
        **filled({"remote_model": model.config.remote_model, "remote_host": model.config.remote_host}),
        "modified_at": local(model.modified_at),
        "size": model.size,
        "digest": model.digest,
        "details": details,
        **filled({"capabilities": entry.capabilities}),
    }


def _running(entry: Running) -> dict[str, Any]:
    return {
        "name": entry.model.name.short,
        "model": entry.model.name.short,
        "size": entry.size,
        "digest": entry.model.digest,
        "details": _details(entry.model, ""),
        "expires_at": local(entry.expires_at),
        "size_vram": entry.size_vram,
        "context_length": entry.context_length,
        **filled({"slots": entry.slots}),
    }


def _details(model: Model, parent: str) -> dict[str, Any]:
    config = model.config
    return {
        "parent_model": parent,
        "format": config.model_format,
        "family": config.model_family,
        "families": config.model_families,
        "parameter_size": config.model_type,
        "quantization_level": config.file_type,
    }


def _metadata(gguf: GGUF | None, basename: str = "") -> str:
    """GGUF metadata as a JSON object with sorted keys and the number of parameters."""
    if gguf is None:
        return "{}"
    values = {key: value for key, value in gguf.metadata.items() if key not in _HIDDEN}
    values["general.parameter_count"] = gguf.parameter_count
    if basename:
        values["general.basename"] = basename
    return "{" + ",".join(f"{go_string(key)}:{_metadata_value(values[key])}" for key in sorted(values)) + "}"


def _metadata_value(value: Any) -> str:
    match value:
        case float():
            return _float32(value)
        case list() | tuple():
            return _array(value)
        case _:
            return go_json(value)


def _array(items: list[Any] | tuple[Any, ...]) -> str:
    """An array of metadata. Vocabularies have hundreds of thousands of items: the C encoder writes them."""
    if any(isinstance(item, float) for item in items[:1]):
        return "[" + ",".join(map(_float32, items)) + "]"
    if len(items) < _LONG:
        return go_json(items)
    return escaped(json.dumps(items, ensure_ascii=False, separators=(",", ":")))


def _float32(value: float) -> str:
    """The shortest text of a float32: ``0.00001``, not ``0.000009999999747378752``."""
    if not math.isfinite(value):
        return "null"
    return go_json(shortest(value) if float32(value) == value else value)


def _tensors(gguf: GGUF | None) -> list[Mapping[str, Any]]:
    return [{"name": t.name, "type": t.type, "shape": t.shape} for t in gguf.tensors] if gguf else []
