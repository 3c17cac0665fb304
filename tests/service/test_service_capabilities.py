"""Which template rules, and what a model can do by it."""

from __future__ import annotations

import pytest
from support.kitchen import INSERTS, PLAIN, THINKS, TOOLS

from ollama_nb.api.models import GGUF, Layer, Manifest, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import BadRequest
from ollama_nb.service.capabilities import capabilities, check, check_thinking, prompting

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
    ("template", "jinja", "go_template", "path", "words"),
    [
        (None, "", None, "jinja", {"completion"}),
        (None, JINJA, None, "jinja", {"completion"}),
        (None, JINJA_TOOLS, None, "jinja", {"completion", "tools"}),
        (None, JINJA_THINKS, None, "jinja", {"completion", "thinking"}),
        (PLAIN, "", None, "go", {"completion"}),
        (TOOLS, "", None, "go", {"completion", "tools"}),
        (THINKS, "", None, "go", {"completion", "thinking"}),
        (INSERTS, "", None, "go", {"completion", "insert"}),
        # The layer rules, unless the other one can do more.
        (PLAIN, JINJA, None, "go", {"completion"}),
        (PLAIN, JINJA_TOOLS, None, "jinja", {"completion", "tools"}),
        (PLAIN, JINJA_TOOLS, True, "go", {"completion"}),
        (TOOLS, JINJA_TOOLS, None, "jinja", {"completion", "tools"}),
        (TOOLS + "tool_response", JINJA_TOOLS, None, "go", {"completion", "tools"}),
        (TOOLS, JINJA, False, "jinja", {"completion"}),
        # Suffix calls keep their Go template.
        (INSERTS, JINJA_TOOLS, False, "jinja", {"completion", "tools", "insert"}),
        # A broken template takes the model's tricks away, not the model.
        ("{{ if }}", "", None, None, {"completion"}),
    ],
)
def test_template_choice(
    template: str | None, jinja: str, go_template: bool | None, path: str | None, words: set[str]
) -> None:
    if path is not None:
        assert prompting(model(template), gguf(jinja), go_template).path == path
    assert set(capabilities(model(template), gguf(jinja), go_template)) == words


def test_other_sources() -> None:
    assert capabilities(model(), gguf(pooling_type=1), None) == ("embedding",)
    assert capabilities(model(), gguf(**{"vision.block_count": 3}), None) == ("completion", "vision")
    assert capabilities(model(capabilities=("zebra", "tools")), gguf(), None) == ("completion", "tools", "zebra")
    assert capabilities(model(), None, None) == ()


def test_error_texts() -> None:
    m = model(name="foo")
    with pytest.raises(BadRequest, match=r'^"foo" does not support chat$'):
        check(m, "foo", ("embedding",), "chat", ("tools",))
    with pytest.raises(BadRequest, match=r"^registry.ollama.ai/library/foo:latest does not support tools\ninsert$"):
        check(m, "foo", ("completion",), "generate", ("tools", "insert"))
    with pytest.raises(BadRequest, match=r'^"foo" does not support thinking$'):
        check_thinking(m, "foo", ())
    with pytest.raises(BadRequest, match=r'^"q" does not support thinking\. Pull the model again'):
        check_thinking(model(model_family="qwen3"), "q", ())
