"""Commands on this machine's own store: no server runs, and none is started."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import RunCommand, command_runner
from support.servers import RunningServer, free_port, started, until_answers
from support.service_harness import MODELS, ServiceHarness, collect
from support.stores import check_sound, create, tiny

from ollama_nb.api.names import ModelName
from ollama_nb.api.requests import PullRequest
from ollama_nb.api.units import byte_size
from ollama_nb.errors import BadRequest
from ollama_nb.service.bundled import register_bundled
from ollama_nb.store.store import Store


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store below HOME, which commands open without arguments."""
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")  # a request to a server fails
    return Store(home / ".ollama" / "models")


@pytest.fixture
def ollama(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs command lines that work on the store itself: no server can be reached."""
    return command_runner(monkeypatch, capsys)


def weights(store: Store, name: str) -> Path:
    found = store.resolve(ModelName.parse(name)).weights
    assert found is not None
    return found


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_fsck_of_an_intact_store(store: Store, ollama: RunCommand) -> None:
    tiny(store, "m")
    done = ollama("fsck")
    assert done.code == 0
    assert re.fullmatch(r"1 models and 2 intact blobs, \d+ B read\nno problems found\n", done.out)
    assert "checking blobs: 100%" in done.err


def test_fsck_finds_and_repairs(store: Store, ollama: RunCommand, home: Path) -> None:
    tiny(store, "m")
    path = weights(store, "m")
    flip(path)
    found = ollama("fsck")
    assert found.code == 1
    assert f"blob sha256:{path.name[7:]}: does not match its digest" in found.out
    assert "model m:latest: its blob" in found.out
    assert found.out.endswith("`ollama-nb fsck --repair` sets damaged files aside\n")
    repaired = ollama("fsck", "--repair", "--json")
    problems = json.loads(repaired.out)["problems"]
    assert [(problem["kind"], problem["moved"]) for problem in problems] == [("blob", True), ("model", False)]
    assert repaired.code == 1, "the model is still not whole"
    assert len(list((home / ".ollama/nb/set-aside").rglob("blobs-*"))) == 1
    after = ollama("fsck")
    assert after.out.endswith("to restore it: ollama-nb pull m:latest, or create it again\n")


def old(path: Path) -> Path:
    os.utime(path, (0, 0), follow_symlinks=False)
    return path


def test_df_and_prune(store: Store, ollama: RunCommand, home: Path) -> None:
    tiny(store, "m")
    unused = old(store.blobs.path(store.blobs.add(b"unused" * 1000)))
    young = store.blobs.path(store.blobs.add(b"young"))
    partial = store.blobs.root / f"sha256-{'0' * 64}-partial"
    partial.write_bytes(b"p" * 5000)
    old(partial)
    kept = home / ".ollama/nb/prefixes/x.prefix"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"k" * 7000)
    shown = json.loads(ollama("df", "--json").out)
    assert shown["store"]["unused"] == {"files": 2, "bytes": 6005}
    assert shown["store"]["partial"]["files"] == 1
    assert shown["prefixes"] == {"files": 1, "bytes": 7000}
    table = ollama("df").out
    assert re.search(r"^m:latest +\d+ B", table, re.MULTILINE)
    assert re.search(r"^unused blobs +2 +6.0 KB", table, re.MULTILINE)
    assert re.search(r"^\d+.* free$", table, re.MULTILINE)

    dry = ollama("prune", "--dry-run").out
    assert dry.startswith("WOULD REMOVE")
    assert unused.exists() and partial.exists() and kept.exists()
    done = ollama("prune").out
    assert re.search(r"^unused blobs +1 +6 KB", done, re.MULTILINE)
    assert done.endswith("1 file (5 B) kept: a download or create of the last hour may need them\n")
    assert not unused.exists() and not partial.exists() and not kept.exists()
    assert young.exists()
    assert [model.name.short for model in store.models()] == ["m:latest"]


def test_prune_removes_no_blobs_while_a_manifest_is_damaged(store: Store, ollama: RunCommand) -> None:
    tiny(store, "m")
    unused = old(store.blobs.path(store.blobs.add(b"unused")))
    junk = store.root / "manifests/registry.ollama.ai/library/junk"
    junk.mkdir()
    (junk / "latest").write_bytes(b"junk")
    for arguments in (("prune",), ("prune", "--dry-run")):
        failed = ollama(*arguments)
        assert failed.code == 1
        assert "nothing was removed, because a manifest cannot be read" in failed.err
        assert "`ollama-nb fsck --repair` sets it aside" in failed.err
    assert unused.exists()
    assert ollama("fsck", "--repair").code == 0
    assert ollama("prune").code == 0
    assert not unused.exists()


def test_export_and_import(store: Store, ollama: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(store, "a", system="你好")
    create(store, "b", base=store.resolve(ModelName("a")), template="t")
    tar = tmp_path / "models.tar"
    done = ollama("export", "a", "b", "A", "-o", str(tar))
    assert done.out.startswith(f"exported a:latest, b:latest to '{tar}' (")
    assert ollama("export", "a").err == "Error: name the file to write: --output FILE.tar\n"
    assert ollama("export", "none", "-o", str(tar)).err == "Error: model 'none' not found\n"
    assert tar.exists()
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "other"))
    assert ollama("import", str(tar)).out == "imported 'a:latest'\nimported 'b:latest'\n"
    check_sound(tmp_path / "other")
    assert Store(tmp_path / "other").resolve(ModelName("a")).digest == store.resolve(ModelName("a")).digest
    missing = ollama("import", str(tmp_path / "none.tar"))
    assert missing.code == 1 and "none.tar: No such file" in missing.err


@pytest.mark.parametrize(
    ("text", "size"),
    [("100MB", 100_000_000), ("64MiB", 64 << 20), ("1.5g", 1_500_000_000), ("65536", 65536), ("2 KB", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1XB", "1e9", "0x10"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(BadRequest, match="write it as 100MB or 64MiB"):
        byte_size(text)


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A real package index over a folder of wheels, as pip's only index."""
    folder = tmp_path / "served"
    folder.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "pypiserver", "run", "--interface=127.0.0.1", f"--port={port}"]
    command += ["--authenticate=.", "--passwords=.", "--disable-fallback", str(folder)]
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with started(command, tmp_path, dict(os.environ)) as (process, log):
        url = f"http://127.0.0.1:{port}/"
        until_answers(RunningServer(url, process, tmp_path, log), url)
        yield folder, url


@pytest.mark.parametrize("part_size", ["100MB", "400KB"])
def test_wheels_through_a_real_index(
    store: Store, ollama: RunCommand, tmp_path: Path, package_index: tuple[Path, str], part_size: str
) -> None:
    """Packed, served, pulled under another name: the same weights, and everything that the Modelfile says."""
    folder, url = package_index
    weights, draft = ((MODELS / f"stories260K-{kind}.gguf").read_bytes() for kind in ("f16", "q4_0"))
    create(
        store,
        "ns/Tales:260k",
        files={"m.gguf": weights},
        draft_files={"d.gguf": str(store.blobs.add(draft))},
        system='Du bist "klug" 你好',
        template="{{ .System }} {{ .Prompt }}",
        parameters={"temperature": 0.5, "stop": ["</s>", "\n\n"], "num_ctx": 128},
        licenses=("MIT", "second"),
    )
    done = ollama("wheel", "ns/Tales:260k", "-o", str(folder), "--part-size", part_size)
    assert done.code == 0, done.err
    wheels = sorted(folder.glob("*.whl"))
    assert len(wheels) == (4 if part_size == "400KB" else 1)
    assert all(path.stat().st_size <= byte_size(part_size) for path in wheels)
    assert done.out.endswith("then: ollama-nb pull pip://tales-260k\n")
    harness = ServiceHarness(tmp_path / "other")
    lines = asyncio.run(collect(harness.service.pull(PullRequest(model="pip://tales-260k", as_="back"))))
    assert lines[-1].status == "success"
    back, there = harness.service.store.resolve(ModelName("back")), store.resolve(ModelName.parse("ns/Tales:260k"))
    assert back.weights is not None and back.weights.read_bytes() == weights
    assert back.draft is not None and back.draft.read_bytes() == draft
    assert (back.system, back.template, back.params, back.licenses) == (
        there.system,
        there.template,
        there.params,
        there.licenses,
    )
    assert url in os.environ["PIP_INDEX_URL"]


def test_models_that_cannot_be_packed(store: Store, ollama: RunCommand, tmp_path: Path) -> None:
    tiny(store, "odd", parameters={"no_such_parameter": 3})
    failed = ollama("wheel", "odd", "-o", str(tmp_path / "w"))
    assert failed.code == 1 and failed.err.startswith("Error: ")
    assert "no_such_parameter" in failed.err
    assert ollama("wheel", "none").err == "Error: model 'none' not found\n"
    assert not (tmp_path / "w").exists()


def test_the_bundled_model_is_restored(store: Store, ollama: RunCommand, tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    register_bundled(harness.service.store)
    for kind in ("weights", "template"):
        model = harness.service.store.resolve(ModelName("sprout"))
        lost = next(layer for layer in model.manifest.layers if layer.kind == ("model" if kind == "weights" else kind))
        harness.service.blobs.path(lost.digest).unlink()
        lines = asyncio.run(collect(harness.service.pull(PullRequest(model="sprout"))))
        assert lines[-1].status == "success"
        check_sound(harness.service.store.root)
