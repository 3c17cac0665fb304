"""Which options a request runs with: the model's, the request's own above them, a seed that can be told."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ollama_nb.api.models import Model
from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest

SEED_BITS = 0xFFFFFFFF


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
    seed = secrets.randbelow(SEED_BITS) if options.seed == -1 else options.seed
    return replace(options, seed=seed)
