"""Replies of the Responses API: the events of a chat → a response object and its server-sent events.

``ResponseReply`` holds one response while it is generated. Its output items grow as the events of the chat arrive; each
change also becomes a frame of the stream. A reply that is sent at once is made in the same way, without its frames.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb.api.encode import filled, go_json
from ollama_nb.api.events import Delta, Done, Event, PromptRead, Stats, TokenLogprob, ToolCallDelta, ToolCalls
from ollama_nb.api.messages import ToolCall
from ollama_nb.errors import BadRequest, Busy, ContextOverflow, OllamaError
from ollama_nb.server.dialects.encoder import JSON, SSE, SSE_COMMENT, ErrorFormat
from ollama_nb.server.dialects.openai import replies as openai
from ollama_nb.server.dialects.responses.items import CUSTOM_ARGUMENT, new_item_id
from ollama_nb.server.dialects.responses.requests import OfferedTool, ResponsesRequest

RUNNING = ("queued", "in_progress")  # statuses of a response that has not ended
_OVERFLOW = "context_length_exceeded"  # OpenAI's code, at which agents shorten their conversation
_STATUSES = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}
"""Reasons of Done → statuses."""
_CHARACTERS = re.compile(
    r"""(?: [^"\\] | \\["\\/bfnrt]
          | \\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}
          | \\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2} )*""",
    re.VERBOSE,
)
"""Complete characters of a JSON string."""
_LAST_EVENTS = {"completed": "response.completed", "failed": "response.failed"}
"""Statuses → types of the last event; for all others it is ``response.incomplete``."""


def _with_code(failure: OllamaError) -> OllamaError:
    if isinstance(failure, ContextOverflow):
        return ContextOverflow(failure.message, status=failure.status, code=_OVERFLOW, field=failure.field)
    return failure


def error(failure: OllamaError, _request_id: str = "") -> bytes:
    """The body of an error reply."""
    return openai.error(_with_code(failure))


def _error_fields(failure: OllamaError) -> dict[str, Any]:
    """The event ``error``."""
    body = openai.error_object(_with_code(failure))["error"]
    return {name: body[name] for name in ("code", "message", "param")}


def _error_in_stream(failure: OllamaError, _request_id: str) -> bytes:
    return frame("error", 0, _error_fields(failure)).encode()


ERRORS = ErrorFormat(error, _error_in_stream, empty_body="EOF")


def frame(kind: str, sequence_number: int, fields: Mapping[str, Any]) -> str:
    """One server-sent event."""
    data = {"type": kind, "sequence_number": sequence_number, **fields}
    return f"event: {kind}\ndata: {go_json(data)}\n\n"


def last_frame(response: Mapping[str, Any], sequence_number: int) -> str:
    """The event that ends a stream."""
    kind = _LAST_EVENTS.get(response["status"], "response.incomplete")
    return frame(kind, sequence_number, {"response": response})


def failure_object(failure: OllamaError) -> dict[str, Any]:
    """The field ``error`` of a response that failed: one of OpenAI's codes, and ours as ``reason``."""
    code = "server_error"
    if isinstance(failure, Busy):
        code = "rate_limit_exceeded"
    elif isinstance(failure, BadRequest):
        code = _OVERFLOW if isinstance(failure, ContextOverflow) else "invalid_prompt"
    return {"code": code, "message": failure.message, "reason": failure.code}


class ResponseReply:
    """One response while it is generated.

    Pass every event of the chat to ``add``; after Done, or instead of it ``fail`` or ``cancel``, call ``conclude``.
    ``frames`` has all events of the stream so far, each at the place of its sequence number.
    """

    def __init__(self, request: ResponsesRequest) -> None:
        self.id = request.id
        self.status = "queued" if request.background else "in_progress"
        self.stored, self.streamed = request.store, request.stream
        self.frames: list[str] = []
        self._request = request
        self._output: list[_OutputItem] = []
        self._text: _TextItem | None = None
        self._calls: dict[int, _CallItem] = {}
        self._stats: Stats | None = None
        self._error: Mapping[str, Any] | None = None
        self._failure: OllamaError | None = None
        self._incomplete: str | None = None
        self._completed_at: int | None = None
        self._warnings: list[str] = []
        self._run: Mapping[str, Any] | None = None
        self._unattached: tuple[TokenLogprob, ...] = ()
        self.concluded = False
        self._report("response.created")
        self._report(f"response.{self.status}")

    @property
    def object(self) -> dict[str, Any]:
        """The response as the API returns it."""
        return {
            "id": self.id,
            "object": "response",
            "status": self.status,
            "completed_at": self._completed_at,
            "error": self._error,
            "incomplete_details": {"reason": self._incomplete} if self._incomplete else None,
            **self._request.echo,
            "background": self._request.background,
            "store": self.stored,
            "output": [item.object for item in self._output],
            "usage": None if self._stats is None else _usage(self._stats),
            **filled({"warnings": self._warnings, "run": self._run}),
        }

    def add(self, event: Event) -> None:
        """Process the next event of the chat."""
        if self.status == "queued":
            self.status = "in_progress"
            self._report("response.in_progress")
        match event:
            case Delta():
                self._add_delta(event)
            case ToolCallDelta():
                self._add_call_delta(event)
            case ToolCalls():
                for call in event.calls:
                    self._add_call(call)
            case Done():
                self._add_done(event)
            case PromptRead():
                pass

    def fail(self, failure: OllamaError) -> None:
        """End the response with an error."""
        self._failure = failure
        self._error = failure_object(failure)
        self._end("failed")

    def cancel(self) -> None:
        """End the response where it is, because the client cancelled it or disconnected."""
        self._end("cancelled")

    def not_stored(self, failure: OllamaError) -> None:
        """Report that the response could not be stored."""
        self.stored = False
        self._warnings.append(f"the response was not stored: {failure.message}")

    def conclude(self) -> None:
        """Write the last event of the stream."""
        if self._failure is not None:
            self.write("error", **_error_fields(self._failure))
        self.write(_LAST_EVENTS.get(self.status, "response.incomplete"), response=self.object)
        self.concluded = True

    def write(self, kind: str, **fields: Any) -> None:
        """Write an event of the stream, if there is one."""
        if self.streamed:
            self.frames.append(frame(kind, len(self.frames), fields))

    def _report(self, kind: str) -> None:
        self.write(kind, response=self.object)

    def _add_delta(self, delta: Delta) -> None:
        logprobs = (*self._unattached, *delta.logprobs)
        self._unattached = ()
        if delta.thinking:
            self._text_item(_ReasoningItem).add(delta.thinking, ())
        if delta.content:
            self._text_item(_MessageItem).add(delta.content, logprobs if self._request.chat.logprobs else ())
        if not delta.thinking and not delta.content:
            self._unattached = logprobs  # of a token that is a part of a character: its text comes with the next one

    def _text_item(self, kind: type[_TextItem]) -> _TextItem:
        """The open item of that kind; another one is closed first."""
        if not isinstance(self._text, kind):
            self._close_text("completed")
            self._text = kind(self, self._request)
            self._open(self._text)
        return self._text

    def _add_call_delta(self, delta: ToolCallDelta) -> None:
        call = self._calls.get(delta.index)
        if call is None:
            call = self._open_call(self._tool(delta.name), delta.index, delta.id)
        call.add(delta.arguments)

    def _add_call(self, call: ToolCall) -> None:
        item = self._calls.pop(call.index, None) or self._open_call(self._tool(call.name), None, call.id)
        item.finish(call)

    def _tool(self, name: str) -> OfferedTool:
        return self._request.tools.get(name) or OfferedTool(name)

    def _open_call(self, tool: OfferedTool, index: int | None, call_id: str) -> _CallItem:
        self._close_text("completed")
        item = (_CustomCallItem if tool.custom else _FunctionCallItem)(self, self._request, tool, call_id)
        if index is not None:
            self._calls[index] = item
        self._open(item)
        return item

    def _open(self, item: _OutputItem) -> None:
        item.open(len(self._output))
        self._output.append(item)

    def _close_text(self, status: str) -> None:
        if self._text is not None:
            self._text.close(status)
            self._text = None

    def _add_done(self, done: Done) -> None:
        self._stats = done.stats
        self._warnings += done.warnings
        self._run = done.run
        if done.reason == "length":
            self._incomplete = "max_output_tokens"
        self._end(_STATUSES.get(done.reason, "completed"))

    def _end(self, status: str) -> None:
        self._close_text("completed" if status == "completed" else "incomplete")
        for call in self._calls.values():  # text that began like a call and is not a valid one
            call.close("incomplete")
        self._calls.clear()
        self.status = status
        if status == "completed":
            self._completed_at = int(time.time())


class _OutputItem:
    """One item of the output. Its ``object`` grows until it is closed."""

    kind = ""

    def __init__(self, reply: ResponseReply, request: ResponsesRequest) -> None:
        self.object: dict[str, Any] = {}
        self._reply, self._request = reply, request
        self._place: dict[str, Any] = {}

    def open(self, index: int) -> None:
        item_id = new_item_id(self.kind, self._request.id, "o", index)
        self.object = {"id": item_id, "type": self.kind, **self._first()}
        self._place = {"item_id": item_id, "output_index": index}
        self._reply.write("response.output_item.added", output_index=index, item=self.object)

    def close(self, status: str) -> None:
        self.object["status"] = status
        self._reply.write("response.output_item.done", output_index=self._place["output_index"], item=self.object)

    def _first(self) -> dict[str, Any]:
        """The fields of the item when it is opened."""
        raise NotImplementedError

    def _write(self, kind: str, **fields: Any) -> None:
        self._reply.write(kind, **self._place, **fields)


class _TextItem(_OutputItem):
    """An item whose text arrives in pieces."""

    def __init__(self, reply: ResponseReply, request: ResponsesRequest) -> None:
        super().__init__(reply, request)
        self._pieces: list[str] = []

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        raise NotImplementedError


class _MessageItem(_TextItem):
    kind = "message"

    def __init__(self, reply: ResponseReply, request: ResponsesRequest) -> None:
        super().__init__(reply, request)
        self._logprobs: list[dict[str, Any]] = []

    def open(self, index: int) -> None:
        super().open(index)
        self._place["content_index"] = 0
        self._write("response.content_part.added", part=self._part(""))

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        self._pieces.append(text)
        described = [openai.logprob_object(entry) for entry in logprobs]
        self._logprobs += described
        self._write("response.output_text.delta", delta=text, logprobs=described)

    def close(self, status: str) -> None:
        text = "".join(self._pieces)
        part = self._part(text)
        self._write("response.output_text.done", text=text, logprobs=self._logprobs)
        self._write("response.content_part.done", part=part)
        self.object["content"] = [part]
        super().close(status)

    def _first(self) -> dict[str, Any]:
        return {"status": "in_progress", "role": "assistant", "content": []}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}


class _ReasoningItem(_TextItem):
    kind = "reasoning"

    def open(self, index: int) -> None:
        super().open(index)
        self._place["summary_index"] = 0
        self._write("response.reasoning_summary_part.added", part=_summary(""))

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        self._pieces.append(text)
        self._write("response.reasoning_summary_text.delta", delta=text)

    def close(self, status: str) -> None:
        text = "".join(self._pieces)
        self._write("response.reasoning_summary_text.done", text=text)
        self._write("response.reasoning_summary_part.done", part=_summary(text))
        self.object |= {"summary": [_summary(text)], "content": [{"type": "reasoning_text", "text": text}]}
        if self._request.encrypted:
            self.object["encrypted_content"] = text  # as in Ollama: the text itself
        super().close(status)

    def _first(self) -> dict[str, Any]:
        return {"status": "in_progress", "summary": []}


class _CallItem(_OutputItem):
    """A call of a tool."""

    def __init__(self, reply: ResponseReply, request: ResponsesRequest, tool: OfferedTool, call_id: str) -> None:
        super().__init__(reply, request)
        self._tool, self._call_id = tool, call_id or f"call_{secrets.token_hex(4)}"

    def add(self, arguments: str) -> None:
        """The next piece of the arguments as JSON text."""

    def finish(self, call: ToolCall) -> None:
        """The call is complete and valid."""
        raise NotImplementedError

    def _first(self) -> dict[str, Any]:
        namespace = {"namespace": self._tool.namespace} if self._tool.namespace else {}
        return {"status": "in_progress", "call_id": self._call_id, "name": self._tool.name, **namespace}


class _FunctionCallItem(_CallItem):
    kind = "function_call"

    def add(self, arguments: str) -> None:
        if arguments:
            self.object["arguments"] += arguments
            self._write("response.function_call_arguments.delta", delta=arguments)

    def finish(self, call: ToolCall) -> None:
        if not self.object["arguments"]:
            self.add(json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":")))
        self.close("completed")

    def close(self, status: str) -> None:
        if status == "completed":
            done = {"name": self.object["name"], "arguments": self.object["arguments"]}
            self._write("response.function_call_arguments.done", **done)
        super().close(status)

    def _first(self) -> dict[str, Any]:
        return {**super()._first(), "arguments": ""}


class _CustomCallItem(_CallItem):
    """A call whose only argument, a text, is the input of the tool."""

    kind = "custom_tool_call"

    def __init__(self, reply: ResponseReply, request: ResponsesRequest, tool: OfferedTool, call_id: str) -> None:
        super().__init__(reply, request, tool, call_id)
        self._text = StringReader(CUSTOM_ARGUMENT)

    def add(self, arguments: str) -> None:
        self._add_input(self._text.read(arguments))

    def finish(self, call: ToolCall) -> None:
        value = call.arguments.get(CUSTOM_ARGUMENT, "")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self._add_input(text.removeprefix(self.object["input"]))
        self.object["input"] = text
        self._write("response.custom_tool_call_input.done", input=text)
        self.close("completed")

    def _add_input(self, text: str) -> None:
        if text:
            self.object["input"] += text
            self._write("response.custom_tool_call_input.delta", delta=text)

    def _first(self) -> dict[str, Any]:
        return {**super()._first(), "input": ""}


class StringReader:
    """Reads the text of a string that is the first member, ``name``, of a JSON object that arrives in pieces.

    A text that it cannot follow, such as one with half a surrogate pair, ends early.
    """

    def __init__(self, name: str) -> None:
        self._start = re.compile(rf'\s*\{{\s*"{re.escape(name)}"\s*:\s*"')
        self._begun = False
        self._pending = ""

    def read(self, piece: str) -> str:
        """The characters that this piece completes."""
        self._pending += piece
        if not self._begun:
            start = self._start.match(self._pending)
            if start is None:
                return ""
            self._begun, self._pending = True, self._pending[start.end() :]
        whole = _CHARACTERS.match(self._pending)
        assert whole is not None  # it matches an empty text too
        self._pending = self._pending[whole.end() :]
        text: str = json.loads(f'"{whole[0]}"', strict=False)
        return text


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _usage(stats: Stats) -> dict[str, Any]:
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": stats.output_tokens,
        "output_tokens_details": {"reasoning_tokens": stats.reasoning_tokens},
        "total_tokens": stats.prompt_tokens + stats.output_tokens,
    }


class ResponseEncoder:
    """Sends the reply of a request that waits for it."""

    whole_type = JSON
    stream_type = SSE
    keep_alive = SSE_COMMENT

    def __init__(self, reply: ResponseReply) -> None:
        self.reply, self._sent = reply, 0
        self.begun = False
        """Whether a stream has begun."""

    def is_whole(self, event: Event) -> bool:
        return False

    def start(self) -> bytes:
        self.begun = True
        return self._take()

    def chunk(self, event: Event) -> bytes:
        return self._take()

    def end(self) -> bytes:
        return b""

    def fail(self, error: OllamaError) -> bytes:
        if not self.reply.concluded:
            self.reply.fail(error)
            self.reply.conclude()
        return self._take()

    def whole(self, events: Sequence[Event]) -> bytes:
        return openai.encode(self.reply.object)

    def _take(self) -> bytes:
        """The frames since the last call."""
        frames = self.reply.frames[self._sent :]
        self._sent += len(frames)
        return "".join(frames).encode()
