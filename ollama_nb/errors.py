"""Every error that a user or a client can see, with its HTTP status and its code.

The code is the stable name of the kind of error. Runner processes and REST replies send it beside the message, and
:func:`from_code` turns it back into the class. Code that reacts to an error compares classes or codes, never the text
of the message.

===========================  ======  ======================  ========================================================
class                        status  code                    raised when
===========================  ======  ======================  ========================================================
OllamaError                  500     internal_error          no narrower class applies
  BadRequest                 400     bad_request             the request is wrong; the message says where
    InvalidName              400     invalid_name            a text is not a model name
    InvalidThink             400     invalid_think           the value of ``think`` is not a thinking level
    Unsupported              400     unsupported             the model lacks a capability that the request needs
      ThinkingUnsupported    400     thinking_unsupported    the request asks for thinking and the model cannot think
      ToolsUnsupported       400     tools_unsupported       the request has tools and the model cannot call them
      ImagesUnsupported      400     images_unsupported      a message has images and they cannot be read
      InsertUnsupported      400     insert_unsupported      the request has a suffix and the model cannot fill a gap
      CompletionUnsupported  400     completion_unsupported  the model makes embeddings and cannot write text
    UnknownTool              400     unknown_tool            ``tool_choice`` names a tool that the request lacks
    InvalidDuration          400     invalid_duration        a text is not a duration such as ``10m``
    ContextOverflow          400     context_overflow        the prompt does not fit into the context
    CorruptModel             400     corrupt_model           a model file is damaged or is not what it claims to be
    TemplateError            400     template_error          a prompt template does not parse or does not run
    InvalidBatchFile         400     invalid_batch_file      the input file of a batch cannot be used
    InvalidBatchLine         400     invalid_batch_line      a line in the input file of a batch cannot run
    RequestTooLarge          413     request_too_large       the request body is larger than the route accepts
  Unauthorized               401     unauthorized            the API key is missing or not valid
  Forbidden                  403     forbidden               the API key is valid but does not allow the action
  NotFound                   404     not_found               the named thing does not exist
    ModelNotFound            404     model_not_found         the named model is not in the store
    ResponseNotFound         404     response_not_found      the named response was never stored, or is gone
  SlowReader                 408     slow_reader             the client reads the reply much too slowly
  Cancelled                  499     cancelled               the client disconnected or cancelled the request
  Busy                       503     busy                    the request queue is full
    ShuttingDown             503     shutting_down           the server is shutting down
  StoreError                 500     store_error             the model store cannot be read or written
  LoadError                  500     load_error              the engine cannot load the model
    InsufficientMemory       507     insufficient_memory     the memory is too small for the model
  RelayBroken                502     relay_broken            the server to which a request was relayed hangs up
  RunnerCrashed              500     runner_crashed          the runner process ended during the request
  SourceError                500     source_error            a registry or package index fails or sends invalid data
    AccessDenied             500     access_denied           a registry refuses the access that a pull or push needs
      CredentialsRequired    500     credentials_required    a registry needs credentials that cannot be sent
  ConnectError               500     connect_error           client only: the server cannot be reached
    ReplyCutOff              500     reply_cut_off           client only: the connection ended during the reply
===========================  ======  ======================  ========================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self


class OllamaError(Exception):
    """Base class. ``message`` is written for the user, ``status`` is the HTTP status, ``code`` names the kind of error.

    ``field`` is the path of the request's field that is wrong, where it is known. Catch this class to handle every
    failure of a request; catch a subclass to handle one kind.
    """

    status = 500
    code = "internal_error"
    field = ""

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        if field:
            self.field = field
        if status is not None:
            self.status = status
        if code is not None:
            self.code = code

    def with_message(self, message: str) -> Self:
        """The same kind of error (class, status, code and field) with another message."""
        error = type(self)(message, status=self.status, code=self.code)
        error.field = self.field
        return error


class BadRequest(OllamaError):
    """The request is wrong. Correct the field that the message names; the same request fails again."""

    status = 400
    code = "bad_request"


class InvalidName(BadRequest):
    """A text is not a valid model name. Use ``[host/][namespace/]model[:tag]``."""

    code = "invalid_name"


class InvalidThink(BadRequest):
    """The value of ``think`` is not a thinking level. Use a bool or one of the levels that the message names."""

    code = "invalid_think"


class Unsupported(BadRequest):
    """The model lacks a capability that the request needs, such as tools or thinking. Use another model."""

    code = "unsupported"


class ThinkingUnsupported(Unsupported):
    """The request asks for thinking and the model cannot think. Leave ``think`` out, or use another model."""

    code = "thinking_unsupported"


class ToolsUnsupported(Unsupported):
    """The model cannot call tools. Send the request without ``tools``."""

    code = "tools_unsupported"


class ImagesUnsupported(Unsupported):
    """The model cannot read images, or this program cannot for this model. Send the message without them."""

    code = "images_unsupported"


class InsertUnsupported(Unsupported):
    """The model cannot fill a gap. Send the prompt without ``suffix``."""

    code = "insert_unsupported"


class CompletionUnsupported(Unsupported):
    """The model makes embeddings and cannot write text. Use it with ``embed``."""

    code = "completion_unsupported"


class UnknownTool(BadRequest):
    """The field ``tool_choice`` names a tool that is not among the tools of the request. Correct the name."""

    code = "unknown_tool"


class InvalidDuration(BadRequest):
    """A text is not a duration. Write a number with a unit, such as ``10m``, ``1h30m`` or ``-1m``."""

    code = "invalid_duration"


class ContextOverflow(BadRequest):
    """The prompt does not fit into the context. Shorten it, raise ``num_ctx`` or allow truncation."""

    code = "context_overflow"


class CorruptModel(BadRequest):
    """A model file is damaged or is not what it claims to be. Pull or create the model again."""

    code = "corrupt_model"


class TemplateError(BadRequest):
    """A prompt template does not parse or does not run. Correct the template of the model."""

    code = "template_error"


class InvalidBatchFile(BadRequest):
    """The input file of a batch has no requests, too many, or none that can run. Correct it and upload it again."""

    code = "invalid_batch_file"


class InvalidBatchLine(BadRequest):
    """A line in the input file of a batch cannot run; the other lines do. Correct it and send it in another batch."""

    code = "invalid_batch_line"


class RequestTooLarge(BadRequest):
    """The request body is larger than the route accepts. Send less data in one request."""

    status = 413
    code = "request_too_large"


class Unauthorized(OllamaError):
    """The API key is missing or not valid. Send a valid key as bearer token."""

    status = 401
    code = "unauthorized"


class Forbidden(OllamaError):
    """The action is not allowed to this client. Use a key with the scope that the message names."""

    status = 403
    code = "forbidden"


class NotFound(OllamaError):
    """The named thing does not exist."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """The named model is not in the store. Pull or create it first."""

    code = "model_not_found"


class ResponseNotFound(NotFound):
    """The named response was not stored, was deleted or has expired. Send the whole conversation instead."""

    code = "response_not_found"


class SlowReader(OllamaError):
    """The client reads the reply much more slowly than the model writes it. Read faster, or ask for less."""

    status = 408
    code = "slow_reader"


class Cancelled(OllamaError):
    """The client disconnected or cancelled the request. Release its resources; there is nothing else to do."""

    status = 499
    code = "cancelled"

    def __init__(
        self, message: str = "request canceled", *, status: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, status=status, code=code)


class Busy(OllamaError):
    """The request queue is full. Try again later."""

    status = 503
    code = "busy"


class ShuttingDown(Busy):
    """The server is shutting down. Start it again, or send the request to another server."""

    code = "shutting_down"

    def __init__(
        self, message: str = "server is shutting down", *, status: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, status=status, code=code)


class StoreError(OllamaError):
    """The model store cannot be read or written: permissions, disk space, or a damaged manifest."""

    code = "store_error"


class LoadError(OllamaError):
    """The engine cannot load the model. The message gives llama.cpp's reason."""

    code = "load_error"


class InsufficientMemory(LoadError):
    """The memory is too small for the model. Lower ``num_ctx``, use a smaller model, or free memory."""

    status = 507
    code = "insufficient_memory"


class RelayBroken(OllamaError):
    """Another server of this user, to which the request was relayed, closed the connection. Send the request again."""

    status = 502
    code = "relay_broken"


class RunnerCrashed(OllamaError):
    """The runner process ended during the request. The next request starts a new one; try once again."""

    code = "runner_crashed"


class SourceError(OllamaError):
    """A registry or package index cannot be reached or sends invalid data."""

    code = "source_error"


class AccessDenied(SourceError):
    """A registry refuses the access that a pull or push needs. Push to a namespace you own, or add credentials."""

    code = "access_denied"


class CredentialsRequired(AccessDenied):
    """A registry needs credentials, and none may be sent. Run ``docker login``, or use the registry's https address."""

    code = "credentials_required"


class ConnectError(OllamaError):
    """The server cannot be reached. Start one with ``ollama serve``, or correct ``OLLAMA_HOST``."""

    code = "connect_error"


class ReplyCutOff(ConnectError):
    """The connection to the server ended before the reply was complete. Send the request again."""

    code = "reply_cut_off"


def from_code(code: str, message: str, status: int | None = None) -> OllamaError:
    """Rebuild an error that another process sent as ``code``, ``message`` and HTTP ``status``.

    ``status`` defaults to that of the class. An unknown or empty code (real Ollama sends no codes) gives the class of
    the status: BadRequest for a 4xx status without a class of its own, OllamaError for all others.

    >>> type(from_code("model_not_found", "model 'x' not found", 404)).__name__
    'ModelNotFound'
    >>> type(from_code("", "no such route", 404)).__name__
    'NotFound'
    """
    status = status or 0
    known = _by_code().get(code) or _BY_STATUS.get(status) or (BadRequest if 400 <= status < 500 else OllamaError)
    error = known.__new__(known)  # a subclass may take other arguments
    OllamaError.__init__(error, message, status=status or None, code=code or None)
    return error


_BY_STATUS: dict[int, type[OllamaError]] = {
    error.status: error for error in (BadRequest, RequestTooLarge, Unauthorized, Forbidden, NotFound, Cancelled, Busy)
}


def _by_code() -> dict[str, type[OllamaError]]:
    """All classes that are imported so far, by code."""
    return {error.code: error for error in family(OllamaError)}


def family(error: type[OllamaError]) -> Iterator[type[OllamaError]]:
    """The class and all its subclasses that are imported so far; other packages define classes of their own."""
    yield error
    for narrower in error.__subclasses__():
        yield from family(narrower)
