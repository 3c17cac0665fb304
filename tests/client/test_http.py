"""Requests, errors, streams and uploads against a scripted server; and the parser of streams."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_servers import Answer, ScriptedServer, error, ndjson, ok, until_hung_up

from ollama_nb.client.client import Client
from ollama_nb.client.http import Http, ServerAddress, parse_stream
from ollama_nb.errors import BadRequest, Busy, ConnectError, Forbidden, NotFound, OllamaError, Unauthorized


def test_a_request_is_utf8_json_with_the_key_as_bearer(server: ScriptedServer) -> None:
    server.routes["POST /api/show"] = ok({"system": "你好"})
    assert Client(server.url, "s3cret").show("模型") == {"system": "你好"}
    seen = server.seen[0]
    assert seen.body == '{"model": "模型"}'.encode()
    assert seen.headers["Authorization"] == "Bearer s3cret"
    assert seen.headers["Content-Type"] == "application/json"


def test_half_characters_of_a_command_line_are_sent_as_question_marks(server: ScriptedServer) -> None:
    server.routes["POST /api/show"] = ok({})
    Client(server.url).show("a\udce4b")
    assert server.seen[0].json == {"model": "a?b"}


def test_the_path_of_the_address_is_kept(server: ScriptedServer) -> None:
    server.routes["GET /base/ollama/api/ps"] = ok({"models": []})
    assert Client(f"{server.url}/base/ollama/").ps() == {"models": []}


def test_the_key_and_a_password_in_the_address_are_never_shown(server: ScriptedServer) -> None:
    client = Client(f"http://user:pass@127.0.0.1:{server.port}", "s3cret")
    assert (client.url, repr(client)) == (server.url, f"Client({server.url!r})")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, Unauthorized), (403, Forbidden), (404, NotFound), (503, Busy), (500, OllamaError)],
)
def test_http_errors_carry_the_servers_text_and_status(server: ScriptedServer, status: int, kind: type) -> None:
    server.routes["POST /api/show"] = error(status, "model 'x' not found")
    with pytest.raises(kind) as caught:
        Client(server.url).show("x")
    assert (caught.value.message, caught.value.status) == ("model 'x' not found", status)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"plain words\n", "plain words"),
        (b"", "something went wrong, please see the ollama server logs for details"),
        (b'{"error": {"message": "inner"}}', "inner"),
        (b'["odd"]', "['odd']"),
    ],
)
def test_error_bodies_of_other_shapes(server: ScriptedServer, body: bytes, text: str) -> None:
    server.routes["GET /api/ps"] = Answer(500, [body] if body else [])
    with pytest.raises(OllamaError) as caught:
        Client(server.url).ps()
    assert caught.value.message == text


def test_a_redirect_names_the_other_address(server: ScriptedServer) -> None:
    server.routes["GET /api/ps"] = Answer(301, headers={"Location": "https://elsewhere/"})
    with pytest.raises(OllamaError, match="redirects to https://elsewhere/"):
        Client(server.url).ps()


def test_a_server_that_is_not_ollama(server: ScriptedServer) -> None:
    server.routes["GET /api/tags"] = Answer(200, [b"<html>hello"])
    with pytest.raises(OllamaError, match="does not answer as an Ollama server does"):
        Client(server.url).list()


def test_no_server_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectError, match="could not connect to ollama server, run 'ollama serve' to start it"):
            Client(url).list()
        assert Client(url).answers() is False


@pytest.mark.parametrize("url", ["ftp://x", "http://", "nonsense", "http://[::1", "http://h:99999"])
def test_invalid_addresses(url: str) -> None:
    with pytest.raises(BadRequest, match="no server address"):
        Http(ServerAddress(url))


def test_a_server_that_hangs_up_or_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConnectError, match="does not answer"):
            Http(ServerAddress(url)).status("HEAD", "/", timeout=0.05)

        def hang_up() -> None:
            for _ in range(2):  # the connection of the silent case is still in the queue
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConnectError, match="closed the connection without an answer"):
            Http(ServerAddress(url)).request("GET", "/")
        thread.join()


def test_a_stream_gives_objects_and_its_request_id(server: ScriptedServer) -> None:
    server.routes["POST /api/chat"] = ndjson({"message": {"content": "天"}}, {"done": True})
    server.routes["POST /api/chat"].headers["X-Request-Id"] = "r1"
    stream = Client(server.url).chat("m", [{"role": "user", "content": "为什么"}], options={"seed": 1})
    assert stream.request_id == "r1"
    assert list(stream) == [{"message": {"content": "天"}}, {"done": True}]
    assert server.asked("POST /api/chat") == [
        {"model": "m", "messages": [{"role": "user", "content": "为什么"}], "stream": True, "options": {"seed": 1}}
    ]


def test_without_stream_the_answer_is_one_object(server: ScriptedServer) -> None:
    server.routes["POST /api/generate"] = ok({"response": "hi", "done": True})
    assert Client(server.url).generate("m", "p", stream=False)["response"] == "hi"


def test_a_refused_stream_is_an_error_of_the_call(server: ScriptedServer) -> None:
    server.routes["POST /api/generate"] = error(404, "model 'x' not found")
    with pytest.raises(NotFound, match="model 'x' not found"):
        Client(server.url).generate("x", "p")


@pytest.mark.parametrize("cut", [True, False])
def test_a_stream_that_stops_too_early(server: ScriptedServer, cut: bool) -> None:
    server.routes["POST /api/generate"] = Answer(200, [b'{"response": "a"}\n', b'{"respon'], cut=cut)
    stream = Client(server.url).generate("m", "p")
    assert next(stream) == {"response": "a"}
    with pytest.raises(ConnectError, match="before the answer was complete"):
        next(stream)


def test_closing_a_stream_hangs_up(server: ScriptedServer) -> None:
    server.routes["POST /api/generate"] = lambda _: Answer(200, until_hung_up([], lambda: {"response": "x" * 1000}))
    with Client(server.url).generate("m", "p") as stream:
        next(stream)
    assert server.hung_up.wait(60)


def test_closing_from_another_thread_ends_a_waiting_read(server: ScriptedServer) -> None:
    never = threading.Event()

    def silent(_: Any) -> Answer:
        def chunks() -> Any:
            yield b'{"response": "a"}\n'
            never.wait(60)

        return Answer(200, chunks())

    server.routes["POST /api/generate"] = silent
    stream = Client(server.url).generate("m", "p")
    next(stream)
    closer = threading.Timer(0.05, stream.close)
    closer.start()
    with pytest.raises(ConnectError):
        next(stream)
    closer.join()
    never.set()


def test_an_upload_streams_the_file(server: ScriptedServer) -> None:
    server.routes["POST /api/blobs/sha256:1"] = ok(status=201)
    data = bytes(range(256)) * 9000
    Client(server.url).upload_blob("sha256:1", io.BytesIO(data), len(data))
    assert server.seen[0].body == data


def test_a_refused_upload_reports_the_reason() -> None:
    """The server answers while the file is still being sent, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                body = b'{"error": "invalid digest format"}'
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 20):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(BadRequest, match="invalid digest format"):
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}").upload_blob(
                "x", io.BytesIO(bytes(1 << 24)), 1 << 24
            )
        thread.join()


def test_a_file_that_becomes_shorter(server: ScriptedServer) -> None:
    with pytest.raises(OllamaError, match="became 5 bytes shorter"):
        Client(server.url).upload_blob("x", io.BytesIO(b"12345"), 10)


def test_cancel_by_id(server: ScriptedServer) -> None:
    server.routes["DELETE /api/requests/a.b"] = [ok({"id": "a.b", "state": "cancelled"}), error(404, "request")]
    client = Client(server.url)
    assert [client.cancel("a.b"), client.cancel("a.b")] == [True, False]


VALUES = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != "error"),
    st.one_of(st.text(), st.integers(), st.booleans()),
    max_size=3,
)


def chunked(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


def is_last(found: dict[str, Any]) -> bool:
    return bool(found.get("done"))


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=6), st.lists(st.integers(0, 400), max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_any_chunking_gives_the_same_objects(values: list[dict[str, Any]], cuts: list[int], end: str) -> None:
    values = [*values, {"done": True}]
    data = "".join(json.dumps(value, ensure_ascii=False) + end for value in values).encode()
    assert list(parse_stream(chunked(data, cuts), is_last)) == values


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=4), st.data())
def test_every_cut_is_noticed(values: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = "".join(json.dumps(value) + "\n" for value in [*values, {"done": True}]).encode()
    cut = data.draw(st.integers(0, len(whole) - 2))  # without the line feed alone, nothing is lost
    with pytest.raises(ConnectError, match="before the answer was complete"):
        list(parse_stream([whole[:cut]], is_last))


def test_the_last_line_feed_may_be_missing() -> None:
    assert list(parse_stream([b'{"done": true}'], is_last)) == [{"done": True}]


def test_an_error_line_is_raised_after_what_came_before() -> None:
    stream = parse_stream([b'{"a": 1}\n{"error": "\xe5\x9d\x8f"}\n'], is_last)
    assert next(stream) == {"a": 1}
    with pytest.raises(OllamaError, match="坏"):
        next(stream)


@pytest.mark.parametrize("line", [b"[1]", b"3", b'"text"'])
def test_a_line_that_is_not_an_object(line: bytes) -> None:
    with pytest.raises(OllamaError, match="where a JSON object was expected"):
        list(parse_stream([line + b"\n"], is_last))


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(OllamaError, match="more than 8000000 bytes"):
        list(parse_stream([b"x" * 1_000_000] * 9, is_last))


def test_requests_to_another_machine_go_through_the_proxy(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{server.port}")
    server.routes["GET http://hub.example:8000/base/api/ps"] = ok({"models": []})
    assert Client("http://hub.example:8000/base").ps() == {"models": []}
    assert server.seen[0].headers["Proxy-Authorization"] == "Basic bWU6cEBzcw=="
    assert server.seen[0].headers["Host"] == "hub.example:8000"
