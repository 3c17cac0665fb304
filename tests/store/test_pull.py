"""Pulling from a registry with faults: the model arrives unchanged, or the pull fails and stores nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.chaos_registry import (
    ChaosRegistry,
    Fault,
    Handler,
    corrupt,
    cut_after,
    etag,
    held,
    ignore_range,
    page,
    sound,
    stall,
    status,
    wrong_range,
)
from support.processes import until
from support.stores import check_sound, digest_of
from support.transfers import QUICK, left_over, never_back, noise, pull, statuses

from ollama_nb import disk
from ollama_nb.api.events import Progress
from ollama_nb.api.models import LAYER_PREFIX
from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, Cancelled, CorruptModel, OllamaError, SourceError, StoreError
from ollama_nb.store.registry.errors import RegistryUnreachable
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.pace import TransferLimits
from ollama_nb.store.transfer.partial import BlobPart, decode_part, encode_part

CHUNK = 64 << 10
WEIGHTS = noise(1_100_000)
DIGEST = digest_of(WEIGHTS)


@pytest.fixture
def registry(registry: ChaosRegistry, monkeypatch: pytest.MonkeyPatch) -> ChaosRegistry:
    """A registry with one model, which is pulled in several parts."""
    monkeypatch.setattr("ollama_nb.store.transfer.partial.MIN_PART", 200_000)
    registry.publish("a/m:latest", model=WEIGHTS, template=b"{{ .Prompt }}")
    return registry


def weights(store: Store, registry: ChaosRegistry, name: str = "a/m") -> bytes:
    """Return the pulled weights and check that no unfinished files are left."""
    check_sound(store.root)
    assert left_over(store) == []
    path = store.resolve(ModelName.parse(f"{registry.host}/{name}")).weights
    assert path is not None
    return path.read_bytes()


def test_lines_and_requests(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    lines = pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS
    assert statuses(lines) == [
        "pulling manifest",
        f"pulling {DIGEST.short}",
        f"pulling {digest_of(b'{{ .Prompt }}').short}",
        *(line.status for line in lines[-3:-2]),
        "verifying sha256 digest",
        "writing manifest",
    ]
    assert never_back(lines)
    assert {line.total for line in lines if line.digest == str(DIGEST)} == {len(WEIGHTS)}
    asked = sorted(one.headers["Range"] for one in registry.of("GET", str(DIGEST)))
    assert asked == sorted(
        f"bytes={at}-{min(at + 200_000, len(WEIGHTS)) - 1}" for at in range(0, len(WEIGHTS), 200_000)
    )
    assert not any("Authorization" in one.headers for one in registry.asked)
    raw = registry.manifests["/v2/a/m/manifests/latest"]
    assert (store.root / "manifests" / registry.host / "a/m/latest").read_bytes() == raw

    registry.asked.clear()
    again = pull(store, f"{registry.host}/a/m", tmp_path)
    assert [one.path for one in registry.asked] == ["/v2/a/m/manifests/latest"]
    assert [line.completed == line.total for line in again if line.digest] == [True] * 3


def test_connections_are_reused(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    """A pull opens one connection per stream."""
    ports: set[int] = set()

    def gate(handler: Handler) -> bool:
        ports.add(handler.client_address[1])
        return False

    registry.gate = gate
    pull(store, f"{registry.host}/a/m", tmp_path, limits=TransferLimits(streams=3))
    assert len(registry.asked) == 9
    assert len(ports) <= 3


def test_unused_layers_are_removed(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    pull(store, f"{registry.host}/a/m", tmp_path)
    registry.publish("a/m:latest", model=WEIGHTS, template=b"other")
    lines = pull(store, f"{registry.host}/a/m", tmp_path)
    assert lines[-1].status == "removing unused layers"
    assert not store.blobs.has(digest_of(b"{{ .Prompt }}"))
    assert weights(store, registry) == WEIGHTS


@pytest.mark.parametrize(
    ("faults", "always"),
    [
        pytest.param([cut_after(50_000), cut_after(0), cut_after(70_001)], None, id="cut"),
        pytest.param([status(503), status(429, Retry_After="0"), status(500)], None, id="errors that pass"),
        pytest.param([status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")], None, id="later, by a date"),
        pytest.param([status(429, Retry_After=f"Wed, 21 Oct 2015 07:28:{'9' * 30} GMT")], None, id="no date at all"),
        pytest.param([status(429, Retry_After="\x1f1")], None, id="nearly a number"),
        pytest.param([], ignore_range, id="no ranges"),
        pytest.param([], wrong_range, id="wrong ranges"),
        pytest.param([sound, sound, ignore_range, cut_after(300_000)], ignore_range, id="ranges stop working"),
        pytest.param([etag('"one"'), etag('"two"'), etag('"two"')], etag('"two"'), id="another file in the middle"),
        pytest.param([etag(f'"{n}"') for n in range(20)], None, id="servers that take turns"),
        pytest.param([corrupt], None, id="a flipped bit, once"),
        pytest.param([stall], None, id="silence"),
    ],
)
def test_temporary_faults(
    registry: ChaosRegistry, store: Store, tmp_path: Path, faults: list[Fault], always: Fault | None
) -> None:
    registry.faults.extend(faults)
    registry.always = always
    retry_policy = replace(QUICK, read_timeout=2.0) if stall in faults else QUICK
    lines = pull(store, f"{registry.host}/a/m", tmp_path, retry_policy=retry_policy)
    assert weights(store, registry) == WEIGHTS
    assert never_back(lines)


@pytest.mark.parametrize(
    ("always", "message"),
    [
        (corrupt, "digest mismatch, file must be downloaded again: want sha256:"),
        (page, "has 25 bytes for sha256:"),
        (status(403), "403: status 403"),
        (status(404), "file does not exist"),
        (status(503), "503: status 503"),
        (status(429, Retry_After="100000"), "429: status 429"),
        (cut_after(0), "early"),
    ],
)
def test_permanent_faults(registry: ChaosRegistry, store: Store, tmp_path: Path, always: Fault, message: str) -> None:
    registry.always = lambda handler: always(handler) if str(DIGEST) in handler.path else False
    with pytest.raises(SourceError) as caught:
        pull(store, f"{registry.host}/a/m", tmp_path)
    assert message in caught.value.message
    assert not store.blobs.has(DIGEST)
    assert store.names() == ()
    if always is corrupt:
        assert str(DIGEST) in caught.value.message
        assert left_over(store) == []
    registry.always = None
    pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS


def test_an_interrupted_pull_resumes(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    go_on, cancelled = threading.Event(), threading.Event()
    registry.always = held(go_on)
    lines: list[Progress] = []

    def work() -> None:
        with pytest.raises(Cancelled):
            pull(store, f"{registry.host}/a/m", tmp_path, lines=lines, cancelled=cancelled)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: any(line.completed >= 4 * CHUNK for line in lines))
    cancelled.set()
    thread.join(60)
    assert not thread.is_alive()
    there = store.blobs.root / f"{DIGEST.filename}-partial"
    assert there.stat().st_size == len(WEIGHTS)
    registry.always, registry.sent = None, 0
    again = pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS
    assert registry.sent <= len(WEIGHTS) - 200_000
    assert next(line.completed for line in again if line.digest == str(DIGEST)) >= 4 * CHUNK
    go_on.set()


def test_resumes_the_download_of_a_real_ollama(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    """Its parts have other sizes; one is empty, one file is missing, one is invalid."""
    half = len(WEIGHTS) // 2
    partial = store.blobs.root / f"{DIGEST.filename}-partial"
    store.blobs.tree.make()
    partial.write_bytes(WEIGHTS[:half] + bytes(len(WEIGHTS) - half))
    partial.with_name(f"{partial.name}-0").write_bytes(encode_part(BlobPart(0, 0, half, half)))
    partial.with_name(f"{partial.name}-1").write_bytes(encode_part(BlobPart(1, half, 1000, 0)))
    partial.with_name(f"{partial.name}-2").write_bytes(b"{")
    pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS
    assert min(int(one.headers["Range"][6:].partition("-")[0]) for one in registry.of("GET", str(DIGEST))) == half


def test_a_real_ollama_can_resume(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    """A real Ollama assumes that the journals cover the blob: all exist as soon as one byte is downloaded."""
    registry.always = cut_after(0)
    store.blobs.tree.make()
    stray = store.blobs.root / f"{DIGEST.filename}-partial-77"
    stray.write_bytes(encode_part(BlobPart(77, len(WEIGHTS), 5, 0)))
    with pytest.raises(SourceError):
        pull(store, f"{registry.host}/a/m", tmp_path)
    parts = [decode_part(path.read_bytes()) for path in store.blobs.root.glob(f"{DIGEST.filename}-partial-*")]
    assert sorted((part.offset, part.size) for part in parts if part) == [
        (at, min(200_000, len(WEIGHTS) - at)) for at in range(0, len(WEIGHTS), 200_000)
    ]


def test_a_damaged_partial_file_is_downloaded_again(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    partial = store.blobs.root / f"{DIGEST.filename}-partial"
    store.blobs.tree.make()
    partial.write_bytes(bytes(len(WEIGHTS)))
    partial.with_name(f"{partial.name}-0").write_bytes(encode_part(BlobPart(0, 0, len(WEIGHTS), len(WEIGHTS))))
    pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS


def test_concurrent_pulls_share_one_transfer(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    """The downloading pull is cancelled; one of the waiting pulls resumes its download."""
    go_on, cancelled = threading.Event(), threading.Event()
    registry.always = held(go_on)
    lines: list[list[Progress]] = [[] for _ in range(6)]
    ends: list[BaseException | None] = [None] * 6

    def work(number: int) -> None:
        try:
            event = cancelled if number == 0 else threading.Event()
            pull(store, f"{registry.host}/a/m", tmp_path, lines=lines[number], cancelled=event)
        except OllamaError as error:
            ends[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    threads[0].start()
    until(lambda: any(line.completed >= 4 * CHUNK for line in lines[0]))
    for thread in threads[1:]:
        thread.start()
    until(lambda: all(any(line.completed >= 4 * CHUNK for line in waiting) for waiting in lines[1:]))
    until(lambda: registry.sent >= 4 * CHUNK)  # counted after the data was sent
    assert registry.sent == 4 * CHUNK
    cancelled.set()
    threads[0].join(60)
    assert isinstance(ends[0], Cancelled)
    go_on.set()
    for thread in threads[1:]:
        thread.join(60)
    assert ends[1:] == [None] * 5
    assert weights(store, registry) == WEIGHTS
    assert all(never_back(waiting) for waiting in lines[1:])
    assert {one.headers["Range"] for one in registry.of("GET", str(DIGEST))} == {
        *(f"bytes={at}-{min(at + 200_000, len(WEIGHTS)) - 1}" for at in range(0, len(WEIGHTS), 200_000)),
        *(f"bytes={at + CHUNK}-{at + 199_999}" for at in range(0, 800_000, 200_000)),
    }
    assert list((tmp_path / "locks").iterdir()) == []


def test_rate_limit(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    """A low rate is exceeded by at most the bytes of one progress interval."""
    cancelled = threading.Event()
    lines: list[Progress] = []
    limits = TransferLimits(streams=2, rate=10_000)

    def work() -> None:
        with pytest.raises(Cancelled):
            pull(store, f"{registry.host}/a/m", tmp_path, lines=lines, cancelled=cancelled, limits=limits)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: any(line.completed for line in lines))
    cancelled.set()
    thread.join(60)
    assert not thread.is_alive()
    assert max(line.completed for line in lines) < 100_000


@pytest.mark.parametrize("fields", [{"streams": 0}, {"streams": 65}, {"rate": -1}])
def test_invalid_limits(fields: dict[str, int]) -> None:
    with pytest.raises(BadRequest):
        TransferLimits(**fields)


def test_not_enough_disk_space(
    registry: ChaosRegistry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(StoreError, match=r"need 1\.1 MB, have 1 MB"):
        pull(store, f"{registry.host}/a/m", tmp_path)
    assert registry.of("GET", "blobs") == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["create", "truncate", "write", "fsync", "rename"])
def test_disk_errors(
    registry: ChaosRegistry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """The error is reported without a retry; the next pull resumes."""
    store.blobs.tree.make()

    def before(what: str, subject: str) -> None:
        if what == call:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, "before_change_hook", before)
    with pytest.raises(StoreError, match=r"cannot (write|rename)"):
        pull(store, f"{registry.host}/a/m", tmp_path)
    fetched = [one.headers["Range"] for one in registry.of("GET", str(DIGEST))]
    assert len(set(fetched)) == len(fetched)
    monkeypatch.setattr(disk, "before_change_hook", None)
    assert store.names() == ()
    check_sound(store.root)
    registry.sent = 0
    pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS
    if call == "fsync":
        assert registry.sent < len(WEIGHTS)


@pytest.mark.parametrize(
    ("path", "raw", "error", "message"),
    [
        ("a/none:latest", None, SourceError, "pull model manifest: file does not exist"),
        ("a/x:latest", b"<html>", CorruptModel, "the manifest is not valid JSON"),
        ("a/x:latest", b'{"config":{"digest":"sha256:../../x"}}', CorruptModel, "invalid digest"),
        ("a/x:latest", b'{"manifests":[]}', CorruptModel, "the registry has no valid model under this name"),
        ("a/x:latest", b"{}", CorruptModel, "a layer of the manifest is not a JSON object"),
        ("a/x:latest", b" " * (5 << 20), SourceError, "sent more than 4194304 bytes"),
    ],
)
def test_invalid_manifests(
    registry: ChaosRegistry, store: Store, tmp_path: Path, path: str, raw: bytes | None, error: type, message: str
) -> None:
    if raw is not None:
        registry.manifests["/v2/a/x/manifests/latest"] = raw
    with pytest.raises(error, match=message):
        pull(store, f"{registry.host}/{path}", tmp_path)
    assert not store.root.exists() or store.names() == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 1 << 60}, "gives [0-9a-f]{12} .* a size of 1152921 TB, more than the limit of 10 TB"),
        ({"size": 10**3000}, "a size of more than 2\\*\\*63 bytes, more than the limit of 10 TB"),
        ({"size": 9_999_999_999_999}, "need 10 TB, have"),
        ({"size": 5 << 20, "mediaType": LAYER_PREFIX + "system"}, "a size of 5.2 MB, more than the limit of 4.2 MB"),
        ({"config": {"size": 1 << 40}}, "more than the limit of 4.2 MB"),
        ({"count": 1001}, "1002 layers, more than 1000"),
        ({"count": 3}, "two different sizes"),
    ],
)
def test_sizes_are_checked_before_anything_is_planned(
    registry: ChaosRegistry,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    """S13: the numbers of a manifest are within the limits and the free space before they size anything."""
    monkeypatch.setattr("ollama_nb.store.transfer.partial.split_blob", lambda *_: pytest.fail("planned"))
    path = "/v2/a/m/manifests/latest"
    body = json.loads(registry.manifests[path])
    body["config"] |= changes.pop("config", {})
    layers = [{**body["layers"][0], "size": number} for number in range(changes.pop("count", 0))]
    body["layers"] = (
        [{**body["layers"][0], **changes}, body["layers"][1], *layers] if not layers else [body["layers"][0], *layers]
    )
    registry.manifests[path] = json.dumps(body).encode()
    with pytest.raises(OllamaError, match=message):
        pull(store, f"{registry.host}/a/m", tmp_path)
    assert registry.of("GET", "blobs") == []


@pytest.mark.parametrize("name", ["Content-Range", "Content-Length"])
def test_lengths_of_thousands_of_digits(registry: ChaosRegistry, store: Store, tmp_path: Path, name: str) -> None:
    def long_length(handler: Handler) -> bool:
        digits = "9" * 5000
        handler.extra[name] = f"bytes 0-9/{digits}" if name == "Content-Range" else digits
        return False

    registry.always = long_length
    with contextlib.suppress(SourceError):
        pull(store, f"{registry.host}/a/m", tmp_path)
        assert weights(store, registry) == WEIGHTS


def test_long_error_pages_keep_their_status(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    """S13: an error body is read up to its limit; the status decides whether a retry may help."""

    def page_of_a_proxy(handler: Handler) -> bool:
        handler.answer(503, b"x" * (1 << 20))
        return True

    registry.faults += [page_of_a_proxy, page_of_a_proxy]
    pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS


def test_a_copy_from_another_store_can_be_cancelled(tmp_path: Path) -> None:
    """F10: bytes that are copied, hashed or verified stop when the request is cancelled."""
    other = Store(tmp_path / "other")
    digest = other.blobs.add(WEIGHTS)
    blobs = Store(tmp_path / "models", others=[tmp_path / "other"]).blobs
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        blobs.touch(digest, cancelled)
    assert blobs.size(digest) and not (blobs.root / digest.filename).exists()
    assert blobs.touch(digest, threading.Event())


def test_models_for_mlx_are_rejected(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    registry.publish("a/t:latest", tensor=b"x")
    with pytest.raises(SourceError, match="this model requires MLX support, but the MLX runtime is not available"):
        pull(store, f"{registry.host}/a/t", tmp_path)


def test_the_manifest_request_is_retried(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    left = [status(429, Retry_After="0"), status(502)]

    def gate(handler: Handler) -> bool:
        return bool(left) and left.pop()(handler)

    registry.gate = gate
    pull(store, f"{registry.host}/a/m", tmp_path)
    assert weights(store, registry) == WEIGHTS


def test_unreachable_registry(store: Store, tmp_path: Path) -> None:
    with pytest.raises(
        RegistryUnreachable, match=r"^pull model manifest: cannot reach 127\.0\.0\.1:1: Connection refused$"
    ):
        pull(store, "127.0.0.1:1/a/m", tmp_path)
    with pytest.raises(SourceError, match=r"^insecure protocol http$"):
        pull(store, "http://127.0.0.1:1/a/m", tmp_path, insecure=False)
