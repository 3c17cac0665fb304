"""Files of a Modelfile on their way to the server: which files a FROM means, their digests, and the uploads.

Paths are relative to the Modelfile's folder; a FROM that is not an existing path is a model's name.

A server on this machine whose models folder this user can write needs no upload: files go there directly. To prove that
it is the same folder, a blob of random bytes is put there, and the server has to report that it has that blob. No path
is ever sent: the server identifies blobs by their digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ollama_nb.api.names import Digest
from ollama_nb.api.parts import FilePart, check_parts
from ollama_nb.client.client import Client
from ollama_nb.disk import TEMP_PREFIX, open_regular
from ollama_nb.errors import BadRequest, OllamaError, StoreError
from ollama_nb.modelfile import Parts
from ollama_nb.net import is_loopback_url
from ollama_nb.settings import Settings
from ollama_nb.store.blobs import CHUNK, BlobStore

NO_WEIGHTS = "no Modelfile or safetensors files found"
SNIFFED = 512  # bytes from the start of a file that decide its content type

_BINARY, _TEXT, _ZIP = "application/octet-stream", "text/plain", "application/zip"
_Group = tuple[tuple[str, ...], str]
"""Patterns of file names, and the content type that the files must have."""

_ADAPTERS: _Group = (("adapter_model*.safetensors", "adapters.safetensors"), "")
# All files of the first group with a match are used.
_WEIGHTS: tuple[_Group, ...] = (
    (("model*.safetensors", "*/model*.safetensors"), ""),
    _ADAPTERS,
    (("consolidated*.safetensors",), ""),
    (("*.safetensors",), ""),
    (("pytorch_model*.bin",), _ZIP),
    (("consolidated*.pth",), _ZIP),
    (("*.gguf",), _BINARY),
    (("*.bin",), _BINARY),
)
# Files that a converter needs beside the weights; a GGUF file contains all of it.
_COMPANIONS: tuple[_Group, ...] = (
    (("*.json", "*/*.json"), _TEXT),
    (("chat_template.jinja", "vocab.txt", "merges.txt"), _TEXT),
    (("tokenizer.model", "*/tokenizer.model"), _BINARY),
)
# The same beside a file that was named alone. Its folder may contain unrelated files, which must not be sent anywhere.
_NEIGHBOURS: tuple[_Group, ...] = (
    (
        (
            *("config.json", "generation_config.json", "adapter_config.json", "modules.json", "[0-9]_*/config.json"),
            *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
            *("chat_template.json", "chat_template.jinja", "vocab.txt", "merges.txt", "model.safetensors.index.json"),
        ),
        _TEXT,
    ),
    (("tokenizer.model",), _BINARY),
    (("[0-9]_*/model.safetensors",), ""),
)
_SELF_CONTAINED = {".gguf"}


@dataclass(frozen=True, slots=True)
class ModelSources:
    """What a create starts from: a model's name, or files by the names that the server receives."""

    from_: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)
    adapters: Mapping[str, Path] = field(default_factory=dict)
    draft: Mapping[str, Path] = field(default_factory=dict)

    def paths(self) -> tuple[Path, ...]:
        """All files, each once."""
        return tuple(dict.fromkeys([*self.files.values(), *self.adapters.values(), *self.draft.values()]))


def resolve_sources(parts: Parts, folder: Path) -> ModelSources:
    """The model name or the files that a Modelfile's FROM, ADAPTER and DRAFT mean. Raises BadRequest."""
    names, files = [], []
    for value in parts.from_:
        path = expand(value, folder)
        if path.exists():
            files += model_files(path)
        elif _looks_like_a_path(value):
            raise BadRequest(f"FROM {value}: no such file or folder")
        else:
            names.append(value)
    if names and files:
        raise BadRequest(f'FROM takes a model or local files, not both: "{names[-1]}" is not a file')
    adapters = [file for value in parts.adapters for file in _local_files("ADAPTER", value, folder)]
    draft = _local_files("DRAFT", parts.draft, folder) if parts.draft else []
    if any(file.samefile(other) for file in draft for other in files):
        raise BadRequest(f"DRAFT must not reference the same local path as FROM: {parts.draft}")
    named = [relative_names(group) for group in (files, adapters, draft)]
    for group in named:
        check_parts(group)
    return ModelSources(names[-1] if names else "", *named)


def expand(value: str, folder: Path) -> Path:
    """The path that a Modelfile's value means: ``~`` and ``~user`` are expanded, the rest is relative to ``folder``."""
    try:
        return folder / Path(value).expanduser()
    except RuntimeError:  # unknown user
        return folder / value


def _looks_like_a_path(value: str) -> bool:
    """Whether a value is meant as a path: model names begin and end differently."""
    return value.startswith((".", "/", "~")) or ("/" not in value and value.endswith((".gguf", ".safetensors")))


def model_files(path: Path, *, adapter: bool = False) -> list[Path]:
    """The weights that a path means, with their configuration and tokenizer. Raises BadRequest.

    A file brings along its other parts and, if it is part of a checkpoint, what a conversion needs beside it. In a
    folder, ``adapter`` prefers the weights of an adapter.
    """
    if not path.is_dir():
        beside = _all_matching(path.parent, _NEIGHBOURS) if path.suffix == ".safetensors" else []
        return [*_all_parts(path), *(file for file in beside if file.name != path.name)]
    for patterns, content in (_ADAPTERS, *_WEIGHTS) if adapter else _WEIGHTS:
        weights = _matching(path, patterns, content)
        if weights:
            if weights[0].suffix in _SELF_CONTAINED:
                return weights
            return weights + _projectors_beside(path, weights[0]) + _all_matching(path, _COMPANIONS)
    raise BadRequest(NO_WEIGHTS)


def _all_parts(path: Path) -> list[Path]:
    """The existing parts of a model of which ``path`` is one; ``path`` alone if it is whole."""
    part = FilePart.of(path.name)
    if part is None:
        return [path]
    siblings = {FilePart.of(file.name): file for file in path.parent.glob(f"*{part.suffix}")}
    same = [(other, file) for other, file in siblings.items() if other and other.set == part.set]
    return [file for _, file in sorted(same, key=lambda pair: pair[0].number)]


def _projectors_beside(folder: Path, weights: Path) -> list[Path]:
    """The projectors in GGUF beside a checkpoint. Raises BadRequest for other GGUF files: they are models as well."""
    found = _matching(folder, ("*.gguf",), _BINARY)
    for file in found:
        if not file.name.lower().startswith("mmproj"):
            raise BadRequest(
                f'the folder has two models, "{weights.name}" and "{file.name}": name the file to use in FROM'
            )
    return found


def relative_names(files: Iterable[Path]) -> dict[str, Path]:
    """The files by their paths below their longest common folder, with ``/``; a single file by its own name."""
    absolute = list(dict.fromkeys(Path(os.path.normpath(file.absolute())) for file in files))
    if not absolute:
        return {}
    common = Path(os.path.commonpath([file.parent for file in absolute]))
    return {file.relative_to(common).as_posix(): file for file in absolute}


def file_digest(path: Path) -> str:
    """``sha256:…`` of a file's content. Raises BadRequest for what is not a regular file."""
    with open_regular(path) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def send(
    client: Client,
    shared: SharedStore | None,
    path: Path,
    digest: str,
    report: Callable[[int, int], None],
    *,
    link: bool = False,
) -> None:
    """Give a file to the server: through the shared store if there is one, else by an upload."""
    if shared is None:
        upload(client, path, digest, report)
    elif not client.has_blob(digest):
        shared.add(path, digest, report, link=link)


def upload(client: Client, path: Path, digest: str, report: Callable[[int, int], None]) -> None:
    """Upload a file unless the server has it; ``report(bytes sent, bytes in total)`` is called for every block."""
    if client.has_blob(digest):
        return
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        client.upload_blob(digest, _CountingFile(file, lambda sent: report(sent, size)), size)


def create_fields(parts: Parts, found: ModelSources, digests: Mapping[Path, str]) -> dict[str, Any]:
    """The fields of ``POST /api/create``, without the model's name; empty ones are left out."""
    fields = {
        "from": found.from_,
        "files": {name: digests[path] for name, path in found.files.items()},
        "adapters": {name: digests[path] for name, path in found.adapters.items()},
        "draft_files": {name: digests[path] for name, path in found.draft.items()},
        "template": parts.template,
        "system": parts.system,
        "license": [*parts.licenses],
        "parameters": dict(parts.parameters),
        "messages": [{"role": message.role, "content": message.content} for message in parts.messages],
        "renderer": parts.renderer,
        "parser": parts.parser,
        "requires": parts.requires,
    }
    return {name: value for name, value in fields.items() if value}


class _CountingFile:
    """A file that reports how many bytes were read."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file, self._report, self._sent = file, report, 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self._sent += len(block)
        self._report(self._sent)
        return block


def _local_files(command: str, value: str, folder: Path) -> list[Path]:
    path = expand(value, folder)
    if not path.exists():
        raise BadRequest(f"{command} {value}: no such file or folder")
    return model_files(path, adapter=command == "ADAPTER")


def _all_matching(folder: Path, groups: Iterable[_Group]) -> list[Path]:
    return [file for patterns, content in groups for file in _matching(folder, patterns, content)]


def _matching(folder: Path, patterns: tuple[str, ...], content: str) -> list[Path]:
    """The regular files of a folder that match. A file that a link to a folder shows again is listed once."""
    root = folder.resolve()
    matching = (file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file())
    found: dict[tuple[Path, str], Path] = {}
    for file in matching:
        found.setdefault((file.parent.resolve(), file.name), file)
    for file in found.values():
        if not file.resolve().is_relative_to(root):
            hint = " (download it with --local-dir instead)" if "snapshots" in root.parts else ""
            raise BadRequest(f"insecure path: {file.name} is outside of its folder{hint}")
        if content and content_type(file) != content:
            raise BadRequest(f"invalid content type: expected {content} for {file.name}")
    return [*found.values()]


def content_type(file: Path) -> str:
    """``application/zip``, ``text/plain`` or ``application/octet-stream``, from the first bytes."""
    with open_regular(file) as opened:
        start = opened.read(SNIFFED)
    if start.startswith(b"PK\x03\x04"):
        return _ZIP
    # Control characters that do not occur in text (WHATWG mimesniff: binary data bytes).
    binary = any(byte < 9 or byte == 11 or 14 <= byte <= 26 or 28 <= byte <= 31 for byte in start)
    return _BINARY if binary else _TEXT


# The store of a server on this machine


class SharedStore:
    """The blob folder of a server on this machine, which this process may write."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    @classmethod
    def find(cls, client: Client, models: Path | None = None) -> SharedStore | None:
        """The store of ``client``'s server, None when this process does not share it.

        ``models`` is the folder to check, by default that of this user's settings.
        """
        if not is_loopback_url(client.url):
            return None
        blobs = BlobStore((Settings.from_env().models if models is None else models) / "blobs")
        if not blobs.root.is_dir():
            return None
        with contextlib.suppress(OllamaError):  # a folder that cannot be written is not shared
            proof = blobs.add(secrets.token_bytes(32))
            try:
                return cls(blobs) if client.has_blob(str(proof)) else None
            finally:
                blobs.remove(proof)
        return None

    def add(self, path: Path, digest: str, report: Callable[[int, int], None], *, link: bool = False) -> None:
        """Add a file as a blob: as a clone where the file system supports that, else as a copy.

        ``link`` makes a hard link instead, so a later change of the file changes the blob. Raises StoreError when the
        file has changed since its digest was computed, or cannot be linked.
        """
        wanted = Digest.parse(digest)
        if link:
            self._link(path, wanted)
        elif not self._clone(path, wanted):
            self._copy(path, wanted, report)

    def _clone(self, path: Path, wanted: Digest) -> bool:
        with open_regular(path) as source, self._blobs.tree.temp() as temp:
            if not temp.clone(source):
                return False
            _check_digest(temp.path, wanted, path)
            temp.commit(self._blobs.tree, self._blobs.path(wanted))
        return True

    def _copy(self, path: Path, wanted: Digest, report: Callable[[int, int], None]) -> None:
        size = path.stat().st_size
        self._blobs.require_space(size)
        with open_regular(path) as source, self._blobs.writer() as writer:
            while chunk := source.read(CHUNK):
                writer.write(chunk)
                report(writer.size, size)
            if writer.digest != wanted:
                raise _changed(path)
            writer.commit(wanted)

    def _link(self, path: Path, wanted: Digest) -> None:
        tree, temporary = self._blobs.tree, self._blobs.root / f"{TEMP_PREFIX}{secrets.randbelow(10**18)}"
        tree.link(path, temporary)
        try:
            _check_digest(temporary, wanted, path)
            tree.rename(temporary, wanted.filename)
        finally:
            tree.remove(temporary)


def _check_digest(made: Path, wanted: Digest, source: Path) -> None:
    with open_regular(made) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wanted.hex:
            raise _changed(source)


def _changed(path: Path) -> StoreError:
    return StoreError(f"{path.name} changed while it was read; try again")
