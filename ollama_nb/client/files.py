"""From a Modelfile's paths to files on the server: which files a FROM means, their digests, and the uploads.

Paths are relative to the Modelfile's folder; a FROM that is no existing path is a model's name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ollama_nb.client.client import Client
from ollama_nb.client.shared import SharedStore
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import Parts

NO_WEIGHTS = "no Modelfile or safetensors files found"
SNIFFED = 512

_BINARY, _TEXT, _ZIP = "application/octet-stream", "text/plain", "application/zip"
# The first group with a match is taken whole; the second column is what each file must look like.
_WEIGHTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("model*.safetensors", "*/model*.safetensors"), ""),
    (("adapter_model*.safetensors", "adapters.safetensors"), ""),
    (("consolidated*.safetensors",), ""),
    (("pytorch_model*.bin",), _ZIP),
    (("consolidated*.pth",), _ZIP),
    (("*.gguf",), _BINARY),
    (("*.bin",), _BINARY),
)
# What a converter needs beside the weights; a GGUF carries it all in itself.
_BESIDE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("*.json", "*/*.json"), _TEXT),
    (("chat_template.jinja", "vocab.txt", "merges.txt"), _TEXT),
    (("tokenizer.model", "*/tokenizer.model"), _BINARY),
)
_CARRIES_ALL = {".gguf"}


@dataclass(frozen=True, slots=True)
class Sources:
    """What a create starts from: a model's name, or files by the names that the server will know them by."""

    from_: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)
    adapters: Mapping[str, Path] = field(default_factory=dict)
    draft: Mapping[str, Path] = field(default_factory=dict)

    def paths(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys([*self.files.values(), *self.adapters.values(), *self.draft.values()]))


def sources(parts: Parts, folder: Path) -> Sources:
    """Sort a Modelfile's FROM, ADAPTER and DRAFT values into a name and files. Raises BadRequest."""
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
        raise BadRequest(f'FROM takes a model or local files, not both: "{names[-1]}" is no file here')
    adapters = [file for value in parts.adapters for file in _beside("ADAPTER", value, folder)]
    draft = _beside("DRAFT", parts.draft, folder) if parts.draft else []
    if any(file.samefile(other) for file in draft for other in files):
        raise BadRequest(f"DRAFT must not reference the same local path as FROM: {parts.draft}")
    return Sources(names[-1] if names else "", relative_names(files), relative_names(adapters), relative_names(draft))


def expand(value: str, folder: Path) -> Path:
    """The path that a Modelfile's value means: ``~`` and ``~user`` are expanded, the rest is relative to ``folder``."""
    try:
        return folder / Path(value).expanduser()
    except RuntimeError:  # no such user
        return folder / value


def _looks_like_a_path(value: str) -> bool:
    """No model's name begins like this; one that ends like a file of weights is more likely a slip than a name."""
    return value.startswith((".", "/", "~")) or ("/" not in value and value.endswith((".gguf", ".safetensors")))


def model_files(path: Path) -> list[Path]:
    """The file itself, or a folder's weights with what belongs to them. Raises BadRequest."""
    if not path.is_dir():
        return [path]
    for patterns, content in _WEIGHTS:
        weights = _matching(path, patterns, content)
        if weights:
            alone = weights[0].suffix in _CARRIES_ALL
            return weights if alone else weights + [f for p, c in _BESIDE for f in _matching(path, p, c)]
    raise BadRequest(NO_WEIGHTS)


def relative_names(files: Iterable[Path]) -> dict[str, Path]:
    """Names below the longest folder that all have in common, with ``/``; a single file has its own name."""
    absolute = list(dict.fromkeys(Path(os.path.normpath(file.absolute())) for file in files))
    if not absolute:
        return {}
    common = Path(os.path.commonpath([file.parent for file in absolute]))
    return {file.relative_to(common).as_posix(): file for file in absolute}


def file_digest(path: Path) -> str:
    """``sha256:…`` of a file's content."""
    with path.open("rb") as file:
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
    """Have the server hold a file: straight in the store that is shared with it, else by an upload."""
    if shared is None:
        upload(client, path, digest, report)
    elif not client.has_blob(digest):
        shared.take(path, digest, report, link=link)


def upload(client: Client, path: Path, digest: str, report: Callable[[int, int], None]) -> None:
    """Send a file unless the server has it; ``report(bytes sent, bytes in all)`` as it goes."""
    if client.has_blob(digest):
        return
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        client.upload_blob(digest, _Counted(file, lambda sent: report(sent, size)), size)


def create_fields(parts: Parts, found: Sources, digests: Mapping[Path, str]) -> dict[str, Any]:
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


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file, self._report, self._sent = file, report, 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self._sent += len(block)
        self._report(self._sent)
        return block


def _beside(command: str, value: str, folder: Path) -> list[Path]:
    path = expand(value, folder)
    if not path.exists():
        raise BadRequest(f"{command} {value}: no such file or folder")
    return model_files(path)


def _matching(folder: Path, patterns: tuple[str, ...], content: str) -> list[Path]:
    root = folder.resolve()
    found = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]
    for file in found:
        if not file.resolve().is_relative_to(root):
            hint = " (download it with --local-dir instead)" if "snapshots" in root.parts else ""
            raise BadRequest(f"insecure path: {file.name} leads out of its folder{hint}")
        if content and content_type(file) != content:
            raise BadRequest(f"invalid content type: expected {content} for {file.name}")
    return found


def content_type(file: Path) -> str:
    """``application/zip``, ``text/plain`` or ``application/octet-stream``, from the first bytes."""
    with file.open("rb") as opened:
        start = opened.read(SNIFFED)
    if start.startswith(b"PK\x03\x04"):
        return _ZIP
    # The control characters that no text has (WHATWG mimesniff: binary data bytes).
    binary = any(byte < 9 or byte == 11 or 14 <= byte <= 26 or 28 <= byte <= 31 for byte in start)
    return _BINARY if binary else _TEXT
