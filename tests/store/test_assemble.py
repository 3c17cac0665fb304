"""Creating models: the order of layers, status lines and config are those of Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.ggufs import ARRAY, I32, STRING, TINY, U32, gguf
from support.stores import check_sound, create, digest_of, snapshot, tiny

from ollama_nb.api.messages import Message
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.requests import CreateRequest
from ollama_nb.errors import BadRequest, CorruptModel, NotFound, OllamaError
from ollama_nb.store.assemble import assemble
from ollama_nb.store.store import Store

MODELS = Path(__file__).parent.parent / "models"
ARCH = TINY[0]
ADAPTER = gguf((ARCH, ("general.type", STRING, "adapter")))
PROJECTOR = gguf((("general.architecture", STRING, "clip"), ("clip.vision.block_count", U32, 2)))


def kinds(store: Store, name: str) -> list[str]:
    return [layer.kind for layer in store.resolve(ModelName.parse(name)).manifest.layers]


def test_from_a_file(store: Store) -> None:
    weights, template, system = gguf(), "{{ .System }} {{ .Prompt }}", "Say hi!"
    lines = create(
        store,
        "m",
        files={"tiny.gguf": weights},
        template=template,
        system=system,
        licenses=("MIT", "", "Apache-2.0"),
        parameters={"temperature": 1, "top_k": 10, "stop": ["USER:", "ASSISTANT:"]},
        messages=(Message("user", "hi"),),
    )
    digests = ("fe7ac77b725c", "f29e82a8284d", "e5dcffe836b6", "2af71558e438", "1d0ad71299d4")
    assert lines[:2] == ["parsing GGUF", f"using existing layer {digest_of(weights)}"]
    assert [line[:38] for line in lines[2:7]] == [f"creating new layer sha256:{digest}" for digest in digests]
    assert lines[7].startswith("creating new layer sha256:")
    assert lines[8:] == ["writing manifest", "success"]
    assert kinds(store, "m") == ["model", "template", "system", "license", "license", "params", "messages"]
    config = store.resolve(ModelName.parse("m")).config
    assert (config.model_format, config.model_family, config.model_families) == ("gguf", "test", ("test",))
    assert (config.model_type, config.file_type) == ("4", "F16")
    assert all(line.startswith(("parsing", "using existing", "writing", "success")) for line in create(
        store, "n", files={"tiny.gguf": weights}, template=template, system=system, licenses=("MIT",)
    ))  # fmt: skip
    check_sound(store.root)


def test_golden_config(store: Store) -> None:
    empty = gguf((ARCH,), ())
    create(store, "m", files={"test": empty})
    config = store.resolve(ModelName.parse("m")).manifest.config
    assert config.digest.hex == "99759ad5b91e723db0393d698ffbb448b1b7df5ff6377a108c49254583b1bc8c"


@pytest.mark.parametrize(
    ("file", "family", "size", "quantization"),
    [
        ("stories260K-f32.gguf", "llama", "260K", "unknown"),
        ("stories260K-f16.gguf", "llama", "260K", "F16"),
        ("stories260K-q4_0.gguf", "llama", "279K", "Q4_0"),
        ("all-MiniLM-L6-v2-q8_0.gguf", "bert", "22.57M", "Q8_0"),
    ],
)
def test_config_of_real_models(store: Store, file: str, family: str, size: str, quantization: str) -> None:
    digest = store.blobs.add_file(MODELS / file)
    request = CreateRequest(model="m", files={file: str(digest)})
    assemble(store, request, base=None, files={file: digest}, report=lambda _: None)
    config = store.resolve(ModelName.parse("m")).config
    assert (config.model_family, config.model_type, config.file_type) == (family, size, quantization)


def test_from_a_model(store: Store) -> None:
    base = tiny(
        store,
        "Base:1",
        template="old",
        system="old",
        licenses=("MIT",),
        parameters={"top_k": 1, "stop": ["a"]},
        messages=(Message("user", "old"),),
        renderer="r",
        requires="0.1.0",
        info={"capabilities": ["tools"]},
    )
    lines = create(
        store,
        "child",
        base=base,
        template="new",
        licenses=("Apache-2.0",),
        parameters={"stop": ["b"], "seed": 7},
        parser="p",
    )
    child = store.resolve(ModelName.parse("child"))
    assert [(layer.kind, layer.from_) for layer in child.manifest.layers] == [
        ("model", "Base:1"),
        ("system", "Base:1"),
        ("license", "Base:1"),
        ("messages", "Base:1"),
        ("template", ""),
        ("license", ""),
        ("params", ""),
    ]
    assert (child.template, child.system, child.licenses) == ("new", "old", ("MIT", "Apache-2.0"))
    assert child.params == {"top_k": 1, "stop": ["b"], "seed": 7}
    assert child.messages == (Message("user", "old"),)
    assert (child.config.renderer, child.config.parser, child.config.requires) == ("r", "p", "0.1.0")
    assert child.config.capabilities == ("tools",)
    assert child.config.model_families == ("test",)
    assert "parsing GGUF" not in lines
    assert [line.split(" layer ")[0] for line in lines] == [
        *["using existing"] * 4, *["creating new"] * 3, "writing manifest", "success",
    ]  # fmt: skip


def test_create_from_itself(store: Store) -> None:
    base = tiny(store, "m", system="old", messages=(Message("user", "x"),))
    create(store, "M", base=base, system="new", messages=(Message("user", "y"),))
    model = store.resolve(ModelName.parse("m"))
    assert (model.system, model.messages) == ("new", (Message("user", "y"),))
    assert len(store.names()) == 1
    assert not store.blobs.has(digest_of(b"old"))
    check_sound(store.root)


def test_adapters_and_projectors(store: Store) -> None:
    base = tiny(store, "base")
    adapter = store.blobs.add(ADAPTER)
    create(store, "tuned", base=base, adapters={"lora.gguf": str(adapter)})
    assert store.resolve(ModelName.parse("tuned")).adapters == (store.blobs.path(adapter),)
    create(store, "seeing", files={"m.gguf": gguf(), "mmproj.gguf": PROJECTOR})
    seeing = store.resolve(ModelName.parse("seeing"))
    assert seeing.projectors == (store.blobs.path(digest_of(PROJECTOR)),)
    assert (seeing.config.model_family, seeing.config.model_families) == ("test", ("test", "clip"))
    create(store, "both", base=base, files={"mmproj.gguf": PROJECTOR})
    assert kinds(store, "both") == ["model", "projector"]


def test_defaults_of_families(store: Store) -> None:
    gemma = gguf((("general.architecture", STRING, "gemma4"),))
    create(store, "g", files={"g.gguf": gemma})
    model = store.resolve(ModelName.parse("g"))
    assert (model.config.renderer, model.config.parser) == ("gemma4", "gemma4")
    assert model.params == {"stop": ["<turn|>"]}
    create(store, "h", files={"g.gguf": gemma}, parameters={"stop": ["x"]}, renderer="own")
    model = store.resolve(ModelName.parse("h"))
    assert (model.config.renderer, model.config.parser, model.params) == ("own", "", {"stop": ["x"]})


def test_info_overrides(store: Store) -> None:
    info = {
        "model_family": "mine",
        "parameter_size": "7B",
        "quantization_level": "Q9",
        "base_name": "b",
        "context_length": 8,
        "capabilities": ["vision"],
    }
    config = tiny(store, "m", info=info).config
    assert (config.model_family, config.model_families, config.model_type) == ("mine", ("mine",), "7B")
    assert (config.file_type, config.base_name, config.context_length) == ("Q9", "b", 8)
    assert config.capabilities == ("vision",)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"files": {}}, BadRequest, "neither 'from' or 'files' was specified"),
        ({"files": {"x.gguf": b"junk"}}, BadRequest, "supplied file was not in GGUF format"),
        ({"files": {"x.bin": b"junk"}}, BadRequest, "unknown type"),
        ({"files": {"x.bin": gguf(), "README": b"junk"}}, BadRequest, "supplied file was not in GGUF format"),
        ({"files": {"x.gguf": gguf(version=9)}}, CorruptModel, "not a usable GGUF file: version 9"),
        ({"files": {"/x.gguf": gguf()}}, BadRequest, "file path must be relative"),
        ({"files": {"../x.gguf": gguf()}}, BadRequest, "file path must be relative"),
        ({"files": {"a//x.gguf": gguf()}}, BadRequest, "file path must be relative"),
        ({"files": {"model.safetensors": b"x", "config.json": b"{}"}}, BadRequest, "this server cannot convert models"),
        ({"quantize": "Q4_K_M"}, BadRequest, "this server cannot convert models"),
        ({"quantize": "q9"}, BadRequest, "unsupported quantization type q9 - supported types are F32, F16, Q4_0, "),
        ({"quantize": "iq2_xxs"}, BadRequest, "IQ2_XXS requires an importance matrix"),
        ({"model": "a/b/c/d"}, BadRequest, "invalid model name"),
        ({"adapters": {"a.gguf": str(Digest("1" * 64))}}, NotFound, "blob \"sha256:1+\" not found"),
        ({"adapters": {"a.gguf": "x"}}, BadRequest, "invalid digest format"),
        ({"adapters": {"a": "x", "b": "x"}}, BadRequest, "only one adapter is currently supported"),
        ({"files": {"a.gguf": ADAPTER, "b.gguf": ADAPTER}}, BadRequest, "only one adapter is currently supported"),
        ({"files": {"m.gguf": gguf((*TINY, ("split.count", U32, 3)))}}, BadRequest, "must use llama.cpp split"),
        ({"info": {"base_name": 1}}, BadRequest, 'info field "base_name" must be a string'),
        ({"info": {"context_length": "x"}}, BadRequest, 'info field "context_length" must be a number'),
        ({"info": {"context_length": -1}}, BadRequest, 'info field "context_length" must be a non-negative integer'),
    ],
)  # fmt: skip
def test_bad_requests(store: Store, wrong: dict[str, Any], error: type[OllamaError], text: str) -> None:
    tiny(store, "kept", system="s")
    before = {key: raw for key, raw in snapshot(store.root).items() if key.startswith("manifests/")}
    with pytest.raises(error, match=text):
        create(store, **({"name": wrong.pop("model", "m"), "files": {"x.gguf": gguf()}} | wrong))
    assert {key: raw for key, raw in snapshot(store.root).items() if key.startswith("manifests/")} == before


def test_a_model_is_rejected_as_adapter(store: Store) -> None:
    with pytest.raises(BadRequest, match="is not an adapter"):
        create(store, "m", base=tiny(store, "base"), adapters={"a.gguf": str(store.blobs.add(gguf()))})


def with_tokens(*tokens: str, kind: str = "llama", types: tuple[int, ...] = ()) -> bytes:
    pairs = (
        ("general.architecture", STRING, "test"),
        ("test.block_count", U32, 1),
        ("tokenizer.ggml.model", STRING, kind),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, [*tokens])),
        ("tokenizer.ggml.token_type", ARRAY, (I32, types or [1] * len(tokens))),
    )
    return gguf(pairs)


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (with_tokens("a", "b", "c"), ""),
        (with_tokens("a", "b", "c", "[PAD3]", types=(1, 1, 1, 5)), ""),
        (with_tokens("a", "b", "<x>", types=(1, 1, 3)), 'its token 2 is "<x>", but "c" in the model'),
        (with_tokens("a", "c", "b"), 'its token 1 is "c", but "b" in the model'),
        (with_tokens("a", "b", "c", kind="gpt2"), "its tokenizer has another type than the model's"),
        (with_tokens("a", "b", *map(str, range(150))), "it has 152 tokens, the model has 3"),
        (gguf(data=bytes(64)), "its tokenizer has another type than the model's"),
    ],
)
def test_a_draft_model_needs_the_same_vocabulary(store: Store, draft: bytes, reason: str) -> None:
    store.blobs.add(draft)
    fields: dict[str, Any] = {"files": {"m.gguf": with_tokens("a", "b", "c")}}
    if not reason:
        create(store, "m", draft_files={"d.gguf": str(digest_of(draft))}, **fields)
        assert kinds(store, "m") == ["model", "draft"]
        return
    with pytest.raises(BadRequest) as caught:
        create(store, "m", draft_files={"d.gguf": str(digest_of(draft))}, **fields)
    assert caught.value.message == f"the draft model cannot be used: {reason}"
    assert not store.names()


def test_markup_tokens_of_a_draft_model_may_differ(store: Store) -> None:
    draft = with_tokens("a", "<y>", types=(1, 4))
    store.blobs.add(draft)
    model = with_tokens("a", "<x>", types=(1, 3))
    create(store, "m", files={"m.gguf": model}, draft_files={"d.gguf": str(digest_of(draft))})
    assert kinds(store, "m") == ["model", "draft"]


def test_a_draft_model_is_a_separate_layer_and_inherited(store: Store) -> None:
    draft, other = gguf(data=bytes(64)), gguf(data=bytes(96))
    for data in (draft, other):
        store.blobs.add(data)
    create(store, "m", files={"tiny.gguf": gguf()}, draft_files={"d.gguf": str(digest_of(draft))})
    model = store.resolve(ModelName.parse("m"))
    assert kinds(store, "m") == ["model", "draft"]
    assert model.draft == store.blobs.path(digest_of(draft)) and model.weights == store.blobs.path(digest_of(gguf()))
    assert (model.config.model_families, model.config.extra["draft"]) == (
        ("test",),
        {"model_format": "gguf", "architecture": "test"},
    )
    create(store, "n", base=model)
    assert store.resolve(ModelName.parse("n")).draft == model.draft
    create(store, "n", base=model, draft_files={"d.gguf": str(digest_of(other))})
    assert store.resolve(ModelName.parse("n")).draft == store.blobs.path(digest_of(other))
    check_sound(store.root)


def test_unsuitable_draft_models(store: Store) -> None:
    store.blobs.add(ADAPTER)
    with pytest.raises(BadRequest, match=r"d\.gguf cannot be used as draft model"):
        create(store, "m", files={"tiny.gguf": gguf()}, draft_files={"d.gguf": str(digest_of(ADAPTER))})
    with pytest.raises(BadRequest, match=r'"a\.gguf" and "b\.gguf" are two models'):
        drafts = {name: str(store.blobs.add(gguf())) for name in ("a.gguf", "b.gguf")}
        create(store, "m", files={"tiny.gguf": gguf()}, draft_files=drafts)
