"""Replies of llama-server's API: events and models → JSON and server-sent events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb import __version__
from ollama_nb.api.encode import filled, go_json
from ollama_nb.api.events import Delta, Done, Event, Stats, TokenLogprob
from ollama_nb.api.models import Running, Shown
from ollama_nb.api.options import Options
from ollama_nb.errors import OllamaError
from ollama_nb.server.dialects.encoder import SSE, SSE_COMMENT, ErrorFormat, GatheredReply, timings, warnings_of
from ollama_nb.server.dialects.llamacpp.requests import InfillBody

JSON = "application/json; charset=utf-8"
BUILD_INFO = f"ollama-nb {__version__}"
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    503: "unavailable_error",
}
_SETTINGS = (
    "seed", "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "stop",
)  # fmt: skip


def encode(value: Any) -> bytes:
    return go_json(value).encode()


def _frame(value: Any) -> bytes:
    """One JSON value as a server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def _error(failure: OllamaError) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(failure.status, "server_error")
    return {"error": {"code": failure.code, "message": failure.message, "type": kind}}


ERRORS = ErrorFormat(
    lambda failure, _id: encode(_error(failure)), lambda failure, _id: _frame(_error(failure)), content_type=JSON
)


class InfillReply:
    """Writes the reply of ``/infill``: pieces of text, and at the end the figures and the settings in force."""

    whole_type, stream_type, keep_alive = JSON, SSE, SSE_COMMENT

    def __init__(self, body: InfillBody) -> None:
        self._body = body
        self._model = body.request.model
        self._stops: Sequence[str] = body.request.options.get("stop", ())
        self._has_line_break = False

    def is_whole(self, event: Event) -> bool:
        return False

    def start(self) -> bytes:
        return b""

    def chunk(self, event: Event) -> bytes:
        match event:
            case Delta():
                self._has_line_break |= "\n" in event.content
                found = {"index": 0, "content": event.content, "tokens": [], "stop": False}
                return _frame(self._chosen(found | _probabilities(event.logprobs)))
            case Done():
                return _frame(self._chosen(self._end("", event)))
        return b""

    def end(self) -> bytes:
        return b""

    def fail(self, failure: OllamaError) -> bytes:
        return _frame(_error(failure))

    def whole(self, events: Sequence[Event]) -> bytes:
        reply = GatheredReply.of(events)
        self._has_line_break = "\n" in reply.text.content
        end = self._end(reply.text.content, reply.done or Done("stop"))
        return encode(self._chosen(end | _probabilities(reply.text.logprobs)))

    def _end(self, content: str, done: Done) -> dict[str, Any]:
        stats = done.stats or Stats()
        word = done.stop_sequence if done.stop_sequence in self._stops else ""
        return {
            "index": 0,
            "content": content,
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": stats.output_tokens,
            "tokens_evaluated": stats.prompt_tokens,
            "tokens_cached": stats.cached_tokens,
            "generation_settings": self._settings(done.run or {}),
            "has_new_line": self._has_line_break,
            "truncated": stats.prompt_tokens_dropped > 0,
            "stop_type": "word" if word else "eos" if done.reason == "stop" else "limit",
            "stopping_word": word,
            "timings": timings(stats),
            **filled({"warnings": warnings_of(done)}),
        }

    def _settings(self, run: Mapping[str, Any]) -> dict[str, Any]:
        return settings(run.get("options", {}), stream=self._body.stream, n_probs=self._body.request.top_logprobs)

    def _chosen(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The fields that the client asks for; a path with slashes leads into objects and is also the new name."""
        if not self._body.fields:
            return reply
        found = {path: _at(reply, path.split("/")) for path in self._body.fields}
        return {path: value for path, value in found.items() if value is not None}


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _probabilities(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The probabilities of the tokens, with the most probable ones at their places."""
    if not logprobs:
        return {}
    found = [
        {**_token(entry.token, entry.logprob), "top_logprobs": [_token(token, value) for token, value in entry.top]}
        for entry in logprobs
    ]
    return {"completion_probabilities": found}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "bytes": list(token), "logprob": max(logprob, -1e9)}


def settings(options: Mapping[str, Any], *, stream: bool = False, n_probs: int = 0) -> dict[str, Any]:
    """The options in force under llama-server's names."""
    limit = options.get("num_predict", -1)
    found = {name: options[name] for name in _SETTINGS if name in options}
    more = {"n_ctx": options["num_ctx"]} if "num_ctx" in options else {}
    kept = options.get("num_keep", 0)
    return {
        **more,
        "n_predict": limit,
        "max_tokens": limit,
        **found,
        "n_keep": kept,
        "stream": stream,
        "n_probs": n_probs,
    }


def prompt(text: str) -> bytes:
    """The reply of ``/apply-template``."""
    return encode({"prompt": text})


def properties(shown: Shown | None, loaded: Running | None) -> bytes:
    """The reply of ``/props``: a model, and how it is loaded. Without a model, as llama-server without one."""
    options = Options.layered(shown.model.params if shown else {})[0]
    params = settings({name: getattr(options, name) for name in (*_SETTINGS, "num_predict", "num_keep")}, stream=True)
    capabilities = shown.capabilities if shown else ()
    return encode(
        {
            "default_generation_settings": {
                "n_ctx": loaded.context_length if loaded else _context(shown),
                "params": params,
            },
            "total_slots": loaded.slots if loaded else 1,
            "model_alias": shown.model.name.short if shown else "",
            "model_path": str(shown.model.weights or "") if shown else "",
            "chat_template": _chat_template(shown),
            "modalities": {"vision": "vision" in capabilities, "audio": "audio" in capabilities},
            "build_info": BUILD_INFO,
            "is_sleeping": loaded is None,
        }
    )


def _context(shown: Shown | None) -> int:
    """The longest context of a model that is not loaded."""
    return int(shown.gguf.arch("context_length", 0)) if shown and shown.gguf else 0


def _chat_template(shown: Shown | None) -> str:
    """The Jinja template in the model file, which is what clients of llama-server can render; else the Go template."""
    if shown is None:
        return ""
    found = shown.gguf.metadata.get("tokenizer.chat_template") if shown.gguf else None
    return found if isinstance(found, str) else shown.template
