"""LoRA adapters per request: each request gives the same text as alone, and shares prefixes only within its set."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import engines
from support.engines import EXACT, STORY, embed, reply_of, run
from support.ggufs import F32, F64, STRING, U32, gguf
from support.models import random_lora

from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama.model import MAX_UNUSED_ADAPTERS
from ollama_nb.engine.messages import Adapter, Adapters, CompletionRequest, EngineConfig
from ollama_nb.engine.scheduler import Scheduler
from ollama_nb.engine.sequence import Sequence, SequenceState
from ollama_nb.errors import BadRequest

PROMPTS = "Once upon a time", STORY * 2 + "Lily", STORY * 2 + "Tom had a dog"


def load(path: str, **config: Any) -> Engine:
    return Engine(EngineConfig(path=str(path), **{"n_seq": 4, **EXACT, **config}))


@pytest.fixture(scope="module")
def expected(path: str, adapter_sets: tuple[Adapters, ...]) -> Iterator[dict[tuple[str, Adapters], str]]:
    """The reply to each prompt with each set of adapters, in an engine that serves no other request."""
    found = {}
    for adapters in adapter_sets:
        engine = load(path, n_seq=1)
        for prompt in PROMPTS:
            found[prompt, adapters] = run(engine, ask(prompt, adapters))[0].text
        engine.close()
    assert len({found[PROMPTS[0], adapters] for adapters in adapter_sets}) == len(adapter_sets), (
        "each set changes the reply"
    )
    yield found


def ask(prompt: str, adapters: Adapters = (), **options: Any) -> CompletionRequest:
    return engines.ask(prompt, adapters=adapters, **{"num_predict": 40, "draft_num_predict": 0, **options})


@pytest.mark.parametrize("drafts", [None, 0])
def test_mixed_requests_give_the_same_text_as_alone(
    path: str, adapter_sets: tuple[Adapters, ...], expected: dict[tuple[str, Adapters], str], drafts: int | None
) -> None:
    engine = load(path, n_batch=32)
    for seed in range(4):
        dice, asked, outs = random.Random(seed), {}, []
        while len(asked) < 12 or engine.busy:
            if len(asked) < 12 and dice.random() < 0.3:
                request = ask(dice.choice(PROMPTS), dice.choice(adapter_sets), draft_num_predict=drafts)
                asked[request.id] = request
                engine.submit(request)
            outs += engine.step()
        for id, request in asked.items():
            text = reply_of(outs, id).text
            assert text == expected[request.prompt, request.adapters]
    assert engine.counters["cached_tokens"] > 0, "prefixes are shared within a set"
    engine.close()


def test_a_prefix_is_reused_with_the_same_adapters_only(path: str, adapter_sets: tuple[Adapters, ...]) -> None:
    engine = load(path)
    cached = []
    for adapters in (*adapter_sets, *adapter_sets):
        (reply,) = run(engine, ask(PROMPTS[1], adapters, num_predict=2))
        cached.append(reply.done.cached_tokens)
    assert cached[: len(adapter_sets)] == [0] * len(adapter_sets)
    assert sum(map(bool, cached[len(adapter_sets) :])) == 0, "four slots hold the last four of five sets"
    assert run(engine, ask(PROMPTS[1], adapter_sets[-1]))[0].done.cached_tokens > 20
    engine.close()


@pytest.mark.usefixtures("free_disk")
def test_a_prefix_on_disk_is_reused_with_the_same_adapters_only(
    path: str, adapter_sets: tuple[Adapters, ...], tmp_path: Path
) -> None:
    disk: dict[str, Any] = {"prefix_folder": str(tmp_path), "prefix_bytes": 1 << 28, "prefix_gain": 0.0}
    prompt = STORY * 8
    first = load(path, **disk)
    whole = {adapters: run(first, ask(prompt, adapters))[0].text for adapters in adapter_sets[:2]}
    first.close()
    assert len({file.name.partition("-")[0] for file in tmp_path.glob("*.prefix")}) == 2
    second = load(path, **disk)
    hits = []
    for adapters in adapter_sets[:4]:
        text = run(second, ask(prompt, adapters))[0].text
        assert text == whole.get(adapters, text)
        hits.append(second.counters["disk_hits"])
    assert hits == [1, 2, 2, 2]
    second.close()


def test_unused_adapters_are_freed(
    path: str, tmp_path: Path, adapter_sets: tuple[Adapters, ...], expected: dict[tuple[str, Adapters], str]
) -> None:
    engine = load(path)
    many = [(Adapter(str(random_lora(path, tmp_path / f"{n}.gguf", n))),) for n in range(MAX_UNUSED_ADAPTERS + 4)]
    requests = [ask(PROMPTS[0], adapters, num_predict=3) for adapters in (*many, *many)]
    assert all(reply.text for reply in run(engine, *requests))
    assert len(engine._model._adapters) <= MAX_UNUSED_ADAPTERS + 1
    for adapters in many:
        embed(engine, ["Once"], adapters=adapters)
        assert len(engine._model._adapters) <= MAX_UNUSED_ADAPTERS + 2
    for adapters in adapter_sets:
        assert run(engine, ask(PROMPTS[0], adapters))[0].text == expected[PROMPTS[0], adapters]
    engine.close()


def test_embeddings_depend_on_the_adapters(path: str, adapter_sets: tuple[Adapters, ...]) -> None:
    engine = load(path)
    vectors = {adapters: embed(engine, ["Once upon a time"], adapters=adapters)[0] for adapters in adapter_sets}
    again = {adapters: embed(engine, ["Once upon a time"], adapters=adapters)[0] for adapters in reversed(adapter_sets)}
    assert all((vectors[adapters] == again[adapters]).all() for adapters in adapter_sets)
    assert len({vector.tobytes() for vector in vectors.values()}) == len(adapter_sets)
    engine.close()


def test_sets_of_adapters_take_turns() -> None:
    """A long prompt with one set does not stall replies with another for a whole batch."""
    scheduler = Scheduler(4, 512)
    one, two = (Adapter("/1"),), (Adapter("/2"),)
    replying = [Sequence(number, [5, 6, 7], limit=4096, adapters=adapters) for number, adapters in ((1, ()), (2, one))]
    for seq in replying:
        scheduler.add(seq)
    scheduler.admit()
    for _ in replying:
        scheduler.commit(scheduler.plan())
    assert [seq.state for seq in replying] == [SequenceState.DECODE] * 2
    scheduler.add(Sequence(3, [8] * 2000, limit=4096, adapters=two))
    scheduler.admit()
    served = []
    for _ in range(9):
        batch = scheduler.plan()
        assert {chunk.seq.adapters for chunk in batch.chunks} == {batch.adapters}
        served.append((batch.adapters, batch.size))
        scheduler.commit(batch)
        for chunk in batch.chunks[: batch.replies]:
            chunk.seq.append(9)
    assert [Counter(served[at : at + 3]) for at in (0, 3, 6)] == [Counter([((), 1), (one, 1), (two, 128)])] * 3


ARCH = ("general.architecture", STRING, "llama")
TYPED = (("general.type", STRING, "adapter"), ("adapter.type", STRING, "lora"), ("adapter.lora.alpha", F32, 4.0))
HALVES = (("blk.0.attn_q.weight.lora_a", (64, 4), 0, 0), ("blk.0.attn_q.weight.lora_b", (4, 64), 0, 1024))


def broken() -> dict[str, tuple[bytes, str]]:
    data = bytes(2048)
    return {
        "nothing": (b"", "GGUF"),
        "model": (gguf((ARCH,)), "not a LoRA adapter"),
        "other.architecture": (gguf((("general.architecture", STRING, "bert"), *TYPED), HALVES, data=data), '"bert"'),
        "cut.off": (gguf((ARCH, *TYPED), HALVES, data=data)[:-9], "beyond the end"),
        "no.tensors": (gguf((ARCH, *TYPED), ()), "changes no weights"),
        "whole.alpha": (gguf((ARCH, *TYPED[:2], ("adapter.lora.alpha", U32, 4)), HALVES, data=data), "alpha"),
        "double.alpha": (gguf((ARCH, *TYPED[:2], ("adapter.lora.alpha", F64, 4.0)), HALVES, data=data), "float32"),
        "one.half": (gguf((ARCH, *TYPED), HALVES[:1], data=data), "missing one component"),
        "no.such.tensor": (
            gguf((ARCH, *TYPED), [(f"x{name}", *rest) for name, *rest in HALVES], data=data), "does not exist"
        ),
        "wrong.shape": (
            gguf((ARCH, *TYPED), ((HALVES[0][0], (128, 2), 0, 0), HALVES[1]), data=data), "incorrect shape"
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def engine(path: str) -> Iterator[Engine]:
    engine = load(path)
    yield engine
    assert run(engine, ask("Once upon a time"))[0].text.startswith(", there was")
    engine.close()


@pytest.mark.parametrize("name", broken())
def test_an_unusable_adapter_is_reported_with_the_reason(engine: Engine, tmp_path: Path, name: str) -> None:
    data, reason = broken()[name]
    file = tmp_path / f"{name}.gguf"
    file.write_bytes(data)
    failed = run(engine, ask("Once upon a time", (Adapter(str(file)),)))[0].failure
    assert failed.status == 400
    assert failed.message.startswith(f"cannot use the adapter {name}.gguf: ") and reason in failed.message
    with pytest.raises(BadRequest, match=name):
        embed(engine, ["a"], adapters=(Adapter(str(file)),))


def test_a_missing_adapter_is_reported(engine: Engine, tmp_path: Path) -> None:
    failed = run(engine, ask("Once upon a time", (Adapter(str(tmp_path / "gone.gguf")),)))[0].failure
    assert "gone.gguf" in failed.message
