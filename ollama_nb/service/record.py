"""The record by which a run can be repeated: told beside the answer, when asked for."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import Any

from ollama_nb.api.encode import shortest
from ollama_nb.api.models import Model
from ollama_nb.api.options import Options
from ollama_nb.service.options import SEED_BITS


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
        "seed": options.seed & SEED_BITS,
        "engine_build": build,
    }


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"
