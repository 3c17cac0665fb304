"""Requests of the native API: what the bodies become, and which bodies are refused."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.api.events import Progress
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects import gojson
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.native import replies, requests


def chat(**body: Any) -> Any:
    return requests.read_chat(Fields(body, "ChatRequest"))


def test_a_chat_request() -> None:
    request = chat(
        model="m",
        messages=[
            {"role": "USER", "content": "hi", "images": [base64.b64encode(b"png").decode()]},
            {
                "role": "assistant",
                "thinking": "hm",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"index": 2, "name": "f", "arguments": {"x": 1}}}
                ],
            },
            {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": "c1"},
            {"role": "user", "content": None},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}],
        options={"temperature": 0},
        format={"type": "object"},
        keep_alive="5m",
        think="high",
        logprobs=True,
        top_logprobs=3,
        truncate=False,
        shift=True,
        _debug_render_only=True,
    )
    call = ToolCall("f", {"x": 1}, "c1", 2)
    assert request.messages == (
        Message("user", "hi", images=(b"png",)),
        Message("assistant", thinking="hm", tool_calls=(call,)),
        Message("tool", "1", tool_name="f", tool_call_id="c1"),
        Message("user"),
    )
    assert request.tools == ({"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}},)
    assert (request.model, request.options, request.format) == ("m", {"temperature": 0}, {"type": "object"})
    assert (request.keep_alive, request.think, request.logprobs, request.top_logprobs) == (300, "high", True, 3)
    assert (request.truncate, request.shift, request.render_only) == (False, True, True)


def test_defaults() -> None:
    request = chat()
    assert (request.model, request.messages, request.tools, request.options) == ("", (), (), {})
    assert (request.format, request.keep_alive, request.think, request.shift) == (None, None, None, None)
    assert request.truncate is True and not request.logprobs and not request.render_only
    assert requests.wants_stream(Fields({}, "S")) and not requests.wants_stream(Fields({"stream": False}, "S"))


def test_choices_budget_user_and_token_ids() -> None:
    request = chat(n=3, think_budget=0, user="小明")
    assert (request.n, request.think_budget, request.user, request.ignored) == (3, 0, "小明", ())
    assert (chat(n=None, think_budget=None).n, chat().think_budget, chat().user) == (1, None, "")
    assert chat(n=0).n == 0, "the service refuses it"
    request = requests.read_generate(Fields({"tokens": [1, 5]}, "GenerateRequest"))
    assert (request.tokens, request.is_empty, request.ignored) == ((1, 5), False, ())
    assert requests.model_and_unload(Fields({"model": "m", "tokens": [1], "keep_alive": 0}, "S")) == ("m", False)


def test_a_chat_may_drop_whole_messages_only() -> None:
    assert chat(truncate="messages").truncate == "messages"
    with pytest.raises(BadRequest):
        chat(truncate="tokens")
    with pytest.raises(BadRequest):
        requests.read_generate(Fields({"truncate": "messages"}, "S"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), (0, 0.0), (10, 10.0), (1.5, 1.5), (-1, math.inf), (-0.5, math.inf), (10**400, math.inf),
        ("5m", 300.0), ("1h30m", 5400.0), ("300ms", 0.3), ("-1m", math.inf), ("2562047h", 2562047 * 3600.0),
        ("0", 0.0), ("0s", 0.0),
    ],
)  # fmt: skip
def test_keep_alive(value: Any, seconds: float | None) -> None:
    assert chat(keep_alive=value).keep_alive == seconds


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"keep_alive": "10"}, 'time: missing unit in duration "10"'),
        ({"keep_alive": "-1"}, 'time: missing unit in duration "-1"'),
        ({"keep_alive": ""}, 'time: invalid duration ""'),
        ({"keep_alive": "5x"}, 'time: unknown unit "x" in duration "5x"'),
        ({"keep_alive": "99999999h"}, 'time: invalid duration "99999999h"'),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
        ({"keep_alive": {}}, "Unsupported type: 'map[string]interface {}'"),
        ({"keep_alive": []}, "Unsupported type: '[]interface {}'"),
        ({"think": "much"},
         'invalid think value: "much" (must be "high", "medium", "low", "max", true, or false)'),
        ({"think": 1}, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'),
        ({"messages": {}},
         "json: cannot unmarshal object into Go struct field ChatRequest.messages of type []api.Message"),
        ({"messages": ["hi"]},
         "json: cannot unmarshal string into Go struct field ChatRequest.messages of type api.Message"),
        ({"messages": [{"content": [{"type": "text"}]}]},
         "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string"),
        ({"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]},
         "json: cannot unmarshal string into Go struct field ChatRequest.messages.tool_calls.function.arguments "
         "of type api.ToolCallFunctionArguments"),
        ({"tools": {}}, "json: cannot unmarshal object into Go struct field ChatRequest.tools of type api.Tools"),
        ({"tools": [{"function": {"name": 1}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.name of type string"),
        ({"tools": [{"function": {"parameters": {"properties": {"a": 1}}}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.parameters.properties "
         "of type api.ToolProperty"),
        ({"tools": [{"function": {"parameters": {"properties": {"a": {"type": 5}}}}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.parameters.properties.type "
         "of type []string"),
        ({"tools": [{"function": {"parameters": {"properties": {"a": {"type": ["string", 5]}}}}}]},
         "json: cannot unmarshal number into Go struct field ChatRequest.tools.function.parameters.properties.type "
         "of type string"),
        ({"options": []},
         "json: cannot unmarshal array into Go struct field ChatRequest.options of type map[string]interface {}"),
        ({"stream": "no", "top_logprobs": "3"},
         "json: cannot unmarshal string into Go struct field ChatRequest.top_logprobs of type int"),
    ],
)  # fmt: skip
def test_invalid_values(body: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest) as error:
        chat(**body)
    assert error.value.message == text


def test_think_levels() -> None:
    for think in (True, False, "low", "medium", "high", "max"):
        assert chat(think=think).think is think or chat(think=think).think == think


def test_a_generate_request() -> None:
    body = {"model": "m", "prompt": "p", "suffix": "s", "system": "y", "template": "t", "raw": True, "context": [1, 2]}
    request = requests.read_generate(Fields(body, "GenerateRequest"))
    assert (request.prompt, request.suffix, request.system, request.template) == ("p", "s", "y", "t")
    assert request.raw and request.context == (1, 2)
    assert requests.read_generate(Fields({"context": []}, "GenerateRequest")).context == ()
    assert requests.read_generate(Fields({}, "GenerateRequest")).context is None


@pytest.mark.parametrize(
    ("value", "inputs"),
    [(None, None), ("", None), ([], None), ("a", ("a",)), (["a", ""], ("a", "")), ([""], ("",))],
)
def test_embed_inputs(value: Any, inputs: Any) -> None:
    assert requests.read_embed(Fields({"input": value}, "EmbedRequest")).inputs == inputs


@pytest.mark.parametrize("value", [1, {"a": 1}, [1], ["a", None], True])
def test_invalid_embed_inputs(value: Any) -> None:
    with pytest.raises(BadRequest, match="invalid input type"):
        requests.read_embed(Fields({"input": value}, "EmbedRequest"))


def test_create_and_pull() -> None:
    request = requests.read_create(
        Fields({"name": "m", "from": "b", "license": "MIT", "quantization": "q8_0", "files": {"a": "b"}}, "C")
    )
    assert (request.model, request.from_, request.licenses, request.quantize) == ("m", "b", ("MIT",), "q8_0")
    assert request.files == {"a": "b"}
    assert requests.read_create(Fields({"license": ["a", "", "b"]}, "C")).licenses == ("a", "b")
    assert requests.read_create(Fields({"draft_files": {"a": "b"}}, "C")).draft_files == {"a": "b"}
    with pytest.raises(BadRequest, match="--draft-quantize requires a DRAFT model"):
        requests.read_create(Fields({"draft_quantize": "q8_0"}, "C"))
    pull = requests.read_pull(Fields({"name": "pip://x", "model": "", "as": "y", "insecure": True}, "P"))
    assert (pull.model, pull.as_, pull.insecure) == ("pip://x", "y", True)


NAMES = st.sampled_from(
    [
        "model",
        "name",
        "prompt",
        "suffix",
        "system",
        "template",
        "context",
        "raw",
        "images",
        "format",
        "options",
        "keep_alive",
        "think",
        "logprobs",
        "messages",
        "tools",
        "role",
        "content",
        "tool_calls",
        "function",
        "arguments",
        "input",
        "truncate",
        "dimensions",
        "from",
        "files",
        "adapters",
        "license",
        "parameters",
        "stream",
        "quantize",
        "info",
        "verbose",
        "as",
        "insecure",
        "top_logprobs",
        "required",
        "properties",
        "type",
        "index",
    ]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=15,
)
READERS = [
    requests.read_chat,
    requests.read_generate,
    requests.read_embed,
    requests.read_embeddings,
    requests.read_pull,
    requests.read_create,
    requests.read_show,
    requests.wants_stream,
]


@settings(max_examples=200)
@given(st.dictionaries(NAMES, ANY_JSON, max_size=8) | ANY_JSON, st.sampled_from(READERS))
def test_any_json_is_accepted_or_a_bad_request(value: Any, read: Any) -> None:
    try:
        read(Fields(gojson.decode(json.dumps(value).encode()), "S"))
    except BadRequest as error:
        assert error.message and error.status == 400


def test_constraints_beside_format() -> None:
    request = chat(grammar='root ::= "a"', regex="a+", choices=["a", "天"])
    assert (request.grammar, request.regex, request.choices) == ('root ::= "a"', "a+", ("a", "天"))
    assert (chat().grammar, chat().regex, chat().choices, chat(choices=[]).choices) == ("", "", None, ())
    for wrong in ({"grammar": {}}, {"regex": 1}, {"choices": "a"}, {"choices": [1]}):
        with pytest.raises(BadRequest, match=f"ChatRequest.{next(iter(wrong))} of type "):
            chat(**wrong)


def test_fields_without_effect_give_warnings() -> None:
    assert chat(model="m", stream=True, options={}, think=None, keep_alive="5m", format="", tools=[]).ignored == ()
    assert chat(Mesages=[], sturm=None, x=1).ignored == (
        'ignored field "Mesages", did you mean "messages"?',
        'ignored field "x"',
    )
    for name in ("prompt", "images", "raw", "context", "suffix", "system", "template"):
        assert chat(**{name: 1}).ignored and not requests.read_generate(Fields({name: None}, "G")).ignored
    known = {"model": "m", "prompt": "", "suffix": "", "stream": False, "raw": True, "context": [], "images": []}
    assert requests.read_generate(Fields(known, "GenerateRequest")).ignored == ()
    embed = requests.read_embed(Fields({"model": "m", "inputs": "x"}, "EmbedRequest"))
    assert embed.ignored == ('ignored field "inputs", did you mean "input"?',)
    many = chat(**{f"x{n}": n for n in range(1000)}).ignored
    assert len(many) == 17 and many[-1] == "984 more warnings of this kind are left out"
    with pytest.raises(BadRequest, match="the request body may have 1024 fields at most, but has 10000"):
        chat(**{f"x{n}": n for n in range(10_000)})


def test_a_tokenize_request() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{"function": {"name": "f"}}]}
    request = requests.read_tokenize(Fields({**body, "think": "low", "add_special": False, "parse_special": True}, "T"))
    assert request.messages == (Message("user", "hi"),) and request.tools == ({"function": {"name": "f"}},)
    assert (request.prompt, request.think, request.add_special, request.parse_special) == (None, "low", False, True)
    request = requests.read_tokenize(Fields({"model": "m", "prompt": ""}, "T"))
    assert (request.prompt, request.add_special, request.parse_special) == ("", True, False)


def test_fields_without_effect_in_a_create_request() -> None:
    request = requests.read_create(Fields({"model": "m", "from": "b", "stream": False, "sistem": "x"}, "T"))
    assert request.ignored == ('ignored field "sistem", did you mean "system"?',)
    line = Progress("success", warnings=request.ignored)
    assert json.loads(replies.progress(line)) == {"status": "success", "warnings": [*request.ignored]}
    assert replies.progress(Progress("success")) == b'{"status":"success"}'
