"""Which template is used, and which capabilities a model has."""

from __future__ import annotations

import pytest
from support.service_harness import INSERTS, PLAIN, THINKS, TOOLS

from ollama_nb import families
from ollama_nb.api.models import GGUF, Layer, Manifest, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import BadRequest, CompletionUnsupported, ThinkingUnsupported, ToolsUnsupported
from ollama_nb.service.capabilities import capabilities, check, check_thinking
from ollama_nb.service.templates import chat_format

CONFIG = Layer("", Digest("0" * 64), 0)
JINJA = "{% for m in messages %}{{ m.content }}{% endfor %}"
JINJA_TOOLS = (
    JINJA + "{{ tools }}{% if message.tool_calls %}{% endif %}<tool_call>{% if message.role == 'tool' %}{% endif %}"
)
JINJA_THINKS = JINJA + "<think></think>"


def model(template: str | None = None, name: str = "m", **config: object) -> Model:
    return Model(ModelName(name), "d", Manifest(CONFIG, ()), ModelConfig(**config), 0.0, 0, template=template)  # type: ignore[arg-type]


def gguf(jinja: str = "", **keys: object) -> GGUF:
    metadata = {"general.architecture": "x"} | {f"x.{key}": value for key, value in keys.items()}
    return GGUF(3, metadata | ({"tokenizer.chat_template": jinja} if jinja else {}), ())


@pytest.mark.parametrize(
    ("template", "jinja", "go_template", "kind", "words"),
    [
        (None, "", None, "jinja", {"completion"}),
        (None, JINJA, None, "jinja", {"completion"}),
        (None, JINJA_TOOLS, None, "jinja", {"completion", "tools"}),
        (None, JINJA_THINKS, None, "jinja", {"completion", "thinking"}),
        (PLAIN, "", None, "go", {"completion"}),
        (TOOLS, "", None, "go", {"completion", "tools"}),
        (THINKS, "", None, "go", {"completion", "thinking"}),
        (INSERTS, "", None, "go", {"completion", "insert"}),
        # The Go template is used, unless the Jinja template supports more.
        (PLAIN, JINJA, None, "go", {"completion"}),
        (PLAIN, JINJA_TOOLS, None, "jinja", {"completion", "tools"}),
        (PLAIN, JINJA_TOOLS, True, "go", {"completion"}),
        (TOOLS, JINJA_TOOLS, None, "jinja", {"completion", "tools"}),
        (TOOLS + "tool_response", JINJA_TOOLS, None, "go", {"completion", "tools"}),
        (TOOLS, JINJA, False, "jinja", {"completion"}),
        # A suffix always uses the Go template.
        (INSERTS, JINJA_TOOLS, False, "jinja", {"completion", "tools", "insert"}),
        # A model with a broken template keeps its basic capability.
        ("{{ if }}", "", None, None, {"completion"}),
    ],
)
def test_template_choice(
    template: str | None, jinja: str, go_template: bool | None, kind: str | None, words: set[str]
) -> None:
    if kind is not None:
        assert chat_format(model(template), gguf(jinja), go_template).kind == kind
    assert set(capabilities(model(template), gguf(jinja), go_template)) == words


def test_other_sources() -> None:
    assert capabilities(model(), gguf(pooling_type=1), None) == ("embedding",)
    assert capabilities(model(), gguf(**{"vision.block_count": 3}), None) == ("completion", "vision")
    assert capabilities(model(capabilities=("zebra", "tools")), gguf(), None) == ("completion", "tools", "zebra")
    assert capabilities(model(), None, None) == ()


@pytest.mark.parametrize(
    ("template", "config", "kind", "words"),
    [
        (None, {"renderer": "qwen3.5", "parser": "qwen3.5"}, "renderer", {"completion", "tools", "thinking"}),
        (None, {"renderer": "olmo3-think", "parser": "olmo3-think"}, "renderer", {"completion", "thinking"}),
        (None, {"renderer": "glm-4.7"}, "renderer", {"completion"}),
        (TOOLS, {"renderer": "glm-4.7"}, "renderer", {"completion", "tools"}),
        (PLAIN, {"parser": "ministral"}, "go", {"completion", "tools"}),
        (None, {"parser": "passthrough"}, "go", {"completion"}),
        (INSERTS, {"parser": "qwen3-coder"}, "go", {"completion", "tools", "insert"}),
        ("<|start|><|end|>", {"model_family": "gptoss"}, "go", {"completion", "tools", "thinking"}),
        (PLAIN, {"model_family": "gpt-oss"}, "go", {"completion", "thinking"}),
    ],
)
def test_named_parts_come_first(template: str | None, config: dict[str, str], kind: str, words: set[str]) -> None:
    assert chat_format(model(template, **config), gguf(JINJA_TOOLS), True).kind == kind
    assert set(capabilities(model(template, **config), gguf(JINJA_TOOLS), True)) == words


def test_the_parser_of_gpt_oss_is_known_by_its_template() -> None:
    assert families.parser_name(model("<|start|>x<|end|>", model_family="gptoss")) == "harmony"
    named = model("<|start|>x<|end|>", model_family="gptoss", parser="passthrough")
    assert families.parser_name(named) == "passthrough"
    assert families.parser_name(model("<|start|>x", model_family="gptoss")) == ""
    assert families.parser_name(model("<|start|>x<|end|>")) == ""


@pytest.mark.parametrize(
    ("name", "size", "renderer"),
    [
        ("gemma4", "27B", "gemma4-large"),
        ("gemma4", "4.3B", "gemma4-small"),
        ("gemma4", "", "gemma4-small"),
        ("my-e4b", "31B", "gemma4-small"),
        ("my-31b", "1B", "gemma4-large"),
    ],
)
def test_gemma4_is_prompted_by_its_size(name: str, size: str, renderer: str) -> None:
    assert families.renderer_name(model(name=name, renderer="gemma4", model_type=size)) == renderer


def test_error_texts() -> None:
    m = model(name="foo")
    with pytest.raises(CompletionUnsupported, match=r'^"foo" does not support chat$'):
        check(m, "foo", ("embedding",), "chat", ("tools",))
    with pytest.raises(
        ToolsUnsupported, match=r"^registry.ollama.ai/library/foo:latest does not support tools\ninsert$"
    ):
        check(m, "foo", ("completion",), "generate", ("tools", "insert"))
    with pytest.raises(ThinkingUnsupported, match=r'^"foo" does not support thinking$'):
        check_thinking(m, "foo", ())
    with pytest.raises(BadRequest, match=r'^"q" does not support thinking\. Pull the model again'):
        check_thinking(model(model_family="qwen3"), "q", ())
