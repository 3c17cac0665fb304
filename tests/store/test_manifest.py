"""Encoded layers equal those of Ollama byte for byte; the digests are those of Ollama's own tests."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.api.encode import go_json
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.models import ModelConfig
from ollama_nb.api.names import Digest
from ollama_nb.errors import CorruptModel
from ollama_nb.store.manifest import (
    config_layer,
    encode_config,
    encode_manifest,
    encode_messages,
    encode_params,
    layer,
    parse_config,
    parse_manifest,
    parse_messages,
    parse_params,
)

STOPS = ["USER:", "ASSISTANT:"]
PHI3 = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEST_CONFIG = ModelConfig(model_family="test", model_families=("test",), model_type="0")
CHAT = (
    Message("assistant", "What is my purpose?"),
    Message("user", "You run tests."),
    Message("assistant", "Oh, my god."),
)


@pytest.mark.parametrize(
    ("data", "sha256"),
    [
        (b"{{ .Prompt }}", "b507b9c2f6ca642bffcd06665ea7c91f235fd32daeefdf875a0f938db05fb315"),
        (b"{{ .System }} {{ .Prompt }}", "fe7ac77b725cda2ccad03f88a880ecdfd7a33192d6cae08fce2c0ee1455991ed"),
        (b"Say hi!", "f29e82a8284dbdf5910b1555580ff60b04238b8da9d5e51159ada67a4d0d5851"),
        (b"MIT", "e5dcffe836b6ec8a58e492419b550e65fb8cbdc308503979e5dacb33ac7ea3b7"),
        (b"Apache-2.0", "2af71558e438db0b73a20beab92dc278a94e1bbe974c00c1a33e3ab62d53a608"),
        (
            encode_params({"temperature": 1, "top_k": 10, "stop": STOPS}),
            "1d0ad71299d48c2fb7ae2b98e683643e771f8a5b72be34942af90d97a91c1e37",
        ),
        (
            encode_params({"top_p": 0.7, "temperature": 0.6, "top_k": 10.0, "stop": STOPS}),
            "e29a7b3c47287a2489c895d21fe413c20f859a85d20e749492f52a838e36e1ba",
        ),
        (
            encode_params({"temperature": 0.6, "top_k": 10, "top_p": 0.7, "stop": ["<|endoftext|>"]}),
            "12f58bb75cb3042d69a7e013ab87fb3c3c7088f50ddc62f0c77bd332f0d44d35",
        ),
        (encode_params({"stop": PHI3}), "0d79f567714c62c048378f2107fb332dabee0135d080c302d884317da9433cc5"),
        (encode_messages(CHAT), "298baeaf6928a60cf666d88d64a1ba606feb43a2865687c39e40652e407bffc4"),
        (encode_config(TEST_CONFIG), "99759ad5b91e723db0393d698ffbb448b1b7df5ff6377a108c49254583b1bc8c"),
    ],
)
def test_golden_digests(data: bytes, sha256: str) -> None:
    assert hashlib.sha256(data).hexdigest() == sha256


WEIGHTS, CONFIG = Digest("a" * 64), Digest("b" * 64)


def test_manifest_bytes() -> None:
    raw = encode_manifest(config_layer(CONFIG, 7), [layer("model", WEIGHTS, 9, from_="m:latest")])
    assert raw.decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":'
        f'{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{CONFIG}","size":7}},"layers":'
        f'[{{"mediaType":"application/vnd.ollama.image.model","digest":"{WEIGHTS}","size":9,"from":"m:latest"}}]}}\n'
    )
    manifest = parse_manifest(raw)
    assert manifest.raw == raw
    assert (manifest.layers[0].kind, manifest.layers[0].from_) == ("model", "m:latest")


def test_manifests_are_parsed_leniently() -> None:
    raw = f"""
      {{ "layers": null, "config": {{"size": 3, "digest": "sha256:{"B" * 64}", "future": [1]}}, "x": {{}} }}"""
    assert parse_manifest(raw.encode()).config.digest == CONFIG


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "null",
        "[]",
        "{",
        "{}",
        '{"config":{}}',
        '{"config":{"digest":"sha256:../../etc/passwd"}}',
        '{"config":{"digest":5}}',
        f'{{"config":{{"digest":"{CONFIG}","size":-1}}}}',
        f'{{"config":{{"digest":"{CONFIG}"}},"layers":{{}}}}',
        f'{{"config":{{"digest":"{CONFIG}"}},"layers":[null]}}',
        f'{{"config":{{"digest":"{CONFIG}","size":NaN}}}}',
        "[" * 100_000,
        " " * (5 << 20),
    ],
)
def test_invalid_manifests(raw: str) -> None:
    with pytest.raises(CorruptModel):
        parse_manifest(raw.encode())


def test_config_round_trip() -> None:
    config = ModelConfig(
        model_family="llama",
        model_families=None,
        model_type="8.0B",
        file_type="Q4_K_M",
        renderer="r",
        requires="0.14.0",
        capabilities=("tools",),
        context_length=8,
    )
    raw = encode_config(config)
    assert raw.decode() == (
        '{"model_format":"gguf","model_family":"llama","model_families":null,"model_type":"8.0B","file_type":"Q4_K_M",'
        '"renderer":"r","requires":"0.14.0","capabilities":["tools"],"context_length":8,'
        '"architecture":"amd64","os":"linux"}\n'
    )
    assert parse_config(raw) == config
    assert parse_config(b'{"rootfs":{"type":"layers"},"model_type":null}').extra == {"rootfs": {"type": "layers"}}


@pytest.mark.parametrize("raw", ['{"model_type":7}', '{"model_families":"llama"}', '{"model_families":[1]}', "7"])
def test_invalid_configs(raw: str) -> None:
    with pytest.raises(CorruptModel):
        parse_config(raw.encode())


def test_messages_round_trip() -> None:
    call = ToolCall("f", {"b": 1, "a": [True, None]}, "call_1", 2)
    messages = (
        Message("user", "看 <这里> & \u2028", images=(b"\x00\xff",)),
        Message("assistant", thinking="hm", tool_calls=(call,)),
        Message("tool", "3", tool_name="f", tool_call_id="call_1"),
    )
    raw = encode_messages(messages)
    assert b'"content":"\xe7\x9c\x8b \\u003c' in raw
    assert b'{"id":"call_1","function":{"index":2,"name":"f","arguments":{"b":1,"a":[true,null]}}}' in raw
    assert parse_messages(raw) == messages


@pytest.mark.parametrize(
    "raw", ["{}", "[1]", '[{"role":5}]', '[{"images":["%"]}]', '[{"tool_calls":[{}]}]', '[{"tool_calls":[5]}]']
)
def test_invalid_messages(raw: str) -> None:
    with pytest.raises(CorruptModel):
        parse_messages(raw.encode())


def test_params_keep_unknown_keys_and_reject_infinity() -> None:
    assert parse_params(b'{"future":{"x":1}}') == {"future": {"x": 1}}
    with pytest.raises(CorruptModel):
        parse_params(b'{"x":1e999}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e15, 1e15) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
@settings(max_examples=100)
def test_params_round_trip(params: dict[str, Any]) -> None:
    assert parse_params(encode_params(params)) == params


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, "1"), (0.6, "0.6"), (-0.0, "-0"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (1e-6, "0.000001"),
        (1e-7, "1e-7"), (1.5e-9, "1.5e-9"), (1.2345678901234567e20, "123456789012345670000"), (2.5e-5, "0.000025"),
    ],
)  # fmt: skip
def test_numbers_are_formatted_as_in_go(number: float, text: str) -> None:
    assert go_json(number) == text


def test_lone_surrogates_become_replacement_characters() -> None:
    assert go_json({"\ud800": "\udfff"}, sort_keys=True) == '{"\ufffd":"\ufffd"}'
