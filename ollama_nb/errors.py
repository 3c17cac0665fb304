"""Every error of the house, each with the HTTP status that it becomes.

OllamaError 500
├── BadRequest 400            the caller's input is wrong; the text says where
│   ├── InvalidName           a model name that is none
│   ├── ContextOverflow       the prompt does not fit and the caller wanted to know
│   ├── CorruptModel          a model file that cannot be what it claims to be
│   └── TemplateError         a prompt template that does not parse or run
├── Unauthorized 401
├── Forbidden 403
├── NotFound 404              a thing that is not there
│   └── ModelNotFound
├── Cancelled 499             the caller went away or asked to stop
├── Busy 503                  the queue is full
├── StoreError 500            the model store cannot be read or written
├── LoadError 500             a model that the engine cannot load
├── RunnerCrashed 500         a runner process died under a request
└── SourceError 500           a registry or package index that cannot be reached or gives nonsense
    (client side)
    ConnectError              no server answers
"""

from __future__ import annotations


class OllamaError(Exception):
    """Base of all errors that carry a text for the user and an HTTP status."""

    status = 500

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status


class BadRequest(OllamaError):
    status = 400


class InvalidName(BadRequest):
    pass


class ContextOverflow(BadRequest):
    pass


class CorruptModel(BadRequest):
    pass


class TemplateError(BadRequest):
    pass


class Unauthorized(OllamaError):
    status = 401


class Forbidden(OllamaError):
    status = 403


class NotFound(OllamaError):
    status = 404


class ModelNotFound(NotFound):
    pass


class Cancelled(OllamaError):
    status = 499

    def __init__(self, message: str = "request canceled", *, status: int | None = None) -> None:
        super().__init__(message, status=status)


class Busy(OllamaError):
    status = 503


class StoreError(OllamaError):
    pass


class LoadError(OllamaError):
    pass


class RunnerCrashed(OllamaError):
    pass


class SourceError(OllamaError):
    pass


class ConnectError(OllamaError):
    pass
