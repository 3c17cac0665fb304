"""Durable file operations; the only module that writes to the model store.

A file gets its final name only when it is complete and on disk: temporary file, write, fsync, rename, fsync of the
folder. :class:`InPlaceFile` covers downloads that continue over several runs of the program; it follows the same order
when it is committed. Below its root a tree is opened folder by folder without following symbolic links, so that nothing
is written or removed through one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ollama_nb.errors import BadRequest, StoreError

before_change_hook: Callable[[str, str], None] | None = None
"""Test hook: called with the name of a system call and its subject before the call changes the disk."""

TEMP_PREFIX = "sha256-"
"""Followed by digits, the name that Ollama gives to unfinished blobs, so that its clean-up also removes ours."""

_COPY_BYTES = 1 << 20  # bytes that are copied at a time
_FICLONE = 0x40049409  # from linux/fs.h: share the blocks of another file
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # flags to open a folder
_REASONS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "a symbolic link is in the way",
    errno.ENOTDIR: "a file or a symbolic link is where a folder should be",
    errno.EXDEV: "the folder is on another disk than its parent",
}

_KERNEL_FOLDERS = (Path("/proc"), Path("/sys"))  # their files have no end, block, or change while they are read
_SPECIAL_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_REFUSALS = {errno.EROFS, errno.EACCES, errno.EPERM}  # errors with HTTP status 403 when writing


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file atomically and durably, creating its folder if necessary. See ``Tree.write`` for files of a tree."""
    tree = Tree(path.parent)
    with tree.temp(prefix=f".{path.name}-", mode=mode) as temp:
        temp.write(data)
        temp.commit(tree, path)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Create a file atomically and durably. Raises FileExistsError if it exists."""
    tree = Tree(path.parent)
    with tree.temp(prefix=f".{path.name}-", mode=mode) as temp:
        temp.write(data)
        temp.commit_new(path)


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file outside of any store for writing; it gets its name, synced, when the block ends without an error."""
    temp = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with store_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temp.open("xb") as file:
                yield file
                file.flush()
                fsync(file.fileno(), temp.name)
            announce("rename", path.name)
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
        _sync_folder(path.parent)


def display_path(path: Path) -> str:
    """Format a path for messages, with ``~`` for the home folder."""
    home = Path.home()
    return str("~" / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def describe_error(error: OSError) -> str:
    """Describe an operating system error for users."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


@contextlib.contextmanager
def store_errors(doing: str, path: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the operation, the path and the reason.

    ``doing`` is an infinitive phrase that completes "cannot …", such as "read" or "create the folder". A refused write
    (permissions, read-only disk) has HTTP status 403, a refused read (``reading``) has status 500.
    """
    try:
        yield
    except OSError as error:
        is_refused = error.errno in _REFUSALS and not reading
        text = f"cannot {doing} {display_path(path)}: {describe_error(error)}"
        raise StoreError(text, status=403 if is_refused else None) from error


@contextlib.contextmanager
def folder_lock(root: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``root`` against our other threads and processes.

    The folder itself is locked, so no lock file remains. On file systems without locks this does nothing.
    """
    Tree(root).make()
    with store_errors("open", root):
        folder = os.open(root, _FOLDER)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def move_out(tree: Tree, path: Path, target: Path) -> None:
    """Move a file or link of a tree to ``target``, a path outside of the tree, possibly on another disk."""
    Tree(target.parent).make()
    with store_errors("move", path), tree.folder_of(path) as folder:
        if folder is None:
            return
        announce("rename", target.name)
        try:
            os.rename(path.name, target, src_dir_fd=folder)
            _sync_folder(target.parent)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with path.open("rb") as source, atomic_writer(target) as copy:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
            announce("unlink", path.name)
            os.unlink(path.name, dir_fd=folder)
        fsync(folder, path.parent.name)


class Tree:
    """A folder and its contents. The path to the root may contain symbolic links; paths below the root may not.

    ``folder_mode``: permissions of the folders that are created.
    """

    def __init__(self, root: Path, *, folder_mode: int = 0o755) -> None:
        self.root = root
        self._folder_mode = folder_mode

    def make(self) -> None:
        """Create the root and its missing parents."""
        with store_errors("create the folder", self.root):
            missing = []
            folder = self.root
            while not folder.exists():
                missing.append(folder)
                folder = folder.parent
            for folder in reversed(missing):
                announce("mkdir", folder.name)
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(self._folder_mode)
                _sync_folder(folder.parent)

    def temp(self, *, prefix: str = TEMP_PREFIX, mode: int = 0o644) -> TempFile:
        """Create a temporary file in the root."""
        self.make()
        with store_errors("write in", self.root):
            return TempFile(self.root, os.open(self.root, _FOLDER), prefix, mode)

    def write(self, path: Path, data: bytes, *, temps: Tree) -> None:
        """Write a file of this tree by way of a temporary file in ``temps``, a tree on the same disk."""
        with temps.temp() as temp:
            temp.write(data)
            temp.commit(self, path)

    def write_unsynced(self, path: Path, data: bytes) -> None:
        """Replace a small file of the root without fsync, for data that may be lost in a power failure."""
        with self.temp() as temp:
            temp.write(data)
            temp.commit(self, path, sync=False)

    def remove(self, path: Path) -> bool:
        """Remove a file or link. Returns False if it does not exist."""
        with store_errors("remove", path), self.folder_of(path) as folder:
            if folder is None:
                return False
            announce("unlink", path.name)
            try:
                os.unlink(path.name, dir_fd=folder)
            except FileNotFoundError:
                return False
            fsync(folder, path.parent.name)
        return True

    def remove_folder(self, path: Path) -> bool:
        """Remove an empty folder. Returns False if it is not empty or does not exist."""
        with store_errors("remove", path), self.folder_of(path) as folder:
            if folder is None:
                return False
            announce("rmdir", path.name)
            try:
                os.rmdir(path.name, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                    return False
                raise
            fsync(folder, path.parent.name)
        return True

    def touch(self, path: Path) -> bool:
        """Set the times of a file, or of the link itself, to now. Returns False if it does not exist."""
        with store_errors("touch", path), self.folder_of(path) as folder:
            if folder is None:
                return False
            announce("utime", path.name)
            try:
                os.utime(path.name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return False
        return True

    def link(self, source: Path, path: Path) -> None:
        """Create a hard link in this tree to a file on the same disk."""
        with store_errors("link", source), self.folder_of(path, create=True) as folder:
            announce("link", path.name)
            os.link(source, path.name, dst_dir_fd=folder)

    def rename(self, path: Path, name: str) -> None:
        """Rename a file within its folder."""
        with store_errors("rename", path), self.folder_of(path) as folder:
            if folder is None:
                return
            announce("rename", name)
            os.rename(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
            fsync(folder, path.parent.name)

    @contextlib.contextmanager
    def folder_of(self, path: Path, *, create: bool = False) -> Iterator[int | None]:
        """Open the folder that contains ``path``; None if it does not exist and ``create`` is False."""
        folder = self._open(path.relative_to(self.root).parts[:-1], create)
        try:
            yield folder
        finally:
            if folder is not None:
                os.close(folder)

    def _open(self, parts: tuple[str, ...], create: bool) -> int | None:
        if ".." in parts:
            raise StoreError("a path of the store must not contain '..'")
        if create:
            self.make()
        try:
            here = os.open(self.root, _FOLDER)
        except FileNotFoundError:
            return None
        for part in parts:
            try:
                below = _open_subfolder(here, part, self._folder_mode if create else None)
            finally:
                os.close(here)
            if below is None:
                return None
            here = below
        return here


class TempFile:
    """A temporary file. Leaving its ``with`` block without ``commit`` removes it."""

    def __init__(self, root: Path, folder: int, prefix: str, mode: int) -> None:
        self._folder = folder
        self._file = -1
        try:
            while self._file < 0:
                self.path = root / f"{prefix}{secrets.randbelow(10**18)}"
                announce("create", self.path.name)
                with contextlib.suppress(FileExistsError):
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    self._file = os.open(self.path.name, flags, mode, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with store_errors("write", self.path):
            while view:
                announce("write", self.path.name)
                view = view[os.write(self._file, view) :]

    def clone(self, source: BinaryIO) -> bool:
        """Clone another file's blocks (copy on write). Returns False, without changes, where that is not supported."""
        announce("clone", self.path.name)
        try:
            fcntl.ioctl(self._file, _FICLONE, source.fileno())
        except OSError:
            return False
        return True

    def commit_new(self, path: Path) -> None:
        """Like ``commit`` into the same folder, but raises FileExistsError if the name is in use."""
        fsync(self._file, self.path.name)
        announce("link", path.name)
        os.link(self.path.name, path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        fsync(self._folder, path.parent.name)

    def commit(self, tree: Tree, path: Path, *, sync: bool = True) -> None:
        """Sync the file, then rename it to ``path`` in ``tree``."""
        with store_errors("write", path), tree.folder_of(path, create=True) as folder:
            if sync:
                fsync(self._file, self.path.name)
            announce("rename", path.name)
            os.rename(self.path.name, path.name, src_dir_fd=self._folder, dst_dir_fd=folder)
            self._close()
            if folder is not None and sync:
                fsync(folder, path.parent.name)

    def abort(self) -> None:
        """Remove the file. Does nothing after ``commit``."""
        if self._file < 0:
            return
        announce("unlink", self.path.name)
        with contextlib.suppress(OSError):
            os.unlink(self.path.name, dir_fd=self._folder)
        self._close()

    def _close(self) -> None:
        os.close(self._file)
        os.close(self._folder)
        self._file = -1

    def __enter__(self) -> TempFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()


def open_regular(path: Path) -> BufferedReader:
    """Open a file that a user named, for reading, without ever waiting for it.

    An empty file reads as the null device, because files of the kernel that would block report no size. Raises
    BadRequest for pipes, sockets, devices, folders and files of the kernel, OSError if the file cannot be opened.
    """
    kind = _special_kind(path.stat())
    if not kind:
        # Without O_NONBLOCK, opening a pipe that replaced the file in the meantime would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            kind = _special_kind(status)
            if not kind:
                return os.fdopen(descriptor if status.st_size else _null_in_place_of(descriptor), "rb")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise BadRequest(f"{display_path(path)} is {kind}, not a regular file")


def read_regular(path: Path) -> bytes:
    """Read a file that a user named. Raises what ``open_regular`` raises."""
    with open_regular(path) as file:
        return file.read()


def _null_in_place_of(descriptor: int) -> int:
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)
    return descriptor


def _special_kind(status: os.stat_result) -> str:
    """What a file is that cannot be read like a regular file; empty for a regular file."""
    if stat.S_ISREG(status.st_mode):
        return "a file of the kernel" if status.st_dev in _kernel_devices() else ""
    return next((name for test, name in _SPECIAL_KINDS if test(status.st_mode)), "a special file")


def _kernel_devices() -> set[int]:
    return {folder.stat().st_dev for folder in _KERNEL_FOLDERS if folder.is_mount()}


def is_folder(path: Path) -> bool:
    """Return whether ``path`` is an accessible folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def regular_size(path: Path) -> int | None:
    """Return the size of a regular file in bytes, following links; None for anything else."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _open_subfolder(above: int, name: str, mode: int | None) -> int | None:
    """Open the folder ``name`` in ``above`` without following links; with a ``mode``, create it if it is missing."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
    if mode is None:
        return None
    announce("mkdir", name)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=above)
    fsync(above, name)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=above)


def fsync(descriptor: int, name: str) -> None:
    """Flush a file or folder to disk."""
    announce("fsync", name)
    os.fsync(descriptor)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, _FOLDER)
    try:
        fsync(folder, path.name)
    finally:
        os.close(folder)


def announce(call: str, subject: str) -> None:
    """Call the test hook; used before every system call that changes the disk."""
    if before_change_hook is not None:
        before_change_hook(call, subject)


class InPlaceFile:
    """A file that is written in any order, over several runs of the program, before it is complete.

    Several threads may read and write; one of them closes it.
    """

    def __init__(self, tree: Tree, path: Path, mode: int = 0o644) -> None:
        """Open the file, or create it. A symbolic link of that name is refused."""
        self._tree = tree
        self.path = path
        with store_errors("write", path), tree.folder_of(path, create=True) as folder:
            announce("create", path.name)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path.name, flags, mode, dir_fd=folder)

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def lock(self) -> bool:
        """Lock the file until ``close``. Returns False if another holder has it or has just renamed it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._file), os.lstat(self.path))
        except OSError:
            return False

    def resize(self, size: int) -> None:
        """Truncate or extend the file; new bytes are zeros and occupy no disk blocks."""
        with store_errors("write", self.path):
            announce("truncate", self.path.name)
            os.ftruncate(self._file, size)

    def write_at(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        with store_errors("write", self.path):
            while view:
                announce("write", self.path.name)
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written

    def read_at(self, size: int, offset: int) -> bytes:
        with store_errors("read", self.path, reading=True):
            return os.pread(self._file, size, offset)

    def sync(self) -> None:
        """Flush the file to disk."""
        with store_errors("write", self.path):
            fsync(self._file, self.path.name)

    def commit(self, path: Path) -> None:
        """Sync the file, then rename it to ``path`` in the same folder."""
        self.sync()
        self._tree.rename(self.path, path.name)

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
