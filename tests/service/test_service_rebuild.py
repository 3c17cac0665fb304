"""``show --modelfile`` really rebuilds the model: the same digest, whatever its parts contain."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ggufs import STRING, TINY, gguf
from support.service_harness import MODELS, PLAIN, ServiceHarness, collect

from ollama_nb import modelfile
from ollama_nb.api.messages import Message
from ollama_nb.api.models import Model
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.requests import CreateRequest
from ollama_nb.template.builtin import recognise

# What a Modelfile can contain: printable text and line ends; no line that ends in three quotes.
_LINES = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(" \t#:'"), max_size=20)
TEXTS = st.lists(_LINES, max_size=4).map("\n".join).filter(lambda text: text.isprintable() or "\n" in text)
SAYABLE = TEXTS.filter(
    lambda text: modelfile.parse(f"FROM x\nSYSTEM {modelfile.quote(text)}\n").instructions[-1].value == text
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2, width=32).map(lambda number: modelfile.typed("temperature", repr(number))),
        "num_ctx": st.integers(1, 1 << 40),
        "seed": st.integers(-1, 1 << 31),
        "stop": st.lists(SAYABLE.filter(bool), min_size=1, max_size=3),
        "use_mmap": st.booleans(),
    },
)
MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), SAYABLE.filter(bool)), max_size=3)


def create(harness: ServiceHarness, **fields: Any) -> Model:
    asyncio.run(collect(harness.service.create(CreateRequest(**fields))))
    return harness.service.store.resolve(ModelName.parse(fields["model"]))


def rebuilt(harness: ServiceHarness, name: str) -> Model:
    """As a client would: the Modelfile's blob paths are files, found again by their digests."""
    text = asyncio.run(harness.service.show(name)).modelfile
    parts = modelfile.parse(text).request_parts()

    def blobs(paths: tuple[str, ...]) -> dict[str, str]:
        return {Path(path).name: str(Digest.parse(Path(path).name)) for path in paths}

    return create(
        harness,
        model="again",
        files=blobs(parts.from_),
        adapters=blobs(parts.adapters),
        template=parts.template,
        system=parts.system,
        parameters=parts.parameters,
        messages=parts.messages,
        licenses=parts.licenses,
        renderer=parts.renderer,
        parser=parts.parser,
        requires=parts.requires,
    )


@settings(max_examples=15, deadline=None)
@given(system=SAYABLE, licenses=st.lists(SAYABLE.filter(bool), max_size=2), parameters=PARAMETERS, messages=MESSAGES)
def test_the_same_digest(
    system: str, licenses: list[str], parameters: dict[str, Any], messages: list[tuple[str, str]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        harness = ServiceHarness(Path(folder))
        made = create(
            harness,
            model="first",
            files={"m.gguf": str(harness.service.blobs.add(gguf()))},
            template=PLAIN,
            system=system,
            licenses=tuple(licenses),
            parameters=parameters,
            messages=tuple(Message(role, content) for role, content in messages),
            requires="0.14.0",
        )
        assert rebuilt(harness, "first").digest == made.digest


CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_model(harness: ServiceHarness, template: str = CHATML) -> dict[str, str]:
    data = gguf((*TINY, ("tokenizer.chat_template", STRING, template)))
    return {"m.gguf": str(harness.service.blobs.add(data))}


def test_a_known_chat_template_is_recognised(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    lines = asyncio.run(
        collect(harness.service.create(CreateRequest(model="first", files=chat_model(harness), system="s")))
    )
    assert [line.status.partition(" sha256:")[0] for line in lines] == [
        "parsing GGUF", "using existing layer", "using autodetected template chatml", "creating new layer",
        "creating new layer", "writing manifest", "success",
    ]  # fmt: skip
    model = harness.service.store.resolve(ModelName.parse("first"))
    known = recognise(CHATML)
    assert known is not None
    assert (model.template, model.params) == (known.text, {"stop": ["<|im_start|>", "<|im_end|>"]})
    assert [layer.kind for layer in model.manifest.layers] == ["model", "template", "system", "params"]
    assert rebuilt(harness, "first").digest == model.digest


PHI3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def test_parameters_of_a_recognised_template_equal_ollama_s_byte_for_byte(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    model = create(harness, model="first", files=chat_model(harness, PHI3))
    digests = {layer.kind: layer.digest.hex for layer in model.manifest.layers}
    assert digests["params"] == "0d79f567714c62c048378f2107fb332dabee0135d080c302d884317da9433cc5"


@pytest.mark.parametrize(
    ("fields", "template", "stop"),
    [
        ({"template": "{{ .Prompt }}"}, "{{ .Prompt }}", ["<|im_start|>", "<|im_end|>"]),
        ({"parameters": {"stop": ["x"]}}, None, ["x"]),
        ({"parameters": {"seed": 1}}, None, ["<|im_start|>", "<|im_end|>"]),
    ],
)
def test_parameters_of_the_request_override_recognised_ones(
    tmp_path: Path, fields: dict[str, Any], template: str | None, stop: list[str]
) -> None:
    harness = ServiceHarness(tmp_path)
    model = create(harness, model="first", files=chat_model(harness), **fields)
    known = recognise(CHATML)
    assert known is not None
    assert model.template == (known.text if template is None else template)
    assert model.params == {**fields.get("parameters", {}), "stop": stop}


def test_nothing_is_recognised_in_a_model_that_is_built_on(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    create(harness, model="first", files=chat_model(harness, "{{ messages }} something else"))
    assert create(harness, model="second", from_="first", system="x").template is None


def test_the_bundled_model_and_one_with_an_adapter(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    weights = str(harness.service.blobs.add_file(MODELS / "stories260K-q8_0.gguf"))
    adapter = gguf((*TINY, ("general.type", STRING, "adapter")))
    made = create(
        harness, model="first", files={"m.gguf": weights}, adapters={"a.gguf": str(harness.service.blobs.add(adapter))}
    )
    assert len(made.adapters) == 1
    assert rebuilt(harness, "first").digest == made.digest
