"""Uploaded files and batches on disk, below ``batches`` in the state folder. All methods block.

===================  =============================================================================================
file                 content
===================  =============================================================================================
``FILE-ID.data``     an uploaded file, or the output of a batch, byte for byte
``FILE-ID.json``     its record, written after the data: without a record the file does not exist
``BATCH-ID.json``    the record of a batch, replaced as a whole
``BATCH-ID.results`` its journal: one line per result. The server that has locked it works on the batch
``BATCH-ID.cancel``  exists if the cancellation of the batch was requested; contains the time
===================  =============================================================================================

Only this user can read the folder. Several servers may use it. Files are removed when they expire, records of batches
``RETENTION`` seconds after their end.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from ollama_nb.disk import InPlaceFile, TempFile, Tree, display_path, store_errors, write_new
from ollama_nb.errors import BadRequest, NotFound, StoreError
from ollama_nb.service.batches import (
    CANCELLING,
    IN_PROGRESS,
    UNFINISHED,
    VALIDATING,
    BatchJob,
    BatchLine,
    LineResult,
    body_of,
    parse_lines,
    with_cancellation,
)

RETENTION = 30 * 86_400.0  # seconds for which files, and batches after their end, are kept
ABANDONED_AFTER = 3600.0  # seconds after which a file without a record has no writer any more
OUTPUT_PURPOSE = "batch_output"

_TEMPORARY = ".part-"  # start of the name of an unfinished file
_FILE_MODE = 0o600
_BUFFER = 1 << 20  # bytes of one write to the disk
_FILE_ID = re.compile(r"file-[0-9a-f]{24}(?:-output|-errors)?")
_BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
_SUCCEEDED = re.compile(rb'^\{"status":200,', re.MULTILINE)
_log = logging.getLogger("ollama_nb.service")

R = TypeVar("R", "StoredFile", BatchJob)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The record of an uploaded file or of a batch's results. ``size`` is in bytes, times are Unix seconds."""

    id: str
    filename: str
    purpose: str
    size: int
    created_at: float
    expires_at: float


class FileUpload:
    """A file that is being written. It exists once it is committed; ``abort`` after that does nothing."""

    def __init__(self, store: BatchStore, temp: TempFile) -> None:
        self._store, self._temp = store, temp
        self._pending = bytearray()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Raises StoreError."""
        self._size += len(data)
        self._pending += data
        if len(self._pending) >= _BUFFER:
            self._flush()

    def commit(self, filename: str, purpose: str, *, id: str = "", lifetime: float = RETENTION) -> StoredFile:
        """Store the file for ``lifetime`` seconds. A file with the same id is replaced. Raises StoreError."""
        self._flush()
        now = time.time()
        file = StoredFile(id or f"file-{secrets.token_hex(12)}", filename, purpose, self._size, now, now + lifetime)
        self._store.add_file(self._temp, file)
        return file

    def abort(self) -> None:
        self._temp.abort()

    def _flush(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        self._temp.write(data)


class ResultJournal:
    """The results of one batch, in the order in which they finished. The process that opens it holds the lock."""

    def __init__(self, batch_id: str, file: InPlaceFile) -> None:
        self.batch_id = batch_id
        self._file = file
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def recover(self) -> None:
        """Read the results of an earlier server; an incomplete line at the end is removed. Raises StoreError."""
        self._places, self._end = {}, 0
        with store_errors("read", self._file.path, reading=True), self._file.path.open("rb") as lines:
            for line in lines:
                try:
                    number = _decode_result(line).number
                except msgspec.MsgspecError:
                    break
                if not line.endswith(b"\n"):
                    break
                self._places[number] = (self._end, len(line))
                self._end += len(line)
        if self._file.size > self._end:
            self._file.resize(self._end)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def append(self, results: Sequence[LineResult]) -> None:
        """Write results durably, or nothing. Raises StoreError."""
        lines = [msgspec.json.encode(result) + b"\n" for result in results]
        try:
            self._file.write_at(b"".join(lines), self._end)
            self._file.sync()
        except StoreError:
            with contextlib.suppress(StoreError):
                self._file.resize(self._end)
            raise
        for result, line in zip(results, lines, strict=True):
            self._places[result.number] = (self._end, len(line))
            self._end += len(line)

    def read(self, number: int) -> LineResult:
        """The result of a line that has one."""
        offset, size = self._places[number]
        return _decode_result(self._file.read_at(size, offset))

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


_decode_result = msgspec.json.Decoder(LineResult).decode


@dataclass(frozen=True, slots=True)
class _Counted:
    """The results in the first ``end`` bytes of a journal."""

    end: int = 0
    completed: int = 0
    failed: int = 0


class BatchStore:
    """The files and batches of a state folder. Any thread may call it."""

    def __init__(self, home: Path) -> None:
        self.root = home / "batches"
        self._tree = Tree(self.root, folder_mode=0o700)
        self._records: dict[Path, tuple[tuple[int, ...], StoredFile | BatchJob]] = {}
        self._counted: dict[str, _Counted] = {}

    # Files

    def upload(self) -> FileUpload:
        """Begin to write a file. Raises StoreError."""
        return FileUpload(self, self._tree.temp(prefix=_TEMPORARY, mode=_FILE_MODE))

    def add_file(self, temp: TempFile, file: StoredFile) -> None:
        """Give a written file its name and its record."""
        temp.commit(self._tree, self.root / f"{file.id}.data")
        self._write_record(file)

    def file(self, id: str) -> StoredFile:
        """Raises NotFound and StoreError."""
        found = self._read_record(f"{id}.json", StoredFile) if _FILE_ID.fullmatch(id) else None
        if found is None or found.expires_at <= time.time():
            raise NotFound(f"file {id!r} not found")
        return found

    def files(self) -> list[StoredFile]:
        """All files, oldest first."""
        now = time.time()
        found = (file for file in self._all(StoredFile, "file-*.json") if file.expires_at > now)
        return sorted(found, key=lambda file: (file.created_at, file.id))

    def open_data(self, file: StoredFile) -> BinaryIO:
        """Open the content of a file. Raises StoreError."""
        path = self.root / f"{file.id}.data"
        with store_errors("read", path, reading=True):
            return path.open("rb")

    def delete_file(self, id: str) -> None:
        """Raises NotFound, and BadRequest while an unfinished batch reads the file."""
        file = self.file(id)
        for job in self.unfinished():
            if job.input_file == file.id:
                raise BadRequest(f"file {id!r} is the input of batch {job.id!r}: cancel the batch first")
        self._remove_file(file.id)

    # Batches

    def create(self, input_file: str, endpoint: str, window: str, seconds: float, metadata: dict[str, str]) -> BatchJob:
        """Create a batch. ``seconds`` is the length of its completion ``window``. Raises StoreError."""
        now = time.time()
        job = BatchJob(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=endpoint,
            input_file=input_file,
            window=window,
            created_at=now,
            expires_at=now + seconds,
            metadata=metadata,
        )
        self.save(job)
        return job

    def save(self, job: BatchJob) -> None:
        """Write a batch's record. Only the holder of the journal may change one. Raises StoreError."""
        self._write_record(job)

    def batch(self, id: str) -> BatchJob:
        """A batch as it is now. Raises NotFound and StoreError."""
        found = self._read_record(f"{id}.json", BatchJob) if _BATCH_ID.fullmatch(id) else None
        if found is None:
            raise NotFound(f"batch {id!r} not found")
        return self._present(found)

    def batches(self) -> list[BatchJob]:
        """All batches, oldest first."""
        jobs = map(self._present, self._all(BatchJob, "batch_*.json"))
        return sorted(jobs, key=lambda job: (job.created_at, job.id))

    def unfinished(self) -> list[BatchJob]:
        """The batches that have not ended, oldest first."""
        return [job for job in self.batches() if job.status in UNFINISHED]

    def request_cancel(self, id: str) -> BatchJob:
        """Mark a batch for cancellation. Raises NotFound, and BadRequest if it is finalizing or has ended."""
        job = self.batch(id)
        if job.status not in (VALIDATING, IN_PROGRESS, CANCELLING):
            raise BadRequest(f"batch {id!r} cannot be cancelled: its status is {job.status!r}")
        with store_errors("write", self._mark(id)), contextlib.suppress(FileExistsError):
            write_new(self._mark(id), repr(time.time()).encode(), _FILE_MODE)
        return self.batch(id)

    def lock(self, id: str) -> ResultJournal | None:
        """Lock the journal of an unfinished batch. None if another server has it, or if the batch has ended."""
        path = self._journal(id)
        file = InPlaceFile(self._tree, path, _FILE_MODE)
        try:
            locked = file.lock()
            if locked and self.batch(id).status in UNFINISHED:
                return ResultJournal(id, file)
            if locked:
                self._tree.remove(path)  # its last holder was killed before it could
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def lines(self, job: BatchJob) -> list[BatchLine]:
        """Check the input file. Raises NotFound if it is missing, InvalidBatchFile if it has too many lines."""
        with store_errors("read", self.root, reading=True), self.open_data(self._input(job)) as lines:
            return parse_lines(lines, job.endpoint)

    def body(self, job: BatchJob, line: BatchLine) -> bytes:
        """The JSON body of a line that can run. Raises NotFound and StoreError."""
        with store_errors("read", self.root, reading=True), self.open_data(self._input(job)) as file:
            file.seek(line.offset)
            return body_of(file.read(line.size))

    def end(self, job: BatchJob) -> None:
        """Write the record of a batch that has ended, and remove its journal. Raises StoreError."""
        self.save(job)
        self._tree.remove(self._journal(job.id))
        self._tree.remove(self._mark(job.id))

    # Clean-up

    def stale(self) -> list[Path]:
        """The files that ``remove_stale`` would remove."""
        now = time.time()
        inputs = {job.input_file for job in self.unfinished()}
        records = [path for path in self._paths("*.json") if not path.name.startswith(_TEMPORARY)]
        kept = {path.stem for path in records if self._is_kept(path, now) or path.stem in inputs}
        found = []
        for path in self._paths("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stem not in kept and (path in records or path.stat().st_mtime < now - ABANDONED_AFTER):
                    found.append(path)
        return found

    def remove_stale(self) -> None:
        """Remove expired files, old batches, and what killed servers left behind. Raises StoreError."""
        # Records first: data without a record is removed at the latest an hour later.
        for path in sorted(self.stale(), key=lambda path: path.suffix != ".json"):
            self._tree.remove(path)
            self._records.pop(path, None)

    # Internal

    def _input(self, job: BatchJob) -> StoredFile:
        """The input file of a batch, which is kept as long as the batch needs it."""
        found = self._read_record(f"{job.input_file}.json", StoredFile)
        if found is None:
            raise NotFound(f"the input file {job.input_file!r} has been removed")
        return found

    def _present(self, job: BatchJob) -> BatchJob:
        """The record of an unfinished batch with the number of its results and a requested cancellation."""
        if job.status not in UNFINISHED:
            self._counted.pop(job.id, None)
            return job
        counted = self._count(job.id)
        job = replace(job, completed=counted.completed, failed=counted.failed)
        try:
            return with_cancellation(job, float(self._mark(job.id).read_bytes()))
        except (OSError, ValueError):
            return job

    def _count(self, id: str) -> _Counted:
        """Count the results in a journal; only what was appended since the last call is read."""
        known = self._counted.get(id, _Counted())
        try:
            with self._journal(id).open("rb") as file:
                if file.seek(0, 2) < known.end:  # the last line was incomplete, and was removed
                    known = _Counted()
                file.seek(known.end)
                data = file.read()
        except OSError:
            return known
        data = data[: data.rfind(b"\n") + 1]
        succeeded = len(_SUCCEEDED.findall(data))
        lines = data.count(b"\n")
        counted = _Counted(known.end + len(data), known.completed + succeeded, known.failed + lines - succeeded)
        self._counted[id] = counted
        return counted

    def _is_kept(self, path: Path, now: float) -> bool:
        """Whether a record has not expired; one that cannot be read is kept."""
        try:
            if _BATCH_ID.fullmatch(path.stem):
                job = self._read_record(path.name, BatchJob)
                return job is not None and (job.ended_at or now) > now - RETENTION
            file = self._read_record(path.name, StoredFile)
            return file is not None and file.expires_at > now
        except StoreError:
            return True

    def _write_record(self, record: StoredFile | BatchJob) -> None:
        path = self.root / f"{record.id}.json"
        with self._tree.temp(prefix=_TEMPORARY, mode=_FILE_MODE) as temp:
            temp.write(msgspec.json.encode(record))
            temp.commit(self._tree, path)

    def _read_record(self, name: str, kind: type[R]) -> R | None:
        """Read a record; None if it does not exist. Records are replaced as a whole, and cached by inode and time."""
        path = self.root / name
        with store_errors("read", path, reading=True):
            try:
                status = path.stat()
                state = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._records.get(path)
                if known is not None and known[0] == state and isinstance(known[1], kind):
                    return known[1]
                data = path.read_bytes()
            except FileNotFoundError:
                self._records.pop(path, None)
                return None
        try:
            record = msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{display_path(path)} is damaged: {error}") from None
        self._records[path] = (state, record)
        return record

    def _all(self, kind: type[R], pattern: str) -> Iterator[R]:
        for path in self._paths(pattern):
            try:
                record = self._read_record(path.name, kind)
            except StoreError as error:
                _log.warning("%s", error.message)
                continue
            if record is not None:
                yield record

    def _paths(self, pattern: str) -> list[Path]:
        with store_errors("read the folder", self.root, reading=True):
            return list(self.root.glob(pattern)) if self.root.is_dir() else []

    def _remove_file(self, id: str) -> None:
        self._tree.remove(self.root / f"{id}.json")
        self._tree.remove(self.root / f"{id}.data")

    def _journal(self, id: str) -> Path:
        return self.root / f"{id}.results"

    def _mark(self, id: str) -> Path:
        return self.root / f"{id}.cancel"
