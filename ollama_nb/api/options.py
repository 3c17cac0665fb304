"""Generation options with Ollama's names, types and defaults. A request's values override the model's."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.encode import float32
from ollama_nb.errors import BadRequest

SEED_MASK = 0xFFFFFFFF  # seeds are unsigned 32-bit numbers
MAX_SEED = SEED_MASK - 1  # llama.cpp takes a random seed for SEED_MASK itself
MAX_STOPS = 256  # stop strings of a request
MAX_STOP_LENGTH = 8192  # characters of a stop string
MIN_CONTEXT = 4  # tokens: the shortest context
_INT32 = (-(1 << 31), (1 << 31) - 1)
RANGES: dict[str, tuple[int, int]] = {
    "num_ctx": (MIN_CONTEXT, 1 << 24),  # tokens: times 255 sequences it still fits into 32 bits
    "num_batch": (_INT32[0], 1 << 16),  # tokens: arrays of this length are allocated
    "num_gpu": (_INT32[0], 10_000),  # layers
    "main_gpu": (0, 255),
    "num_thread": (_INT32[0], 512),  # threads: ggml's limit; the server's machine has a lower one
    "seed": (-(1 << 62), 1 << 62),  # its lower 32 bits count
}
"""Option → least and greatest value, for whole numbers that are not simply 32 bits wide. 0 is always valid: the server
chooses."""
_BIAS = "logit_bias"
_MAX_BIASES = 1024  # entries of logit_bias
_MAX_NAME = 64  # characters of an unknown name in a warning
MAX_WARNINGS = 16  # warnings about unknown options
_MAX_BIAS = 1e4  # above any difference of two logits: forbids a token, or all others


def draw_seed() -> int:
    """Return a random seed, for a request with seed -1."""
    return secrets.randbelow(MAX_SEED + 1)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one request. None means that the engine chooses; special values such as -1 are Ollama's."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0
    draft_num_predict: int | None = None
    num_keep: int = 4
    num_predict: int = -1
    seed: int = -1
    stop: tuple[str, ...] = ()
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[str, float], ...] = ()
    """Token ids or texts, and the numbers that are added to their logits. Only requests can set it."""

    @classmethod
    def layered(cls, *layers: Mapping[str, Any]) -> tuple[Options, tuple[str, ...]]:
        """Merge option objects, where later ones override; return the options, and a warning for each unknown name and
        for each whole number out of its range: the nearest one in range is used.

        Raises BadRequest for a value of the wrong type or one that no request can use.
        """
        values: dict[str, Any] = {}
        unknown: dict[str, None] = {}
        limited: dict[str, str] = {}
        for layer in layers:
            for name, value in layer.items():
                if value is None:
                    continue
                if name == _BIAS:
                    values[name] = _biases(value)
                    continue
                kind = KINDS.get(name)
                if kind is None:
                    unknown[name] = None
                else:
                    values[name] = in_range = _typed(name, value, kind)
                    limited.pop(name, None)
                    if kind == "int" and in_range != int(value):
                        limited[name] = f'option "{name}" is out of range: {in_range} is used'
        options = cls(**values)
        _check_usable(options)
        return options, (*_unknown_names(list(unknown)), *limited.values())


KINDS: dict[str, str] = {
    f.name: next(kind for kind in ("bool", "int", "float", "tuple") if str(f.type).startswith(kind))
    for f in dataclasses.fields(Options)
    if f.name != _BIAS
}
"""Option name → ``bool``, ``int``, ``float`` or ``tuple`` (of strings), for the options that a Modelfile can set."""

DEPRECATED = frozenset(
    {
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "numa",
        "embedding_only",
        "tfs_z",
    }
)
"""Old names, which are accepted with a warning and have no effect."""


def _unknown_names(names: list[str]) -> tuple[str, ...]:
    """A warning for each of the first ones, with a similar name, and one for all others."""
    found = tuple(_unknown(name[:_MAX_NAME]) for name in names[:MAX_WARNINGS])
    left = len(names) - len(found)
    return (*found, f"{left} more unknown options are left out") if left else found


def _check_usable(options: Options) -> None:
    if len(options.stop) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in options.stop):
        raise BadRequest(f"at most {MAX_STOPS} stop strings of {MAX_STOP_LENGTH} characters each can be used")
    if options.repeat_penalty <= 0:
        raise BadRequest('option "repeat_penalty" must be greater than 0; 1.0 turns it off')


def _unknown(name: str) -> str:
    if name in DEPRECATED:
        return f'option "{name}" is deprecated and has no effect'
    near = difflib.get_close_matches(name, (*KINDS, _BIAS), n=1)
    return f'unknown option "{name}"' + (f', did you mean "{near[0]}"?' if near else "")


def _typed(name: str, value: Any, kind: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRequest(f'option "{name}" must be a finite number')
    if kind == "int":
        if not number:
            raise BadRequest(f'option "{name}" must be of type integer')
        least, most = RANGES.get(name, _INT32)
        return max(least, min(int(value), most)) if value else 0
    if kind == "float":
        if not number:
            raise BadRequest(f'option "{name}" must be of type float32')
        return _float32(name, value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise BadRequest(f'option "{name}" must be of type boolean')
        return value
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f'option "{name}" must be of type array')
    if not all(isinstance(item, str) for item in value):
        raise BadRequest(f'option "{name}" must be of an array of strings')
    return tuple(value)


def _biases(value: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, Mapping):
        raise BadRequest(f'option "{_BIAS}" must be an object from tokens or texts to numbers')
    if len(value) > _MAX_BIASES:
        raise BadRequest(f'option "{_BIAS}" may have {_MAX_BIASES} entries at most')
    pairs = [(str(name), _typed(_BIAS, number, "float")) for name, number in value.items()]
    return tuple((name, max(-_MAX_BIAS, min(number, _MAX_BIAS))) for name, number in pairs if name)


def _float32(name: str, value: float) -> float:
    """Also for whole numbers of any length."""
    with contextlib.suppress(OverflowError):
        if math.isfinite(rounded := float32(float(value))):
            return rounded
    raise BadRequest(f'option "{name}" is out of range')
