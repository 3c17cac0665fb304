"""`show`: its parts and its screen."""

from __future__ import annotations

from typing import Any

import pytest
from support.command_line import RunCommand
from support.fake_servers import ScriptedServer, error, ok

from ollama_nb.verbs.present import show_part, show_screen

INFO: dict[str, Any] = {
    "license": "MIT License\n\nPermission is granted\nand more",
    "modelfile": "FROM x\n",
    "parameters": (
        'temperature                    0\nstop                           "<|im_start|>"\n'
        'stop                           "<|im_end|>"'
    ),
    "template": "{{ .Prompt }}",
    "system": "你是助手。",
    "details": {"family": "llama", "parameter_size": "2.98M", "quantization_level": "Q8_0"},
    "capabilities": ["completion", "tools"],
    "model_info": {
        "general.architecture": "llama",
        "general.parameter_count": 2_980_000,
        "llama.context_length": 1024,
        "llama.embedding_length": 192,
        "llama.rope.freq_base": 10000.5,
        "llama.attention.causal": True,
        "general.tags": ["text-generation", "chat"],
        "general.languages": ["en", "zh"],
        "tokenizer.ggml.tokens": ["<s>", "a", "b", "c", "d"],
        "tokenizer.ggml.merges": None,
    },
    "tensors": [{"name": "output.weight", "type": "Q8_0", "shape": [192, 4096]}],
}


def test_the_screen() -> None:
    rows = [line.rstrip() for line in show_screen(INFO).splitlines()]
    assert rows == [
        "  Model",
        "    architecture        llama",
        "    parameters          2.98M",
        "    context length      1024",
        "    embedding length    192",
        "    quantization        Q8_0",
        "",
        "  Capabilities",
        "    completion",
        "    tools",
        "",
        "  Parameters",
        '    stop           "<|im_start|>"',
        '    stop           "<|im_end|>"',
        "    temperature    0",
        "",
        "  System",
        "    你是助手。",
        "",
        "  License",
        "    MIT License",
        "    Permission is granted",
        "    ...",
        "",
    ]


def test_the_screen_with_everything() -> None:
    text = show_screen(INFO, verbose=True)
    rows = [line.split() for line in text.splitlines()]
    assert ["llama.rope.freq_base", "10000.5"] in rows
    assert ["llama.attention.causal", "true"] in rows
    assert ["general.parameter_count", "2.98e+06"] in rows
    assert ["tokenizer.ggml.tokens", "[<s>", "a", "b", "...+2", "more]"] in rows
    assert ["general.tags", "[text-generation", "...+1", "more]"] in rows
    assert ["general.languages", "[en", "zh]"] in rows
    assert ["output.weight", "Q8_0", "[192", "4096]"] in rows


def test_a_model_without_metadata() -> None:
    assert show_screen({"model_info": {}, "details": {"family": "bert"}}).splitlines()[1].split() == [
        "architecture",
        "bert",
    ]


def test_a_projector() -> None:
    projector = {
        "general.architecture": "clip",
        "general.parameter_count": 1_300_000_000,
        "clip.vision.embedding_length": 1024,
        "clip.vision.projection_dim": 768,
    }
    rows = [line.split() for line in show_screen({**INFO, "projector_info": projector}).splitlines()]
    start = rows.index(["Projector"])
    assert rows[start + 1 : start + 5] == [
        ["architecture", "clip"],
        ["parameters", "1.3B"],
        ["embedding", "length", "1024"],
        ["dimensions", "768"],
    ]


@pytest.mark.parametrize(
    ("flag", "out"),
    [
        ("--license", INFO["license"] + "\n"),
        ("--modelfile", "FROM x\n\n"),
        (
            "--parameters",
            'stop                           "<|im_start|>"\nstop                           "<|im_end|>"\n'
            "temperature                    0\n",
        ),
        ("--template", "{{ .Prompt }}"),
        ("--system", "你是助手。"),
    ],
)
def test_one_part(server: ScriptedServer, ollama: RunCommand, flag: str, out: str) -> None:
    server.routes["POST /api/show"] = ok(INFO)
    assert ollama("show", "m", flag).out == ollama("show", flag, "m").out == out


def test_a_missing_part() -> None:
    assert (show_part({}, "license"), show_part({}, "system")) == ("\n", "")


def test_only_one_part(ollama: RunCommand) -> None:
    assert ollama("show", "m", "--license", "--system").err == (
        "Error: only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified\n"
    )


def test_only_the_verbose_screen_requests_arrays(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/show"] = ok(INFO)
    ollama("show", "m")
    ollama("show", "-v", "m")
    assert server.asked("POST /api/show") == [{"model": "m"}, {"model": "m", "verbose": True}]


def test_an_unknown_model(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/show"] = error(404, "model 'x:latest' not found")
    assert ollama("show", "x").err == "Error: model 'x:latest' not found\n"
