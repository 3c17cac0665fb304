"""Requests of llama-server's API: JSON bodies → the requests of :mod:`ollama_nb.api.requests`. All raise BadRequest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ollama_nb.api.options import KINDS, SEED_MASK
from ollama_nb.api.requests import GenerateRequest, Infill, SourceFile
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.values import read_keep_alive

_WITHOUT_EFFECT = frozenset({"cache_prompt", "id_slot", "return_progress", "t_max_prompt_ms", "timings_per_token"})
"""Fields that are accepted without a warning: the prompt is always cached, and the others cannot change a reply."""
_RENAMED = {"n_predict": "num_predict", "n_keep": "num_keep"}
_FORBIDDEN = -1e4  # bias of a token for which a request has ``false``


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillBody:
    """The body of ``/infill``.

    Of the reply, only ``fields`` are sent, if there are any. The reply ends when it has a line break and ``seconds``
    have passed since its first text (0: no limit), or at a line with less than ``indent`` blanks before its text.
    """

    request: GenerateRequest
    stream: bool = False
    fields: tuple[str, ...] = ()
    seconds: float = 0.0
    indent: int = 0


def read_infill(body: Fields) -> InfillBody:
    for name in ("input_prefix", "input_suffix"):
        if name not in body:
            raise BadRequest(f'"{name}" is required: the text before or after the gap, which may be empty', field=name)
    files = [_file(item) for item in body.structs("input_extra", "llama.InputExtra")]
    probabilities = body.whole("n_probs")
    request = GenerateRequest(
        model=body.text("model"),
        # The prompt is the beginning of the line with the gap: the prefix ends with it.
        infill=Infill(
            prefix=body.text("input_prefix") + body.text("prompt"), suffix=body.text("input_suffix"), files=tuple(files)
        ),
        options=_options(body),
        keep_alive=read_keep_alive(body),
        grammar=body.text("grammar"),
        format=body.schema("json_schema"),
        logprobs=probabilities > 0,
        top_logprobs=probabilities,
        run_record=True,
    )
    read = InfillBody(
        request=request,
        stream=body.flag("stream") or False,
        fields=body.texts("response_fields"),
        seconds=max(0, body.whole("t_max_predict_ms")) / 1000,
        indent=max(0, body.whole("n_indent")),
    )
    return replace(read, request=replace(request, ignored=body.ignored(_WITHOUT_EFFECT)))


def _file(item: Fields) -> SourceFile:
    return SourceFile(item.text("filename") or "tmp", item.text("text"))


def _options(body: Fields) -> dict[str, Any]:
    names = [name for name in KINDS if name not in _RENAMED.values() and name != "stop"]
    found = {name: body.raw(name) for name in names if name in body}
    found |= {ours: body.raw(theirs) for theirs, ours in _RENAMED.items() if theirs in body}
    if body.raw("seed") == SEED_MASK:
        found["seed"] = -1
    if stop := body.texts("stop"):
        found["stop"] = list(stop)
    if biases := body.raw("logit_bias"):
        found["logit_bias"] = _biases(biases)
    return found


def _biases(value: Any) -> Any:
    """An object from tokens or texts to numbers; lists of such pairs are also read. ``false`` forbids a token."""
    if isinstance(value, list):
        if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in value):
            raise BadRequest("logit_bias: expected pairs of a token or a text and a number", field="logit_bias")
        value = {str(token): bias for token, bias in value}
    if isinstance(value, dict):
        return {token: _FORBIDDEN if bias is False else bias for token, bias in value.items()}
    return value
