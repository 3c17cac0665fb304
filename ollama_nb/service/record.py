"""What a caller wants to know about a run beside its answer: everything that was ignored, and how to repeat it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ollama_nb.api.encode import shortest
from ollama_nb.api.models import Model
from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest

_SEED_BITS = 0xFFFFFFFF


def options_in_force(
    model: Model, asked: Mapping[str, Any], ignored: tuple[str, ...], *, strict: bool
) -> tuple[Options, tuple[str, ...]]:
    """The model's options and the request's above them, with a warning for each thing of the request that is ignored.

    Raises BadRequest for a value of the wrong type and, when ``strict``, for anything that the request has in vain.
    """
    options, warnings = Options.layered(model.params, asked)
    if strict and (vain := (*ignored, *Options.layered(asked)[1])):
        raise BadRequest("; ".join(vain))
    return options, (*ignored, *warnings)


def seeded(options: Options) -> Options:
    """The same options with the seed that will be used: a random one is drawn now, so that it can be told."""
    seed = secrets.randbelow(_SEED_BITS) if options.seed == -1 else options.seed
    return replace(options, seed=seed)


def run_record(
    *, model: Model, template: str, options: Options, num_ctx: int, prompt: str, build: str
) -> dict[str, Any]:
    """Enough to repeat a run: the same model file, template, prompt, options and engine give the same answer."""
    in_force = {name: value for name, value in asdict(replace(options, num_ctx=num_ctx)).items() if value is not None}
    # Options are kept as float32: told as short as that allows, 0.9 and not 0.8999999761581421.
    told = {name: shortest(value) if isinstance(value, float) else value for name, value in in_force.items()}
    told["logit_bias"] = {name: shortest(value) for name, value in options.logit_bias}
    return {
        "model": model.name.short,
        "model_digest": f"sha256:{model.digest}",
        "template_hash": _hash(template),
        "prompt_hash": _hash(prompt),
        "options": told,
        "seed": options.seed & _SEED_BITS,
        "engine_build": build,
    }


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"
