"""OpenAI's files and batches: the routes, their JSON, and the lines of result files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import quote

from tornado.iostream import StreamClosedError

from ollama_nb.errors import BadRequest, InvalidDuration, OllamaError
from ollama_nb.server.dialects.encoder import JSON
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.openai.answers import STRUCTS, answer
from ollama_nb.server.dialects.openai.replies import ERRORS, encode, error
from ollama_nb.server.handler import OllamaHandler, Route
from ollama_nb.server.keys import INFER, READ
from ollama_nb.server.limits import MIB
from ollama_nb.server.multipart import FormBody
from ollama_nb.server.streams import BodySink
from ollama_nb.service import batches
from ollama_nb.service.batch_store import RETENTION, BatchStore, FileUpload, StoredFile
from ollama_nb.service.batches import BatchJob, BatchLine, BatchProblem, LineResult
from ollama_nb.service.requests import finish_in_thread
from ollama_nb.service.service import Service
from ollama_nb.settings import parse_duration

MAX_UPLOAD = 200 * MIB  # bytes of one file
PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
_MIN_LIFETIME = 3600.0  # seconds; with RETENTION as the longest, OpenAI's limits of ``expires_after``
_PIECE = MIB  # bytes of a file that are read at a time
_TIMES = (
    "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled",
)  # fmt: skip
_UNFINISHED = {
    batches.EXPIRED: "this request did not run before the completion window of the batch had passed",
    batches.CANCELLED: "this request did not run before the batch was cancelled",
}

T = TypeVar("T", StoredFile, BatchJob)


# Files


def open_upload(call: OllamaHandler) -> BodySink:
    return FormBody(call.request.headers.get("Content-Type", ""), _store(call).upload, max_bytes=MAX_UPLOAD)


async def upload_file(call: OllamaHandler) -> None:
    form = cast(FormBody[FileUpload], call.sink)
    purpose, lifetime = _read_purpose(form.fields), _read_lifetime(form.fields)
    upload = await form.finish()
    file = await finish_in_thread(upload.commit, form.filename or "file", purpose, lifetime=lifetime)
    await call.send(encode(file_object(file)), JSON)


async def list_files(call: OllamaHandler) -> None:
    purpose, order = call.get_query_argument("purpose", ""), call.get_query_argument("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest('`order` must be "asc" or "desc"', field="order")
    found = [file for file in await asyncio.to_thread(_store(call).files) if not purpose or file.purpose == purpose]
    await _send_page(call, found if order == "asc" else found[::-1], file_object, default=10_000, most=10_000)


async def get_file(call: OllamaHandler) -> None:
    await call.send(encode(file_object(await asyncio.to_thread(_store(call).file, call.path_args[0]))), JSON)


async def get_content(call: OllamaHandler) -> None:
    """Send the bytes of a file. A file that cannot be read to its end closes the connection."""
    file = await asyncio.to_thread(_store(call).file, call.path_args[0])
    call.set_header("Content-Length", str(file.size))
    call.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}")
    with await asyncio.to_thread(_store(call).open_data, file) as data:
        call.start_stream("application/octet-stream", lambda _error: b"")
        left = file.size
        while left:
            piece = await asyncio.to_thread(data.read, min(_PIECE, left))
            if not piece:
                raise StreamClosedError
            left -= len(piece)
            await call.send_piece(piece)
    await call.end()


async def delete_file(call: OllamaHandler) -> None:
    id = call.path_args[0]
    await finish_in_thread(_store(call).delete_file, id)
    await call.send(encode({"id": id, "object": "file", "deleted": True}), JSON)


def file_object(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _read_purpose(fields: Mapping[str, str]) -> str:
    purpose = fields.get("purpose", "")
    if purpose not in PURPOSES:
        raise BadRequest(f"`purpose` must be one of {', '.join(PURPOSES)}", field="purpose")
    return purpose


def _read_lifetime(fields: Mapping[str, str]) -> float:
    """Seconds until the file expires."""
    text = fields.get("expires_after[seconds]", "")
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise BadRequest('`expires_after[anchor]` must be "created_at"', field="expires_after.anchor")
    if not text:
        return RETENTION
    seconds = int(text) if text.isascii() and text.isdecimal() else 0
    if not _MIN_LIFETIME <= seconds <= RETENTION:
        message = f"`expires_after[seconds]` must be between {_MIN_LIFETIME:.0f} and {RETENTION:.0f}"
        raise BadRequest(message, field="expires_after.seconds")
    return seconds


# Batches


async def create_batch(call: OllamaHandler) -> None:
    body = await call.fields("BatchRequest")
    endpoint, metadata = _read_endpoint(body), body.text_map("metadata")
    window, seconds = _read_window(body)
    input_file = body.text("input_file_id")
    if not input_file:
        raise BadRequest("`input_file_id` is missing: upload a file first", field="input_file_id")
    ignored = body.ignored()
    if ignored and call.wants("Strict"):
        raise BadRequest(ignored[0])
    job = await call.service.batches.create(input_file, endpoint, window, seconds, metadata)
    await call.send(encode({**batch_object(job), **({"warnings": ignored} if ignored else {})}), JSON)


async def list_batches(call: OllamaHandler) -> None:
    found = await asyncio.to_thread(_store(call).batches)
    await _send_page(call, found[::-1], batch_object, default=20, most=100)


async def get_batch(call: OllamaHandler) -> None:
    await call.send(encode(batch_object(await asyncio.to_thread(_store(call).batch, call.path_args[0]))), JSON)


async def cancel_batch(call: OllamaHandler) -> None:
    await call.send(encode(batch_object(await call.service.batches.cancel(call.path_args[0]))), JSON)


def batch_object(job: BatchJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": ", ".join(job.models) or None,
        "errors": {"object": "list", "data": [_problem(one) for one in job.problems]} if job.problems else None,
        "input_file_id": job.input_file,
        "completion_window": job.window,
        "status": job.status,
        "output_file_id": job.output_file or None,
        "error_file_id": job.error_file or None,
        "created_at": int(job.created_at),
        "expires_at": int(job.expires_at),
        **{f"{status}_at": int(job.times[status]) if status in job.times else None for status in _TIMES},
        "request_counts": {"total": job.total, "completed": job.completed, "failed": job.failed},
        "metadata": dict(job.metadata) or None,
    }


def _problem(problem: BatchProblem) -> dict[str, Any]:
    return {
        "code": problem.code,
        "message": problem.message,
        "param": problem.field or None,
        "line": problem.line or None,
    }


def _read_endpoint(body: Fields) -> str:
    endpoint = body.text("endpoint")
    if endpoint not in STRUCTS:
        raise BadRequest(f"`endpoint` must be one of {', '.join(STRUCTS)}", field="endpoint")
    return endpoint


def _read_window(body: Fields) -> tuple[str, float]:
    """The completion window as text and in seconds. OpenAI accepts ``24h`` only."""
    text = body.text("completion_window") or "24h"
    try:
        seconds = parse_duration(text)
    except InvalidDuration:
        seconds = 0.0
    if not 0 < seconds <= batches.MAX_WINDOW:
        message = f"`completion_window` must be a duration such as 24h, at most {batches.MAX_WINDOW / 3600:.0f}h"
        raise BadRequest(message, field="completion_window")
    return text, seconds


# Lists


async def _send_page(
    call: OllamaHandler, found: Sequence[T], describe: Callable[[T], dict[str, Any]], *, default: int, most: int
) -> None:
    """Send the part of a list that the query arguments ``after`` and ``limit`` select."""
    text, after = call.get_query_argument("limit", ""), call.get_query_argument("after", "")
    limit = (int(text) if text.isascii() and text.isdecimal() else 0) if text else default
    if not 1 <= limit <= most:
        raise BadRequest(f"`limit` must be between 1 and {most}", field="limit")
    ids = [one.id for one in found]
    if after and after not in ids:
        raise BadRequest(f'`after`: there is no "{after[:64]}" in the list', field="after")
    start = ids.index(after) + 1 if after else 0
    page = [describe(one) for one in found[start : start + limit]]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    more = start + limit < len(found)
    shown = {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more}
    await call.send(await call.state.in_worker(encode, shown), JSON)


# The work


class OpenAIBatches:
    """What the batches of a server do: they run requests of OpenAI's routes and write results in OpenAI's format."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def run(self, endpoint: str, body: bytes, request_id: str) -> bytes:
        """The body of the reply to a request at low priority. Raises OllamaError."""
        return await answer(self._service, endpoint, body, request_id)

    def encode_error(self, failure: OllamaError) -> bytes:
        return error(self._service.public(failure))

    def encode_result(self, job: BatchJob, result: LineResult) -> bytes:
        """The line of a request that ran or that is broken. Lines of the error file also have the line's number."""
        head = {"id": _line_id(job, result.number), "custom_id": result.custom_id}
        reply = {"status_code": result.status, "request_id": result.request_id}
        tail = {"error": None, **({} if result.status == 200 else {"line": result.number})}
        # The body is JSON already.
        return b'%b,"response":%b,"body":%b},%b\n' % (
            encode(head)[:-2],
            encode(reply)[:-2],
            bytes(result.body),
            encode(tail)[1:-1],
        )

    def encode_unfinished(self, job: BatchJob, line: BatchLine, status: str) -> bytes:
        """The line of a request that did not run because the batch was cancelled or expired."""
        reason = {"code": f"batch_{status}", "message": _UNFINISHED[status]}
        found = {"id": _line_id(job, line.number), "custom_id": line.custom_id, "response": None, "error": reason}
        return encode({**found, "line": line.number})


def _line_id(job: BatchJob, number: int) -> str:
    return f"batch_req_{job.id.removeprefix('batch_')}_{number}"


def _store(call: OllamaHandler) -> BatchStore:
    return call.service.batches.store


ROUTES: dict[str, Mapping[str, Route]] = {
    "/v1/files": {
        "GET": Route(list_files, READ, errors=ERRORS),
        "POST": Route(upload_file, INFER, open_body=open_upload, errors=ERRORS),
    },
    "/v1/files/([^/]+)": {
        "GET": Route(get_file, READ, errors=ERRORS),
        "DELETE": Route(delete_file, INFER, errors=ERRORS),
    },
    "/v1/files/([^/]+)/content": {"GET": Route(get_content, READ, errors=ERRORS)},
    "/v1/batches": {
        "GET": Route(list_batches, READ, errors=ERRORS),
        "POST": Route(create_batch, INFER, errors=ERRORS),
    },
    "/v1/batches/([^/]+)": {"GET": Route(get_batch, READ, errors=ERRORS)},
    "/v1/batches/([^/]+)/cancel": {"POST": Route(cancel_batch, INFER, errors=ERRORS)},
}
"""Path pattern below the prefix → HTTP method → route."""
