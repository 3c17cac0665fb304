"""Options: ranges of numbers."""

from __future__ import annotations

import math

import pytest

from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest


def test_whole_numbers_are_brought_into_range_with_a_warning() -> None:
    """S8: a value that native code could not take is replaced by the nearest one that it can."""
    huge = {"num_thread": 2**31 - 1, "num_ctx": -5, "main_gpu": -1, "top_k": 2**31, "seed": 10**400, "num_batch": 1e300}
    options, warnings = Options.layered(huge)
    assert (options.num_thread, options.num_ctx, options.main_gpu) == (512, 4, 0)
    assert (options.top_k, options.seed, options.num_batch) == (2**31 - 1, 1 << 62, 1 << 16)
    assert [warning.partition(" is out of range: ")[0] for warning in warnings] == [f'option "{name}"' for name in huge]
    assert Options.layered({"num_ctx": 0, "main_gpu": 0, "seed": 2**40, "top_k": 40.7})[1] == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_floats_that_are_not_finite_are_refused(value: float) -> None:
    """S8: NaN, infinity and numbers beyond a float32."""
    with pytest.raises(BadRequest, match='option "temperature"'):
        Options.layered({"temperature": value})
