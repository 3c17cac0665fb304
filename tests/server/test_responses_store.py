"""The store of responses: shared by servers, bounded in size and time, and sound after a kill at any moment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ollama_nb import disk
from ollama_nb.errors import NotFound, ResponseNotFound, StoreError
from ollama_nb.server.dialects.responses.store import ResponseStore, StoredResponse, item_id, new_id


def record(text: str = "天空", *, owner: str = "", frames: tuple[str, ...] | None = None) -> StoredResponse:
    response_id = new_id()
    output = {"id": item_id("msg", response_id, "o", 0), "type": "message", "content": [{"text": text}]}
    status = "in_progress" if owner else "completed"
    response = {"id": response_id, "status": status, "output": [output], "error": None}
    return StoredResponse(response, ({"id": item_id("msg", response_id, "i", 0), "type": "message"},), owner, frames)


@pytest.fixture
def responses(tmp_path: Path) -> Iterator[ResponseStore]:
    found = ResponseStore(tmp_path / "responses")
    yield found
    found.close()


def again(responses: ResponseStore, **fields: Any) -> ResponseStore:
    """The store as another server sees it."""
    return ResponseStore(responses.root, **fields)


def test_a_response_is_shared_and_only_its_user_can_read_it(responses: ResponseStore) -> None:
    stored = record(frames=("event: x\n\n",))
    responses.put(stored)
    assert responses.get(stored.id) == again(responses).get(stored.id) == stored
    (file,) = responses.root.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and responses.root.stat().st_mode & 0o777 == 0o700


def test_items_are_found_by_their_ids(responses: ResponseStore) -> None:
    stored = record()
    responses.put(stored)
    for item in stored.items:
        assert responses.item(item["id"]) == item
    for unknown in (stored.items[0]["id"] + "1", item_id("msg", new_id(), "o", 0), "msg_x", "../x", ""):
        with pytest.raises(NotFound):
            responses.item(unknown)


def test_unknown_and_invalid_ids(responses: ResponseStore) -> None:
    outside = responses.root.parent / "secret.json"
    outside.write_text("{}")
    for wrong in (new_id(), "", "../secret", "resp_" + "A" * 32, "resp_x", new_id() + "\n"):
        for method in (responses.get, responses.delete, responses.cancel):
            with pytest.raises(ResponseNotFound):
                method(wrong)
    assert outside.exists()


def test_deleted_elsewhere(responses: ResponseStore) -> None:
    stored = record()
    responses.put(stored)
    responses.get(stored.id)
    again(responses).delete(stored.id)
    with pytest.raises(ResponseNotFound):
        responses.get(stored.id)
    with pytest.raises(ResponseNotFound):
        responses.delete(stored.id)


def test_expired_responses_are_not_found_and_are_removed(responses: ResponseStore) -> None:
    old, new = record("old"), record("new")
    responses.put(old)
    file = responses.root / f"{old.id}.json"
    os.utime(file, (time.time() - 90_000, time.time() - 90_000))
    with pytest.raises(ResponseNotFound):
        responses.get(old.id)
    responses.put(new)
    assert not file.exists() and responses.get(new.id) == new


def test_the_oldest_responses_give_way(responses: ResponseStore) -> None:
    store = again(responses, max_bytes=2500)
    stored = [record("文" * 300) for _ in range(4)]
    for at, entry in enumerate(stored):
        store.put(entry)
        os.utime(store.root / f"{entry.id}.json", (time.time() - 100 + at,) * 2)
    store.tidy()
    kept = {file.stem for file in store.root.iterdir()}
    assert kept == {stored[2].id, stored[3].id}
    large = record("文" * 3000)
    store.put(large)
    assert {file.stem for file in store.root.iterdir()} == {large.id}  # the newest stays, however large it is


@pytest.mark.parametrize("call", ["create", "write", "fsync", "rename"])
def test_a_kill_leaves_no_broken_record(responses: ResponseStore, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends just before a system call: the old record stays, and its remains are removed later."""
    running = record("old", owner=responses.name)
    responses.put(running)
    ended = StoredResponse({**running.response, "status": "completed"})

    def die(name: str, subject: str) -> None:
        if name == call:
            os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(disk, "before_change_hook", die)
        responses.update(ended)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert again(responses).get(running.id) == running
    for file in responses.root.iterdir():
        os.utime(file, (time.time() - 4000,) * 2)
    responses.tidy()
    assert sorted(file.name for file in responses.root.iterdir() if not file.name.endswith(".lock")) == [
        f"{running.id}.json"
    ]


def test_an_unreadable_record_is_not_found(responses: ResponseStore) -> None:
    stored = record()
    responses.put(stored)
    (responses.root / f"{stored.id}.json").write_bytes(b'{"response":')
    with pytest.raises(ResponseNotFound):
        again(responses).get(stored.id)


def test_a_response_whose_server_is_gone_has_failed(responses: ResponseStore) -> None:
    owner = again(responses)
    running = record(owner=owner.name)
    owner.put(running)
    assert responses.get(running.id) == running
    owner.close()
    failed = responses.get(running.id)
    assert (failed.response["status"], failed.owner) == ("failed", "")
    assert failed.response["error"]["code"] == "server_error" and "ended before" in failed.response["error"]["message"]
    assert again(responses).get(running.id) == failed


def test_a_killed_server_counts_as_gone(responses: ResponseStore) -> None:
    ids, write = os.pipe()
    child = os.fork()
    if child == 0:
        owner = again(responses)
        running = record(owner=owner.name)
        owner.put(running)
        os.write(write, running.id.encode())
        os._exit(9)
    os.waitpid(child, 0)
    running_id = os.read(ids, 100).decode()
    assert responses.get(running_id).response["status"] == "failed"
    responses.tidy()
    assert [file.name for file in responses.root.iterdir()] == [f"{running_id}.json"]  # and no lock file


def test_the_owner_sees_what_other_servers_do(responses: ResponseStore) -> None:
    other = again(responses)
    cancelled, deleted, kept = (record(owner=responses.name) for _ in range(3))
    for running in (cancelled, deleted, kept):
        responses.put(running)
        assert responses.is_current(running.id)
    assert other.cancel(cancelled.id).response["status"] == "cancelled"
    other.delete(deleted.id)
    for running in (cancelled, deleted):
        assert not responses.is_current(running.id) and not responses.update(record_end(running))
    assert responses.get(cancelled.id).response["status"] == "cancelled"
    with pytest.raises(ResponseNotFound):
        responses.get(deleted.id)
    assert responses.update(record_end(kept)) and other.get(kept.id).response["status"] == "completed"
    assert other.cancel(kept.id).response["status"] == "completed"  # it had ended already


def record_end(running: StoredResponse) -> StoredResponse:
    return StoredResponse({**running.response, "status": "completed"}, running.input)


def test_a_running_response_does_not_expire(tmp_path: Path) -> None:
    ahead = [0.0]
    store = ResponseStore(tmp_path / "responses", clock=lambda: time.time() + ahead[0])
    running = record(owner=store.name)
    store.put(running)
    file = store.root / f"{running.id}.json"
    before = file.stat().st_mtime_ns
    ahead[0] = 80_000.0
    assert store.is_current(running.id) and file.stat().st_mtime_ns > before and store.is_current(running.id)
    store.close()


def test_many_servers_at_once(responses: ResponseStore) -> None:
    servers = [again(responses) for _ in range(4)]
    stored = [record(str(at)) for at in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda at: servers[at % 4].put(stored[at]), range(40)))
        found = list(threads.map(lambda at: servers[(at + 1) % 4].get(stored[at].id), range(40)))
    assert found == stored


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("a file")
    with pytest.raises(StoreError):
        ResponseStore(tmp_path / "responses").put(record())
