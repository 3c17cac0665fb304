"""Find the GGUF files of other programs on this disk: the Hugging Face cache and LM Studio's folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ollama_nb.store.gguf import is_gguf

MAX_FILES = 20_000  # files, and folders that are searched
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_QUANT = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32))$", re.IGNORECASE)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class DiscoveredModel:
    """A model that can be created from existing files.

    ``paths`` are all its files, weights first; ``size`` is their total size in bytes.
    """

    name: str
    source: str
    paths: tuple[Path, ...]
    size: int


def discover(env: Mapping[str, str]) -> list[DiscoveredModel]:
    """Search the usual folders; models are sorted by source and name. Invalid files and other formats are skipped."""
    home = Path(env.get("HOME") or Path.home())
    hub = env.get("HF_HUB_CACHE") or Path(env.get("HF_HOME") or home / ".cache" / "huggingface") / "hub"
    locations = [
        *(
            (location, "Hugging Face", _repository_name(location.name))
            for location in _subfolders(Path(hub), "models--*--*")
        ),
        *(
            (location, "LM Studio", location.name)
            for root in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models")
            for location in _subfolders(root, "*/*")
        ),
    ]
    found: dict[tuple[Path, ...], DiscoveredModel] = {}
    names: set[str] = set()
    for location, source, repository in locations:
        for model in _find_models(location, source, repository, names):
            found.setdefault(tuple(path.resolve() for path in model.paths), model)
            names.add(model.name)
    return sorted(found.values(), key=lambda model: (model.source, model.name))


def _find_models(location: Path, source: str, repository: str, taken: set[str]) -> Iterator[DiscoveredModel]:
    """Yield the models of one repository, newest snapshot last; the parts of a split model count as one."""
    files = [path for path in _find_ggufs(location) if is_gguf(path)]
    projectors = {path.parent: path for path in reversed(files) if path.name.lower().startswith("mmproj")}
    weights = [path for path in files if not path.name.lower().startswith("mmproj")]
    for path in weights:
        part = _PART.fullmatch(path.stem)
        if part and part[2] != "00001":
            continue
        parts = [other for other in weights if _is_same_split(other, path, part)] if part else [path]
        if part and len(parts) != int(part[3]):
            continue  # an incomplete download
        companion = projectors.get(path.parent)
        paths = (*parts, *([companion] if companion else ()))
        name = _model_name(part[1] if part else path.stem, repository)
        unique = next(text for text in (name, *(f"{name}-{n}" for n in range(2, 1000))) if text not in taken)
        yield DiscoveredModel(unique, source, paths, sum(file.stat().st_size for file in paths))


def _is_same_split(other: Path, first: Path, part: re.Match[str]) -> bool:
    found = _PART.fullmatch(other.stem)
    return other.parent == first.parent and found is not None and (found[1], found[3]) == (part[1], part[3])


def _model_name(stem: str, repository: str) -> str:
    """Derive ``model:quantization`` in lower case from the file name, or from the repository if that is generic."""
    quant = _QUANT.search(stem)
    model = stem[: quant.start()] if quant else stem
    if not model or model.lower() in ("model", "ggml-model"):
        model = re.sub(r"[-_.]gguf$", "", repository, flags=re.IGNORECASE)
    model = _NOT_IN_NAMES.sub("-", model).strip("-._").lower()[:80] or "model"
    tag = _NOT_IN_NAMES.sub("-", quant[1]).lower() if quant else "latest"
    return f"{model}:{tag}"


def _repository_name(folder: str) -> str:
    """``models--ORG--NAME`` → ``NAME``."""
    return folder.split("--", 2)[-1]


def _subfolders(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in root.glob(pattern) if path.is_dir())
    except OSError:
        return []


def _find_ggufs(location: Path) -> list[Path]:
    """List GGUF files by name, older snapshots first; at most ``MAX_FILES`` folders are searched."""
    found = []
    for number, (folder, _, names) in enumerate(os.walk(location)):
        if number > MAX_FILES:
            break
        found += [Path(folder, name) for name in names if name.lower().endswith(".gguf")]
    return sorted(path for path in found if path.is_file())[:MAX_FILES]
