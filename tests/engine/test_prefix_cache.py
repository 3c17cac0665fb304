"""The prefix cache with real models: the same text, computed or restored, alone and with other requests."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.models import long_stories, tiny_mamba

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.messages import CompletionRequest, EngineConfig, Finished, Output
from ollama_nb.engine.prefix_store import Prefix, PrefixStore

PROMPT = tuple(3 + n * n % 300 for n in range(1000))
OTHER = tuple(3 + n * 7 % 311 for n in range(600))
ids = itertools.count(1)
pytestmark = pytest.mark.usefixtures("free_disk")


@pytest.fixture(scope="module")
def long_path(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_stories(models / "stories260K-f32.gguf", tmp_path_factory.mktemp("long") / "stories.gguf")


@contextmanager
def engine(path: Path, folder: Path | None, **config: Any) -> Iterator[Engine]:
    facts = {"n_ctx": 4096, "n_seq": 3, "n_threads": 1, "prefix_gain": 0.0, "prefix_bytes": 1 << 30, **config}
    engine = Engine(EngineConfig(path=str(path), prefix_folder=str(folder or ""), **facts))
    try:
        yield engine
        assert engine.counters["busy_slots"] == engine.counters["waiting"] == 0
    finally:
        engine.close()


def ask(tokens: tuple[int, ...] = PROMPT, num_predict: int = 12, **fields: Any) -> CompletionRequest:
    options = Options(temperature=0.0, num_predict=num_predict)
    return CompletionRequest(id=next(ids), tokens=tokens, options=options, return_tokens=True, **fields)


def run(engine: Engine, *requests: CompletionRequest) -> list[Finished]:
    for request in requests:
        engine.submit(request)
    return finish(engine, *requests)


def finish(engine: Engine, *requests: CompletionRequest) -> list[Finished]:
    """Run to the end of all requests, of which some may have been submitted before."""
    outs: list[Output] = []
    while engine.busy:
        outs += engine.step()
    ends = {out.id: out for out in outs if isinstance(out, Finished)}
    return [ends[request.id] for request in requests]


def disk(engine: Engine) -> tuple[int, int]:
    return engine.counters["disk_hits"], engine.counters["disk_tokens"]


def stored_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.prefix"))


def test_a_new_engine_continues_from_the_disk(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path / "p") as first:
        (computed,) = run(first, ask())
        assert (computed.cached_tokens, disk(first)) == (0, (0, 0))
    (file,) = stored_files(tmp_path / "p")
    with engine(long_path, tmp_path / "p") as second:
        (restored,) = run(second, ask())
        assert restored.tokens == computed.tokens
        assert (restored.cached_tokens, disk(second)) == (999, (1, 999))
        assert second.counters["prompt_tokens"] == 1
        assert second.counters["disk_bytes"] == file.stat().st_size
        (again,) = run(second, ask())
        assert again.tokens == computed.tokens and disk(second) == (1, 999), "now it is in memory"


def test_a_prefix_is_loaded_for_a_request_that_preempts_another(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        (computed,) = run(first, ask())
    with engine(long_path, tmp_path, n_seq=1) as second:
        background = ask(OTHER, 40, background=True)
        second.submit(background)
        for _ in range(8):
            second.step()
        urgent = ask()
        second.submit(urgent)
        restored, interrupted = finish(second, urgent, background)
        assert restored.tokens == computed.tokens and restored.cached_tokens == 999
        assert (interrupted.output_tokens, second.counters["preemptions"]) == (40, 1)


def test_a_different_prompt_uses_the_common_part(long_path: Path, tmp_path: Path) -> None:
    changed = (*PROMPT[:700], 9, *OTHER)
    with engine(long_path, None) as plain:
        (expected,) = run(plain, ask(changed))
    with engine(long_path, tmp_path) as first:
        run(first, ask())
    with engine(long_path, tmp_path) as second:
        (restored,) = run(second, ask(changed))
        assert restored.tokens == expected.tokens and restored.cached_tokens == 700


def test_two_with_the_same_prefix_load_it_once(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        alone = [run(first, ask(tokens))[0].tokens for tokens in (PROMPT, OTHER)]
    with engine(long_path, tmp_path, n_seq=4) as second:
        short = ask((5, 6, 7), 40)
        ends = run(second, short, ask(), ask(), ask(OTHER))
        assert [end.tokens for end in ends[1:]] == [alone[0], alone[0], alone[1]]
        assert ends[1].cached_tokens == ends[2].cached_tokens == 999
        assert second.counters["disk_hits"] <= 2, "the second request shares cells"


class Gate:
    """Blocks loading until opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        real = PrefixStore.load

        def load(store: PrefixStore, prefix: Prefix) -> Any:
            self.reached.set()
            assert self.opened.wait(60)
            return real(store, prefix)

        monkeypatch.setattr(PrefixStore, "load", load)


def test_other_requests_run_while_the_disk_is_slow(
    long_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(long_path, tmp_path) as first:
        run(first, ask())
    gate = Gate(monkeypatch)
    with engine(long_path, tmp_path) as second:
        second.submit(ask())
        second.step()
        assert gate.reached.wait(60)
        quick = ask((5, 6, 7), 30)
        second.submit(quick)
        outs: list[Output] = []
        while not any(isinstance(out, Finished) for out in outs):
            outs += second.step()
        assert outs[-1].id == quick.id
        gate.opened.set()
        while second.busy:
            outs += second.step()
        assert isinstance(outs[-1], Finished) and outs[-1].cached_tokens == 999


def test_a_prompt_beside_replies_is_stored_too(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        talk = ask((5, 6, 7), 400)
        first.submit(talk)
        first.step()
        first.step()
        (long,) = run(first, ask(num_predict=4))
    with engine(long_path, tmp_path) as second:
        assert run(second, ask(num_predict=4))[0].tokens == long.tokens
        assert disk(second) == (1, 999)


def test_a_request_can_be_cancelled_while_its_prefix_loads(
    long_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(long_path, tmp_path) as first:
        run(first, ask())
    gate = Gate(monkeypatch)
    with engine(long_path, tmp_path) as second:
        request = ask()
        second.submit(request)
        second.step()
        assert gate.reached.wait(60)
        second.cancel(request.id)
        (end,) = second.step()
        assert isinstance(end, Finished) and end.reason == "cancelled" and not second.busy
        gate.opened.set()
        assert run(second, ask())[0].cached_tokens == 999


def test_a_broken_file_only_costs_time(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        (computed,) = run(first, ask())
    (file,) = stored_files(tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with engine(long_path, tmp_path) as second:
        (again,) = run(second, ask())
        assert again.tokens == computed.tokens
        assert (again.cached_tokens, disk(second)) == (0, (0, 0))
    assert stored_files(tmp_path) == [file] and file.read_bytes() != bytes(data), "computed and stored again"


def test_a_state_that_native_code_refuses_only_costs_time(
    long_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(long_path, tmp_path) as first:
        (computed,) = run(first, ask())
    real = PrefixStore.load
    monkeypatch.setattr(PrefixStore, "load", lambda store, prefix: real(store, prefix)[:-1000])  # type: ignore[index]
    with engine(long_path, tmp_path) as second:
        (again,) = run(second, ask())
        assert again.tokens == computed.tokens and disk(second) == (0, 0)


def test_a_growing_chat_has_one_file(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as chat:
        for count in (300, 340, 600):
            run(chat, ask(PROMPT[:count], 0))
            chat.flush(60)
        assert chat.counters["disk_kept"] == 2, "340 has too little new"
        assert len(stored_files(tmp_path)) == 1
    with engine(long_path, tmp_path) as later:
        assert run(later, ask(PROMPT[:800]))[0].cached_tokens == 600


def test_a_reply_is_stored_with_its_prompt(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        (end,) = run(first, ask(PROMPT[:200], 300))
    with engine(long_path, tmp_path) as second:
        (longer,) = run(second, ask((*end.tokens, 5, 6)))
        assert longer.cached_tokens >= 499


def test_of_a_shifted_window_only_the_prompt_is_stored(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        run(first, ask(PROMPT[:200], 300, num_ctx=256))
        assert first.counters["shifts"]
    with engine(long_path, tmp_path) as second:
        assert run(second, ask(PROMPT[:300]))[0].cached_tokens == 200


def test_another_cache_type_has_its_own_prefixes(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        run(first, ask())
    with engine(long_path, tmp_path, kv_cache_type="f32") as second:
        assert run(second, ask())[0].cached_tokens == 0
    assert len(stored_files(tmp_path)) == 2


def test_a_prefix_that_exceeds_the_context_is_not_used(long_path: Path, tmp_path: Path) -> None:
    with engine(long_path, tmp_path) as first:
        run(first, ask())
    with engine(long_path, tmp_path, n_ctx=512) as second:
        assert run(second, ask(PROMPT[:400]))[0].cached_tokens == 0


@pytest.mark.parametrize("off", [{"prefix_bytes": 0}, {"prefix_gain": 1e9}])
def test_no_folder_without_stored_prefixes(long_path: Path, tmp_path: Path, off: dict[str, Any]) -> None:
    with engine(long_path, tmp_path / "p", **off) as only:
        run(only, ask())
    assert not (tmp_path / "p").exists()


def test_the_state_of_a_recurrent_model_is_used_whole(models: Path, tmp_path: Path) -> None:
    mamba = tiny_mamba(models / "stories260K-f32.gguf", tmp_path / "mamba.gguf")
    with engine(mamba, tmp_path / "p") as first:
        (computed,) = run(first, ask())
    with engine(mamba, tmp_path / "p") as second:
        (restored,) = run(second, ask())
        assert restored.tokens == computed.tokens
        assert restored.cached_tokens == 512, "all but the last batch"
        (other,) = run(second, ask(PROMPT[:700]))
        assert other.cached_tokens == 0, "it cannot be cut"


def test_any_schedule_gives_the_text_of_a_request_alone(long_path: Path, tmp_path: Path) -> None:
    """Prefixes are stored, restored, shared and evicted, with cancels at any time: no reply differs."""
    prompts = [PROMPT[:count] for count in (70, 150, 400)] + [OTHER[:200], (*PROMPT[:130], *OTHER[:90])]
    with engine(long_path, None, n_seq=1) as alone:
        expected = [run(alone, ask(prompt, 8))[0].tokens for prompt in prompts]
    hits = 0
    for seed in range(6):
        dice = random.Random(seed)
        with engine(long_path, tmp_path, n_seq=2, n_batch=64, prefix_bytes=600_000) as crowd:
            asked: dict[int, int] = {}
            outs: list[Output] = []
            while len(asked) < 12 or crowd.busy:
                if len(asked) < 12 and dice.random() < 0.3:
                    which = dice.randrange(len(prompts))
                    request = ask(prompts[which], 8)
                    asked[request.id] = which
                    crowd.submit(request)
                if asked and dice.random() < 0.03:
                    crowd.cancel(dice.choice(list(asked)))
                outs += crowd.step()
            ends = [out for out in outs if isinstance(out, Finished)]
            assert sorted(end.id for end in ends) == sorted(asked)
            for end in ends:
                whole = expected[asked[end.id]]
                assert end.tokens == whole or (end.reason == "cancelled" and end.tokens == whole[: len(end.tokens)])
            hits += crowd.counters["disk_hits"]
        assert sum(file.stat().st_size for file in stored_files(tmp_path)) <= 600_000
    assert hits
