"""The GGUF parser agrees with the ``gguf`` package on real files and raises CorruptModel for invalid files."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path
from typing import Any

import gguf as library
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ggufs import ARRAY, BOOL, F32, STRING, TINY, U8, U32, U64, gguf, text, value

from ollama_nb.errors import CorruptModel, StoreError
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.quantization import FILE_TYPES, TENSOR_TYPES

MODELS = Path(__file__).parent.parent / "models"
SPROUT = Path(__file__).parent.parent.parent / "ollama_nb" / "sprout" / "sprout-q8_0.gguf"
REAL = [*sorted(MODELS.glob("*.gguf")), SPROUT]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_agrees_with_the_gguf_library(path: Path) -> None:
    ours = read_gguf(path, arrays=True)
    reference = library.GGUFReader(path)
    fields = {name: field.contents() for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for name, content in fields.items():
        assert ours.metadata[name] == content, name
    assert [(t.name, t.type, t.shape) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, tuple(int(d) for d in t.shape)) for t in reference.tensors
    ]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_without_arrays_the_rest_is_the_same(path: Path) -> None:
    full, light = read_gguf(path, arrays=True), read_gguf(path)
    assert light.tensors == full.tensors
    assert light.metadata == {key: None if isinstance(v, list) and v else v for key, v in full.metadata.items()}


def test_type_table_agrees_with_the_gguf_library() -> None:
    for kind, sizes in library.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # an intermediate type that does not occur in files; the library has its old layout
            assert (TENSOR_TYPES[kind].name, TENSOR_TYPES[kind].block, TENSOR_TYPES[kind].size) == (kind.name, *sizes)
    newer = {42: "Q2_0"}  # in llama.cpp, but not in every release of the library
    assert {
        n: t.name for n, t in TENSOR_TYPES.items() if n not in set(library.GGML_QUANT_SIZES)
    }.items() <= newer.items()


def test_file_types_agree_with_the_gguf_library() -> None:
    known = {kind.value: kind.name for kind in library.LlamaFileType}
    for number, name in FILE_TYPES.items():
        if name == "Q2_0" and number not in known:
            continue  # newer than this release of the library
        assert known[number].removeprefix("ALL_").removeprefix("MOSTLY_") in (name, "MXFP4_MOE")


@pytest.fixture
def make_file(tmp_path: Path) -> Any:
    def make(data: bytes) -> Path:
        path = tmp_path / "made.gguf"
        path.write_bytes(data)
        return path

    return make


def test_a_tiny_file(make_file: Any) -> None:
    header = read_gguf(make_file(gguf()))
    assert (header.version, header.architecture, header.arch("block_count")) == (3, "test", 1)
    assert header.metadata["tokenizer.ggml.tokens"] is None
    assert header.parameter_count == 4
    assert read_gguf(make_file(gguf()), arrays=True).metadata["tokenizer.ggml.tokens"] == ["a", "b", "你"]
    assert read_gguf(make_file(gguf(version=2))).version == 2


def test_empty_arrays_are_kept(make_file: Any) -> None:
    assert read_gguf(make_file(gguf((*TINY, ("x", ARRAY, (U32, [])))))).metadata["x"] == []


def test_values_of_all_types(make_file: Any) -> None:
    pairs = (("general.architecture", STRING, "test"), ("b", BOOL, True), ("u", U64, 2**64 - 1), ("f", F32, 0.5))
    metadata = read_gguf(make_file(gguf(pairs, ()))).metadata
    assert (metadata["b"], metadata["u"], metadata["f"]) == (True, 2**64 - 1, 0.5)


def test_a_large_vocabulary_is_skipped(make_file: Any) -> None:
    pairs = (*TINY[:3], ("tokenizer.ggml.tokens", ARRAY, (STRING, [f"token {i}" for i in range(200_000)])))
    path = make_file(gguf(pairs))
    assert read_gguf(path).metadata["tokenizer.ggml.tokens"] is None
    assert read_gguf(path, arrays=True).metadata["tokenizer.ggml.tokens"][-1] == "token 199999"


ARCH = TINY[0]
INVALID_FILES = {
    "empty": b"",
    "four bytes": b"GGUF",
    "not GGUF": b"PK\x03\x04" + bytes(100),
    "big-endian magic": gguf(magic=b"FUGG"),
    "big-endian version": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "version 1": gguf(version=1),
    "version 4": gguf(version=4),
    "no architecture": gguf(TINY[1:]),
    "architecture is a number": gguf((("general.architecture", U32, 1),)),
    "architecture with a slash": gguf((("general.architecture", STRING, "../x"),)),
    "more tensors than bytes": gguf(tensor_count=2**40),
    "negative tensor count": gguf(tensor_count=2**64 - 1),
    "more keys than bytes": gguf(pair_count=2**40),
    "one key too many": gguf(pair_count=len(TINY) + 1),
    "key without a name": gguf((*TINY, ("", U32, 1))),
    "key twice": gguf((*TINY, TINY[1])),
    "unknown value type": gguf((ARCH,), pair_count=2)[:-64] + text("k") + struct.pack("<I", 99) + bytes(64),
    "array of arrays": gguf((ARCH, ("x", ARRAY, (ARRAY, [(U32, [1])])))),
    "array longer than the file": gguf((ARCH,), (), pair_count=2, data=b"", alignment=1)
    + text("x")
    + struct.pack("<IIQ", ARRAY, U8, 2**26),
    "array over the budget": gguf((ARCH,), (), pair_count=2, data=b"", alignment=1)
    + text("x")
    + struct.pack("<IIQ", ARRAY, U32, 2**62),
    "string longer than the file": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(64),
    "string in an array too long": gguf((ARCH,), (), pair_count=2, data=b"", alignment=1)
    + text("x")
    + struct.pack("<IIQQ", ARRAY, STRING, 1, 2**60)
    + bytes(64),
    "a million blocks": gguf((ARCH, ("test.block_count", U32, 1_000_000))),
    "no blocks": gguf((ARCH, ("test.block_count", U32, 0))),
    "blocks as text": gguf((ARCH, ("test.block_count", STRING, "1"))),
    "no dimensions": gguf(tensors=[("w", (), 0, 0)]),
    "five dimensions": gguf(tensors=[("w", (1,) * 5, 0, 0)]),
    "a zero dimension": gguf(tensors=[("w", (4, 0), 0, 0)]),
    "dimensions that overflow": gguf(tensors=[("w", (2**32, 2**32), 0, 0)]),
    "unknown tensor type": gguf(tensors=[("w", (4,), 4, 0)]),
    "half a block": gguf(tensors=[("w", (16,), 8, 0)]),
    "tensor past the end": gguf(tensors=[("w", (9,), 0, 0)]),
    "quantised tensor past the end": gguf(tensors=[("w", (32,), 8, 0)]),
    "offset past the end": gguf(tensors=[("w", (4,), 0, 2**40)]),
    "offset that overflows": gguf(tensors=[("w", (4,), 0, 2**64 - 32)]),
    "offset not aligned": gguf(tensors=[("w", (1,), 0, 4)]),
    "tensor twice": gguf(tensors=[("w", (4,), 0, 0)] * 2),
    "alignment zero": gguf((*TINY, ("general.alignment", U32, 0))),
    "alignment seven": gguf((*TINY, ("general.alignment", U32, 7))),
    "alignment as text": gguf((*TINY, ("general.alignment", STRING, "32"))),
}


@pytest.mark.parametrize("data", INVALID_FILES.values(), ids=INVALID_FILES.keys())
@pytest.mark.parametrize("arrays", [False, True])
def test_invalid_files(make_file: Any, data: bytes, arrays: bool) -> None:
    with pytest.raises(CorruptModel, match="not a usable GGUF file"):
        read_gguf(make_file(data), arrays=arrays)


def test_long_names_are_shortened_in_errors(make_file: Any) -> None:
    with pytest.raises(CorruptModel) as caught:
        read_gguf(make_file(gguf(tensors=[("w" * 1000 + "\x1b[31m", (0,), 0, 0)])))
    assert len(caught.value.message) < 200
    assert "\x1b" not in caught.value.message


def test_truncated_files(make_file: Any) -> None:
    whole = gguf(tensors=[("w", (8,), 0, 0)])
    for length in range(len(whole)):
        with pytest.raises(CorruptModel):
            read_gguf(make_file(whole[:length]), arrays=bool(length % 2))


@given(
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 1 << 30),
    st.booleans(),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_are_valid_or_rejected(
    tmp_path: Path, edits: list[tuple[int, int]], cut: int, arrays: bool
) -> None:
    data = bytearray(gguf(tensors=[("w", (32, 2), 8, 0), ("v", (8,), 0, 96)], data=bytes(128)))
    for at, byte in edits:
        data[at % len(data)] ^= byte
    path = tmp_path / "mutant.gguf"
    path.write_bytes(data[: len(data) - cut % 40])
    try:
        header = read_gguf(path, arrays=arrays)
    except CorruptModel:
        return
    assert header.architecture


def test_wrong_sizes_allocate_no_memory(make_file: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("array over the budget", "more tensors than bytes", "string longer than the file"):
        with pytest.raises(CorruptModel):
            read_gguf(make_file(INVALID_FILES[name]), arrays=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(CorruptModel, match="not a regular file"):
            read_gguf(tmp_path / name)
    with pytest.raises(StoreError, match="cannot read"):
        read_gguf(tmp_path / "missing")


def test_helper_values() -> None:
    assert value(U8, 7) == b"\x07"
    assert text("ab") == b"\x02" + bytes(7) + b"ab"
