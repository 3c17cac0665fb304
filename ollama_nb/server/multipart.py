"""Bodies of type ``multipart/form-data``: one file, which is written as it arrives, and small text fields."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ollama_nb.errors import BadRequest, OllamaError, RequestTooLarge
from ollama_nb.service.requests import finish_in_thread

MIB = 1 << 20
MAX_TEXT = 64 << 10  # bytes of the names and values of all text fields together
MAX_DISCARDED = 1 << 30  # bytes of a refused body that are read, so that the client reads the reply
_PIECE = MIB  # bytes of a file in one write to the disk


class FileWriter(Protocol):
    """Where the file of a form is written. Both methods block; ``abort`` removes what was not stored."""

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...


W = TypeVar("W", bound=FileWriter)


class FormBody(Generic[W]):
    """Reads a form with one file, of at most ``max_bytes``, in the field ``file_field``. Memory use is bounded.

    ``open_file`` is called in a thread when the file begins. ``fields`` has the texts by name, ``filename`` the name
    that the client gave to the file. Raises BadRequest for a ``content_type`` other than ``multipart/form-data``.
    """

    def __init__(
        self, content_type: str, open_file: Callable[[], W], *, max_bytes: int, file_field: str = "file"
    ) -> None:
        # Few requests are forms, and the others do not wait for this import.
        from python_multipart.multipart import MultipartParser, parse_options_header

        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise BadRequest("the request body must be a form: Content-Type: multipart/form-data; boundary=…")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._open_file, self._file_field, self._max_bytes = open_file, file_field, max_bytes
        self._writer: W | None = None
        self._options_of = parse_options_header
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_header_name,
                "on_header_value": self._add_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end_form,
            },
        )
        self._lock = asyncio.Lock()
        self._header_name, self._header_value, self._disposition = bytearray(), bytearray(), ""
        self._name = ""
        self._text, self._text_size = bytearray(), 0
        self._file, self._file_size = bytearray(), 0
        self._has_file = self._in_file = self._complete = False
        self._failure: OllamaError | None = None
        self._discarded = 0

    async def write(self, chunk: bytes) -> None:
        """After an error, the rest of the body is discarded, so that the client reads the error from ``finish``."""
        if self._failure is not None:
            self._discarded += len(chunk)
            if self._discarded > MAX_DISCARDED:
                raise self._failure
            return
        try:
            self._parse(chunk)
            if len(self._file) >= _PIECE:
                await self._flush()
        except OllamaError as error:
            self._failure = error
            self._file, self._text = bytearray(), bytearray()
            await self.close()

    async def finish(self) -> W:
        """Return the writer with the complete file.

        Raises BadRequest if the form is not valid or has no file, RequestTooLarge, and the errors of the writer.
        """
        if self._failure is not None:
            raise self._failure
        if not self._complete:
            raise BadRequest("the form in the request body is incomplete")
        if not self._has_file:
            raise BadRequest(f'the form has no file in the field "{self._file_field}"', field=self._file_field)
        await self._flush()
        assert self._writer is not None
        return self._writer

    async def close(self) -> None:
        """Remove a file that was not stored."""
        async with self._lock:
            if self._writer is not None:
                await finish_in_thread(self._writer.abort)

    async def _flush(self) -> None:
        data, self._file = bytes(self._file), bytearray()
        async with self._lock:
            await finish_in_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        if self._writer is None:
            self._writer = self._open_file()
        self._writer.write(data)

    def _parse(self, chunk: bytes) -> None:
        from python_multipart.exceptions import FormParserError  # loaded already

        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest(f"the form in the request body is not valid: {error}") from None

    # The parser's callbacks

    def _begin_part(self) -> None:
        self._disposition, self._name, self._in_file = "", "", False

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value.decode("latin-1")
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = self._options_of(self._disposition)
        if b"name" not in options:
            raise BadRequest("a part of the form has no name")
        self._name = _text(options[b"name"])
        self._count_text(len(self._name))
        if self._name == self._file_field:
            if self._has_file:
                raise BadRequest("the form has more than one file", field=self._name)
            self._has_file = self._in_file = True
            self.filename = _text(options.get(b"filename", b""))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if not self._in_file:
            self._count_text(end - start)
            self._text += data[start:end]
            return
        self._file_size += end - start
        if self._file_size > self._max_bytes:
            raise RequestTooLarge(f"the file is larger than {self._max_bytes // MIB} MiB", field=self._name)
        self._file += data[start:end]

    def _end_part(self) -> None:
        if not self._in_file:
            self.fields[self._name] = _text(bytes(self._text))
            self._text = bytearray()

    def _end_form(self) -> None:
        self._complete = True

    def _count_text(self, size: int) -> None:
        self._text_size += size
        if self._text_size > MAX_TEXT:
            raise RequestTooLarge(f"the texts of the form are larger than {MAX_TEXT >> 10} KiB")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
