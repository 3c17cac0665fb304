"""How a model is loaded: context, sequences, batch; which loaded model serves which request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool_harness import MIB, a_gguf, a_model

from ollama_nb.api.models import Layer
from ollama_nb.api.names import Digest
from ollama_nb.api.options import Options
from ollama_nb.runner import wire
from ollama_nb.runner.placement import UNKNOWN_MEMORY, MachineMemory, cache_bytes_per_token, measure, place, serves
from ollama_nb.settings import Settings

GIB = 1 << 30
SMOLLM2 = {"context_length": 8192, "block_count": 30, "embedding_length": 576, "head_count": 9, "head_count_kv": 3}


def placed(
    options: Options | None = None,
    *,
    free: int = 20 * GIB,
    vram: int = 0,
    env: dict[str, Any] | None = None,
    **facts: Any,
) -> wire.EngineConfig:
    machine = MachineMemory(free_memory=free, vram=vram)
    return place(a_model(size=100 * MIB), a_gguf(**facts), options or Options(), Settings(**(env or {})), machine).load


@pytest.mark.parametrize(
    ("asked", "trained", "env", "vram", "expected"),
    [
        (None, 131_072, 0, 0, 4096),
        (None, 131_072, 0, 24 * GIB, 32_768),
        (None, 300_000, 0, 48 * GIB, 262_144),
        (None, 512, 0, 0, 512),
        (None, 131_072, 16_384, 0, 16_384),
        (1024, 131_072, 16_384, 0, 1024),
        (1 << 40, 8192, 0, 0, 8192),
        (6000, 0, 0, 0, 6000),  # the header has no trained context length
        (1, 8192, 0, 0, 4),
    ],
)
def test_context(asked: int | None, trained: int, env: int, vram: int, expected: int) -> None:
    load = placed(Options(num_ctx=asked), vram=vram, env={"context_length": env}, context_length=trained)
    assert load.n_ctx == expected


@pytest.mark.parametrize(
    ("facts", "cache_type", "expected"),
    [
        (SMOLLM2, "f16", 30 * 3 * 128 * 2),
        (SMOLLM2, "f32", 30 * 3 * 128 * 4),
        (SMOLLM2, "q8_0", 30 * 3 * 4 * 34),
        (SMOLLM2 | {"head_count_kv": None}, "f16", 30 * 9 * 128 * 2),
        (SMOLLM2 | {"head_count_kv": [3] * 10 + [1] * 20}, "f16", 50 * 128 * 2),
        (SMOLLM2 | {"key_length": 128, "value_length": 64}, "f16", 30 * 3 * 192 * 2),
        (SMOLLM2 | {"head_count": 0}, "f16", 0),
        (SMOLLM2 | {"head_count": None}, "f16", 0),
        (SMOLLM2 | {"causal": False}, "f16", 0),
    ],
)
def test_kv_cache_bytes_per_token(facts: dict[str, Any], cache_type: str, expected: int) -> None:
    assert cache_bytes_per_token(a_gguf(**facts), cache_type) == expected


def test_sequences_fit_the_free_memory() -> None:
    one_context = 4096 * 30 * 3 * 128 * 2  # 90 MiB
    found = [placed(free=free, **SMOLLM2).n_seq for free in (20 * GIB, 2 * GIB, GIB // 2, 0)]
    assert found == [8, int((2 * GIB - 240 * MIB) * 0.25 // one_context), 1, 1]
    assert placed(free=0, env={"num_parallel": 5}, **SMOLLM2).n_seq == 5
    assert placed(pooling_type=1, **SMOLLM2).n_seq == 1


def test_batch() -> None:
    assert [placed(Options(num_ctx=n), context_length=0).n_batch for n in (2048, 4096, 8192, 65_536)] == [
        512,
        512,
        1024,
        2048,
    ]
    assert placed(Options(num_batch=64)).n_batch == 64
    assert placed(Options(num_batch=1 << 40)).n_batch == 4096  # at most a context
    assert placed(Options(num_batch=0)).n_batch == 512
    assert placed(pooling_type=1, context_length=512).n_batch == 512


def test_options_of_the_user_are_kept() -> None:
    asked = Options(num_gpu=7, main_gpu=1, use_mmap=False, num_thread=3)
    load = placed(asked, env={"flash_attention": True, "kv_cache_type": "q8_0"})
    assert (load.n_gpu_layers, load.main_gpu, load.use_mmap, load.n_threads) == (7, 1, False, 3)
    assert (load.flash_attention, load.kv_cache_type) == (True, "q8_0")
    assert (placed().n_gpu_layers, placed().main_gpu, placed().use_mmap, placed().n_threads) == (-1, None, True, 0)


LOADED = wire.EngineConfig(path="/m", draft="/d", n_ctx=4096, n_batch=512, n_gpu_layers=-1)


@pytest.mark.parametrize(
    ("wanted", "options", "expected"),
    [
        ({}, {}, True),
        ({"n_ctx": 100}, {"num_ctx": 100}, True),
        ({"n_ctx": 8192}, {"num_ctx": 8192}, False),
        ({"path": "/other"}, {}, False),
        ({"n_seq": 3, "n_batch": 1024}, {}, True),
        ({"n_batch": 64}, {"num_batch": 64}, False),
        ({"n_batch": 512}, {"num_batch": 512}, True),
        ({"n_gpu_layers": 0}, {"num_gpu": 0}, False),
        ({"n_gpu_layers": -1}, {"num_gpu": -1}, True),
        ({"main_gpu": 1}, {"main_gpu": 1}, False),
        ({"use_mmap": False}, {"use_mmap": False}, False),
        ({"use_mmap": True}, {"use_mmap": True}, True),
        ({"n_threads": 2}, {"num_thread": 2}, False),
        ({"draft": ""}, {"draft_num_predict": 0}, True),
        ({"draft": "/other"}, {}, False),
    ],
)
def test_serves(wanted: dict[str, Any], options: dict[str, Any], expected: bool) -> None:
    load = wire.EngineConfig(**{name: getattr(LOADED, name) for name in LOADED.__struct_fields__} | wanted)
    assert serves(LOADED, load, Options(**options)) is expected


JUNK = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(-5, 1 << 80), st.floats(), st.lists(st.integers(-1, 9))
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*SMOLLM2, "key_length", "pooling_type", "feed_forward_length"]), JUNK))
def test_an_invalid_header_gives_a_placement(facts: dict[str, Any]) -> None:
    load = placed(**facts)
    assert load.n_ctx >= 4
    assert 1 <= load.n_seq <= 8
    assert 1 <= load.n_batch <= 2048, load


def test_need_grows_with_the_size_of_the_load() -> None:
    model, machine = a_model(size=100 * MIB), MachineMemory(free_memory=20 * GIB)
    small = place(model, a_gguf(), Options(num_ctx=512), Settings(), machine).bytes_needed
    large = place(model, a_gguf(), Options(num_ctx=8192), Settings(), machine).bytes_needed
    assert 100 * MIB < small < large


def test_a_draft_model_is_loaded_unless_drafting_is_off() -> None:
    plain, machine = a_model(size=100 * MIB), MachineMemory(free_memory=20 * GIB)
    small = Layer("application/vnd.ollama.image.draft", Digest("1" * 64), 10 * MIB)
    model = replace(plain, manifest=replace(plain.manifest, layers=(*plain.manifest.layers, small)), draft=Path("/d"))
    with_draft = place(model, a_gguf(), Options(), Settings(), machine)
    assert with_draft.load.draft == "/d"
    assert with_draft.bytes_needed > place(plain, a_gguf(), Options(), Settings(), machine).bytes_needed + 10 * MIB
    assert place(model, a_gguf(), Options(draft_num_predict=0), Settings(), machine).load.draft == ""


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_free_memory_respects_container_limits(tmp_path: Path) -> None:
    assert measure(tmp_path).free_memory == UNKNOWN_MEMORY
    write_files(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"})
    assert measure(tmp_path).free_memory == 8000 << 10
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/nb.scope\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/nb.scope/memory.max": "5000000\n",
            "sys/fs/cgroup/user.slice/nb.scope/memory.current": "4000000\n",
            "sys/fs/cgroup/user.slice/nb.scope/memory.stat": "anon 1\nfile 900000\ninactive_file 700000\n",
        },
    )
    assert measure(tmp_path).free_memory == 1_700_000
    write_files(
        tmp_path,
        {"sys/fs/cgroup/user.slice/memory.max": "900000\n", "sys/fs/cgroup/user.slice/memory.current": "1000000\n"},
    )
    assert measure(tmp_path).free_memory == 0


def test_this_machine_has_some_memory() -> None:
    assert measure().free_memory > 0


@pytest.mark.parametrize(("cap", "folder"), [(1 << 30, "/home/me/nb/prefixes"), (0, "")])
def test_prefixes_on_disk_follow_the_settings(cap: int, folder: str) -> None:
    load = placed(env={"home": Path("/home/me/nb"), "prefix_cache": cap})
    assert (load.prefix_folder, load.prefix_bytes) == (folder, cap)
