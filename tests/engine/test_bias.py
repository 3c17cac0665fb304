"""Logit bias: what it forbids, what it forces, and that a request without it is as before."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.output import FailOut, FinishOut, TextOut
from ollama_nb.engine.sequence import Request
from ollama_nb.errors import BadRequest


def reply(engine: Engine, bias: dict[str, Any], **fields: Any) -> str:
    options, _ = Options.layered({"logit_bias": bias, "temperature": 0, "num_predict": 12, **fields})
    engine.submit(Request(id=1, prompt="Once upon a time", options=options))
    outs = [out for _ in range(100) if engine.busy for out in engine.step()]
    if isinstance(outs[-1], FailOut):
        raise BadRequest(outs[-1].message, status=outs[-1].status)
    assert isinstance(outs[-1], FinishOut)
    return "".join(out.text for out in outs if isinstance(out, TextOut))


def test_what_is_forbidden_never_comes_and_what_is_forced_always(engine: Engine) -> None:
    plain = reply(engine, {})
    assert "," in plain
    assert "," not in reply(engine, {",": -100})
    (comma,) = {*engine.tokenize(",", add_special=False)} - {*engine.tokenize(" ", add_special=False)}
    assert "," not in reply(engine, {str(comma): -1e9})
    assert reply(engine, {str(comma): 1e9}, num_predict=5) == "," * 5
    assert reply(engine, {str(comma): 1e9}, num_predict=5, temperature=2.0) == "," * 5
    assert reply(engine, {str(comma): 0.0}) == reply(engine, {}) == plain


@pytest.mark.parametrize(
    ("bias", "reason"),
    [
        ([1], "must be an object"),
        ({"1": "x"}, "must be of type float32"),
        ({"1": True}, "must be of type float32"),
        ({"1": float("nan")}, "must be a finite number"),
        ({str(n): 1 for n in range(1025)}, "1024 entries at most"),
        ({"512": 1}, "512 is no token, this model has 512"),
        ({"9" * 5000: 1}, "is no token"),
    ],
)
def test_what_is_refused(engine: Engine, bias: Any, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason) as caught:
        reply(engine, bias)
    assert caught.value.status == 400


def test_a_near_name_is_found() -> None:
    assert Options.layered({"logitbias": {}})[1] == ('unknown option "logitbias", did you mean "logit_bias"?',)
