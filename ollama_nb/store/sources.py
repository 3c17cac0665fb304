"""Bring the files of a create request to GGUF: convert checkpoints, merge split files, quantize weights.

This module decides what is necessary and stores the results as blobs; a :class:`GgufConverter` does the work.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, Protocol

from ollama_nb import disk
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import GGUF
from ollama_nb.api.names import Digest
from ollama_nb.api.parts import FilePart
from ollama_nb.errors import BadRequest, NotFound
from ollama_nb.store import quantization
from ollama_nb.store.gguf import gguf_kind, is_gguf
from ollama_nb.store.store import Store
from ollama_nb.store.workdir import locked_workdir

WorkProgress = Callable[[int, int], None]  # called with the progress: done, total

QUANTIZING, CONVERTING = "0000000000000000000", "0000000000000000001"
"""Placeholder digests for progress lines of unfinished files. Clients draw one bar per digest."""

PICKLED = "unknown type: PyTorch checkpoints can contain arbitrary code; save the model as safetensors"
_PICKLES = (".bin", ".pt", ".pth")  # suffixes of PyTorch checkpoints


class GgufConverter(Protocol):
    """Writes GGUF files. Every method blocks and reports its progress as bytes done and in total."""

    def convert(self, folder: Path, target: Path, output: str, report: WorkProgress) -> tuple[str, ...]:
        """Convert the checkpoint in ``folder``; return notes for the user."""

    def adapt(self, folder: Path, target: Path, base: Mapping[str, Any], report: WorkProgress) -> None:
        """Convert the LoRA adapter in ``folder`` for the model with the metadata ``base``."""

    def quantize(
        self,
        source: Path,
        target: Path,
        file_type: int | None,
        report: WorkProgress,
        kept: Mapping[str, int] | None = None,
    ) -> None:
        """Quantize ``source`` to ``file_type``, or merge a split file if that is None.

        ``kept`` maps regular expressions of tensor names to other tensor types.
        """


class KnownTemplate(Protocol):
    """A known prompt template with its name and its parameters."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...


class FamilyDefaults(Protocol):
    """The renderer, parser and parameters of a model family."""

    @property
    def renderer(self) -> str: ...
    @property
    def parser(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class CreateTools:
    """What creating a model needs from other packages.

    ``recognise`` maps the chat template of a GGUF to the known template that is equivalent, ``family_defaults`` maps an
    architecture to the defaults of models that are created from files without renderer and parser. ``temp`` is the
    folder for temporary links to blobs. ``cancelled`` ends the request.
    """

    converter: GgufConverter | None = None
    recognise: Callable[[str], KnownTemplate | None] = lambda text: None
    family_defaults: Callable[[str], FamilyDefaults | None] = lambda architecture: None
    temp: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    cancelled: Event | None = None


@dataclass(frozen=True, slots=True)
class GgufSource:
    """A GGUF in the store and its path in the request. ``fresh``: this request has created it."""

    path: str
    digest: Digest
    gguf: GGUF
    fresh: bool = False


class GgufSources:
    """Converts the files of one create request to GGUF where necessary."""

    def __init__(self, store: Store, tools: CreateTools, report: Report) -> None:
        self._store = store
        self._tools = tools
        self._report = report

    def model(self, files: Mapping[str, Digest], quantize: str = "", *, base: str = "") -> list[GgufSource]:
        """Return the GGUFs of a FROM: converted from a checkpoint, merged from shards, or as they are.

        ``base`` is the name of a model whose weights are used as well, so that ``files`` may have none. Raises
        BadRequest or CorruptModel, and BadRequest for several models.
        """
        checkpoint, ggufs = self._separate(files)
        sources = self._ggufs(ggufs) if ggufs or not checkpoint else []
        models = [*_weights_in(checkpoint)[:1], *_models_among(sources)]
        _require_one_model([base, *models] if base else models)
        found = self._merge_split_files(sources)
        return [self._convert_checkpoint(checkpoint, quantize), *found] if checkpoint else found

    def _convert_checkpoint(self, files: Mapping[str, Digest], quantize: str) -> GgufSource:
        _require_settings("checkpoint", "config.json", files)
        output = quantize if quantize in quantization.FLOATS else "F16"

        def convert(folder: Path, target: Path, count: WorkProgress) -> tuple[str, ...]:
            return self._converter.convert(folder, target, output, count)

        return self._convert("converting model", files, convert)

    def _separate(self, files: Mapping[str, Digest]) -> tuple[dict[str, Digest], dict[str, Digest]]:
        """The files of a checkpoint, and all others."""
        if not _weights_in(files):
            return {}, dict(files)
        ggufs = {path: digest for path, digest in files.items() if self._is_gguf(digest)}
        return {path: digest for path, digest in files.items() if path not in ggufs}, ggufs

    def adapter(self, files: Mapping[str, Digest], base: GGUF | None) -> list[GgufSource]:
        """Return the GGUFs of an ADAPTER: as they are, or converted from a LoRA checkpoint for the model ``base``."""
        if not any(path.endswith(".safetensors") for path in files):
            return self._ggufs(files)
        if base is None:
            raise BadRequest("no base model was found")
        _require_settings("adapter", "adapter_config.json", files)
        metadata = base.metadata

        def adapt(folder: Path, target: Path, count: WorkProgress) -> None:
            self._converter.adapt(folder, target, metadata, count)

        return [self._convert("converting adapter", files, adapt)]

    def quantize(self, source: GgufSource, wanted: str) -> GgufSource:
        """Quantize weights to the type ``wanted``. Raises BadRequest if they are already quantized."""
        found = quantization.type_of(source.gguf)
        if found not in quantization.FLOATS:
            raise BadRequest("quantization is only supported for F16, BF16 and F32 models")
        if found == wanted:
            return source
        overrides = quantization.type_overrides(wanted, source.gguf.architecture)
        blob = self._store.blobs.find(source.digest)
        return self._rewrite(source.path, blob, f"quantizing {found} model to {wanted}", wanted, overrides)

    @property
    def _converter(self) -> GgufConverter:
        if self._tools.converter is None:
            raise BadRequest("this server cannot convert models")
        return self._tools.converter

    # -- internal ----------------------------------------------------------------------------------------------------

    def _ggufs(self, files: Mapping[str, Digest]) -> list[GgufSource]:
        if files and not any(path.endswith(".gguf") or self._is_gguf(digest) for path, digest in files.items()):
            raise BadRequest(PICKLED if any(path.endswith(_PICKLES) for path in files) else "unknown type")
        return [self._source(path, digest) for path, digest in sorted(files.items())]

    def _source(self, path: str, digest: Digest) -> GgufSource:
        if not self._is_gguf(digest):
            raise BadRequest("supplied file was not in GGUF format")
        self._report(Progress("parsing GGUF"))
        return GgufSource(path, digest, self._store.gguf_at(self._store.blobs.find(digest)))

    def _is_gguf(self, digest: Digest) -> bool:
        if not self._store.blobs.has(digest):
            raise NotFound(f'blob "{digest}" not found')
        return is_gguf(self._store.blobs.find(digest))

    def _merge_split_files(self, sources: list[GgufSource]) -> list[GgufSource]:
        """Merge split files; the results follow the files that are not split."""
        whole = [source for source in sources if _part_count(source) <= 1]
        groups: dict[str, list[GgufSource]] = {}
        for source in sources:
            if _part_count(source) > 1:
                groups.setdefault(_stem(source), []).append(source)
        return whole + [self._merge(stem, group) for stem, group in groups.items()]

    def _merge(self, stem: str, group: list[GgufSource]) -> GgufSource:
        group.sort(key=lambda source: PurePosixPath(source.path).name)
        count, first = _part_count(group[0]), group[0]
        if len(group) != count or any(_part_count(source) != count for source in group):
            raise BadRequest(f'split GGUF "{first.path}" has {len(group)} shards, expected {count}')
        names = {PurePosixPath(source.path).name: source.digest for source in group}
        expected = [f"{PurePosixPath(stem).name}-{at + 1:05d}-of-{count:05d}.gguf" for at in range(count)]
        for at, name in enumerate(expected):
            if name not in names:
                raise BadRequest(f'split GGUF "{first.path}" is missing shard {at}')
        with self._linked_folder(names) as folder:
            return self._rewrite(f"{stem}.gguf", folder / expected[0], "validating GGUF model", None, {})

    def _rewrite(
        self, path: str, source: Path, status: str, wanted: str | None, overrides: Mapping[str, int]
    ) -> GgufSource:
        size = sum(part.stat().st_size for part in source.parent.iterdir()) if wanted is None else source.stat().st_size
        self._store.blobs.require_space(size)
        number = None if wanted is None else quantization.file_type_number(wanted)

        def fill(target: Path) -> None:
            count(0, 1)
            self._converter.quantize(source, target, number, count, overrides)
            count(1, 1)

        def count(done: int, total: int) -> None:
            self._report(Progress(status, QUANTIZING, size, done * size // max(1, total)))

        return self._store_result(path, fill)

    def _convert(
        self,
        status: str,
        files: Mapping[str, Digest],
        work: Callable[[Path, Path, WorkProgress], tuple[str, ...] | None],
    ) -> GgufSource:
        for digest in files.values():
            if not self._store.blobs.has(digest):
                raise NotFound(f'blob "{digest}" not found')
        self._report(Progress(status))
        self._store.blobs.require_space(sum(self._store.blobs.size(digest) or 0 for digest in files.values()))

        def count(done: int, total: int) -> None:
            self._report(Progress(status, CONVERTING, total, done))

        def fill(target: Path) -> None:
            for note in work(folder, target, count) or ():
                self._report(Progress(note))

        with self._linked_folder(_without_common_folder(files)) as folder:
            return self._store_result("model.gguf", fill)

    def _store_result(self, path: str, fill: Callable[[Path], None]) -> GgufSource:
        blobs = self._store.blobs
        digest = blobs.add_generated(
            fill, lambda: self._report(Progress("verifying conversion")), self._tools.cancelled
        )
        return GgufSource(path, digest, self._store.gguf_at(blobs.path(digest)), fresh=True)

    @contextmanager
    def _linked_folder(self, files: Mapping[str, Digest]) -> Iterator[Path]:
        """Create a folder with links to blobs under the file names that converters expect."""
        temp = self._tools.temp
        with locked_workdir(temp, "convert") as folder:
            with disk.store_errors("work in", temp):
                for path, digest in files.items():
                    try:
                        (folder / path).parent.mkdir(parents=True, exist_ok=True)
                        (folder / path).symlink_to(self._store.blobs.find(digest).absolute())
                    except (FileExistsError, NotADirectoryError) as error:
                        raise BadRequest(f"{path}: a file and a folder have the same name") from error
            yield folder


def _require_one_model(paths: Sequence[str]) -> None:
    """Raise BadRequest for several whole models, given by the path of each: a model has one set of weights."""
    if len(paths) > 1:
        raise BadRequest(
            f'"{paths[0]}" and "{paths[1]}" are two models: name one of them (another quantization is another model)'
        )


def _models_among(sources: Iterable[GgufSource]) -> list[str]:
    """A path for each whole model, which may have several parts; projectors and adapters do not count."""
    models: dict[str, str] = {}
    for source in sources:
        if gguf_kind(source.gguf) == "model":
            part = FilePart.of(source.path) if _part_count(source) > 1 else None
            models.setdefault(part.whole if part else source.path, source.path)
    return [*models.values()]


def _weights_in(files: Mapping[str, Digest]) -> list[str]:
    return [path for path in files if path.endswith(".safetensors")]


def _require_settings(what: str, name: str, files: Mapping[str, Digest]) -> None:
    """Raise BadRequest if the settings without which the weights cannot be read are not among ``files``."""
    inside = _without_common_folder(files)
    if name in inside:
        return
    first = _weights_in(files)[0]
    folders = {PurePosixPath(path).parent for path in _weights_in(inside)}
    if len(folders) > 1:
        _require_one_model(_weights_in(files))
    if what == "checkpoint" and (first.rpartition("/")[2].startswith("adapter") or "adapter_config.json" in inside):
        raise BadRequest(f'"{first}" is an adapter: name it in ADAPTER, and the model that it changes in FROM')
    raise BadRequest(
        f'the {what} "{first}" comes without its {name}: name the folder that contains both, or send both files'
    )


def _part_count(source: GgufSource) -> int:
    count = source.gguf.metadata.get("split.count")
    return count if type(count) is int else 0


def _stem(source: GgufSource) -> str:
    """Return the common stem of the shards of a split file. Raises BadRequest if the name is not that of a shard."""
    part = FilePart.of(source.path)
    if part is None:
        raise BadRequest(f'split GGUF "{source.path}" must use llama.cpp split filename pattern')
    if part.count != _part_count(source):
        counts = f"filename count {part.count} does not match metadata count {_part_count(source)}"
        raise BadRequest(f'split GGUF "{source.path}" {counts}')
    if source.gguf.metadata.get("split.no") != part.number - 1:
        numbers = f"filename index {part.number - 1} does not match metadata index"
        raise BadRequest(f'split GGUF "{source.path}" {numbers} {source.gguf.metadata.get("split.no")}')
    return part.stem


def _without_common_folder(files: Mapping[str, Digest]) -> dict[str, Digest]:
    common = posixpath.commonpath([posixpath.dirname(path) for path in files])
    return {str(PurePosixPath(path).relative_to(common)): digest for path, digest in files.items()}
