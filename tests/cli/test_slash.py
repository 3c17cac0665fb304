"""Commands inside a conversation, against a scripted server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.fake_servers import ScriptedServer, error, ndjson, ok
from support.models import random_lora
from support.servers import RunningServer

from ollama_nb.cli import slash
from ollama_nb.cli.session import ReplSession
from ollama_nb.client.client import Client
from ollama_nb.client.files import file_digest, upload

INFO: dict[str, Any] = {
    "modelfile": "FROM x\n",
    "parameters": "top_k                          5",
    "details": {"parent_model": ""},
    "capabilities": ["completion"],
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    "model_info": {"general.architecture": "llama"},
}


@pytest.fixture
def session(server: ScriptedServer) -> ReplSession:
    server.routes |= {"POST /api/show": ok(INFO), "POST /api/generate": ok({"done": True, "done_reason": "load"})}
    begun = ReplSession(Client(server.url), "m")
    begun.adopt("m", INFO)
    return begun


@pytest.fixture
def say(session: ReplSession, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(line: str) -> tuple[str, str]:
        assert slash.handle(line, session, lambda _: None)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("/set parameter temperature 0.5", "Set parameter 'temperature' to '0.5'\n"),
        ("/set parameter stop a 完", "Set parameter 'stop' to 'a, 完'\n"),
        ("/set parameter foo 1", "Couldn't set parameter: \"unknown parameter 'foo'\"\n"),
        ("/set parameter seed x", 'Couldn\'t set parameter: "invalid int value [x]"\n'),
        ("/set system Be kind.", "Set system message.\n"),
        ("/set wordwrap", "Set 'wordwrap' mode.\n"),
        ("/set nowordwrap", "Set 'nowordwrap' mode.\n"),
        ("/set format json", "Set format to 'json' mode.\n"),
        ("/set format", "Invalid or missing format. For 'json' mode use '/set format json'\n"),
        ("/set format xml", "Invalid or missing format. For 'json' mode use '/set format json'\n"),
        ("/set noformat", "Disabled format.\n"),
        ("/set verbose", "Set 'verbose' mode.\n"),
        ("/set quiet", "Set 'quiet' mode.\n"),
        ("/set nothink", "Set 'nothink' mode.\n"),
        ("/set history", ""),
        ("/set foo", "Unknown command '/set foo'. Type /? for help\n"),
        ("/load", "Usage:\n  /load <modelname>\n"),
        ("/save a b", "Usage:\n  /save <modelname>\n"),
        ("/clear", "Cleared session context\n"),
        ("/show license", "No license was specified for this model.\n"),
        ("/show template", "No prompt template was specified for this model.\n"),
        ("/show system", "No system message was specified for this model.\n"),
        ("/show modelfile", "FROM x\n\n"),
        ("/show foo", "Unknown command '/show foo'. Type /? for help\n"),
    ],
)
def test_messages_of_the_commands(say: Any, line: str, out: str) -> None:
    assert say(line) == (out, "")


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ("/set", "Available Commands:\n  /set parameter"),
        ("/set system", "Available Commands:\n  /set parameter"),
        ("/set parameter seed", "Available Parameters:"),
        ("/show", "Available Commands:\n  /show info"),
        ("/show info", "  Model\n"),
        ("/?", "Available Commands:\n  /set "),
        ("/help", "Available Commands:\n  /set "),
        ("/? set", "Available Commands:\n  /set parameter"),
        ("/? /show", "Available Commands:\n  /show info"),
        ("/? shortcuts", "Available keyboard shortcuts:"),
        ("/? foo", ""),
    ],
)
def test_help_is_on_stderr(say: Any, line: str, starts: str) -> None:
    out, err = say(line)
    assert out == ""
    assert err.startswith(starts)
    assert bool(err) == bool(starts)


def test_unknown_commands(session: ReplSession) -> None:
    assert not slash.handle("/foo bar", session, lambda _: None)
    assert slash.unknown("/foo bar") == "Unknown command '/foo'. Type /? for help"
    assert [slash.leaves(line) for line in ("/bye", "/exit now", "/by")] == [True, True, False]


def test_history_is_switched(session: ReplSession) -> None:
    kept: list[bool] = []
    for line in ("/set nohistory", "/set history"):
        slash.handle(line, session, kept.append)
    assert kept == [False, True]


def test_settings_go_into_the_next_request(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    server.routes["POST /api/chat"] = ndjson({"message": {"content": "hi"}}, {"done": True})
    for line in ("/set parameter seed 7", "/set parameter stop a b", "/set system 善良", "/set format json"):
        say(line)
    say("/set nothink")
    session.ask("问", [])
    assert server.asked("POST /api/chat") == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "善良"}, {"role": "user", "content": "问"}],
            "stream": True,
            "think": False,
            "options": {"seed": 7, "stop": ["a", "b"]},
            "format": "json",
        }
    ]
    assert session.conversation.messages[-1] == {"role": "assistant", "content": "hi"}


def test_a_system_message_replaces_a_directly_preceding_one(session: ReplSession, say: Any) -> None:
    say("/set system one")
    say("/set system two")
    assert session.conversation.messages == [{"role": "system", "content": "two"}]
    session.conversation.messages.append({"role": "user", "content": "x"})
    say("/clear")
    assert session.conversation.messages == [{"role": "system", "content": "two"}]


def test_thinking_levels_and_the_warning(say: Any, session: ReplSession) -> None:
    warning = 'warning: model "m" does not support thinking output\n'
    assert say("/set think low") == ("Set 'think' mode to 'low'.\n", warning)
    assert (session.think, session.think_chosen) == ("low", True)
    assert say("/set think") == ("Set 'think' mode.\n", warning)


def test_parameters_of_model_and_session(say: Any) -> None:
    assert say("/show parameters")[0] == "Model defined parameters:\n  top_k                          5\n\n"
    say("/set parameter stop a b")
    assert say("/show parameters")[0].endswith("User defined parameters:\n  stop                           [a b]\n\n")


def test_list(server: ScriptedServer, say: Any) -> None:
    entry = {"digest": "0" * 64, "size": 1, "modified_at": "0001-01-01T00:00:00Z"}
    server.routes["GET /api/tags"] = ok({"models": [{"name": "aa", **entry}, {"name": "b", **entry}]})
    assert [len(say(line)[0].splitlines()) for line in ("/list", "/list A", "/listing")] == [3, 2, 3]


def test_load_another_model(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    server.routes["POST /api/show"] = ok({**INFO, "capabilities": ["completion", "thinking"], "messages": []})
    session.conversation.messages = [{"role": "user", "content": "x"}]
    assert say("/load other")[0] == "Loading model 'other'\n"
    assert (session.model, session.conversation.messages, session.stored, session.think) == ("other", [], [], True)
    assert server.asked("POST /api/generate")[-1] == {"model": "other", "prompt": "", "stream": False, "think": True}


def test_loading_a_missing_model_keeps_the_session(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    server.routes["POST /api/show"] = error(404, "model 'x' not found")
    session.conversation.messages = [{"role": "user", "content": "x"}]
    assert say("/load x")[0] == "Loading model 'x'\nCouldn't find model 'x'\n"
    assert (session.model, session.conversation.messages) == ("m", [{"role": "user", "content": "x"}])


def test_load_of_a_model_that_cannot_think(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    server.routes["POST /api/generate"] = error(400, '"o" does not support thinking', "thinking_unsupported")
    assert say("/load o")[0] == "Loading model 'o'\nerror: \"o\" does not support thinking\n"
    assert session.model == "o"


def test_save(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    server.routes["POST /api/create"] = [ndjson({"status": "success"})]
    say("/set system Be kind.")
    say("/set parameter seed 1")
    assert say("/save mine")[0] == "Created new model 'mine'\n"
    assert server.asked("POST /api/create") == [
        {
            "model": "mine",
            "from": "m",
            "system": "Be kind.",
            "parameters": {"seed": 1},
            "messages": [*INFO["messages"], {"role": "system", "content": "Be kind."}],
            "stream": True,
        }
    ]
    assert say("/save b@d")[0] == "error: The model name 'b@d' is invalid\n"


def test_load_forgets_the_system_message_of_the_session(session: ReplSession, say: Any) -> None:
    say("/set system Be kind.")
    say("/load other")
    assert session.system == ""
    say("/clear")
    assert session.conversation.messages == []


def test_save_starts_from_the_model_itself(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    server.routes["POST /api/create"] = ndjson({"status": "success"})
    session.adopt("m", {**INFO, "details": {"parent_model": "base:latest"}, "messages": None})
    say("/save mine")
    assert server.asked("POST /api/create")[0]["from"] == "m"


def test_save_as_the_model_of_the_session(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    """The server puts the saved conversation before the next question; it must not be sent twice."""
    server.routes["POST /api/create"] = ndjson({"status": "success"})
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    session.conversation.messages = said
    server.routes["POST /api/show"] = ok({**INFO, "messages": [*INFO["messages"], *said]})
    say("/save M:latest")
    assert (session.stored, session.conversation.messages) == ([*INFO["messages"], *said], [])


@pytest.fixture(scope="module")
def everything(real_server: RunningServer, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client of a server with ``ada``, a model that has every part a Modelfile can give it, and ``plain``."""
    client = Client(real_server.url)
    weights = models / "stories260K-f32.gguf"
    adapter = random_lora(weights, tmp_path_factory.mktemp("adapter") / "lora.gguf", 1)
    digests = {path: file_digest(path) for path in (weights, adapter)}
    for path, digest in digests.items():
        upload(client, path, digest, lambda sent, size: None)
    ada: dict[str, Any] = {
        "adapters": {adapter.name: digests[adapter]},
        "template": "{{ .System }} {{ range .Messages }}{{ .Content }} {{ end }}",
        "system": "You are Captain Ada.",
        "license": ["MIT", "Apache"],
        "parameters": {"top_k": 7, "stop": ["ahoy"], "num_predict": 2},
        "messages": [{"role": "user", "content": "ahoy"}, {"role": "assistant", "content": "aye"}],
        "requires": "0.1.0",
    }
    plain: dict[str, Any] = {"files": {weights.name: digests[weights]}}
    for name, fields in (("plain", plain), ("ada", {"from": "plain", **ada})):
        with client.create(name, **fields) as lines:
            assert list(lines)[-1]["status"] == "success"
    return client


KEPT = ("template", "license", "system")


@pytest.mark.model
def test_a_saved_model_is_the_model_that_was_talked_to(everything: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """Case: /save after ``run`` of a model with SYSTEM, TEMPLATE, PARAMETER, ADAPTER, LICENSE and MESSAGE."""
    session = ReplSession(everything, "ada")
    session.adopt("ada", everything.show("ada"))
    session.ask("hi", [])
    slash.handle("/save kept", session, lambda _: None)
    before, after = everything.show("ada"), everything.show("kept")
    assert {key: after.get(key) for key in KEPT} == {key: before[key] for key in KEPT}
    assert after["parameters"] == before["parameters"]
    assert _lines(after, "ADAPTER", "PARAMETER", "TEMPLATE", "SYSTEM", "REQUIRES") == _lines(
        before, "ADAPTER", "PARAMETER", "TEMPLATE", "SYSTEM", "REQUIRES"
    )
    contents = [message["content"] for message in after["messages"]]
    assert (contents[:3], len(contents)) == (["ahoy", "aye", "hi"], 4)


@pytest.mark.model
def test_a_saved_model_has_the_changes_of_the_session(everything: Client, capsys: pytest.CaptureFixture[str]) -> None:
    session = ReplSession(everything, "plain")
    session.adopt("plain", everything.show("plain"))
    for line in ("/set system Be kind.", "/load ada", "/set parameter top_k 9", "/save loaded"):
        assert slash.handle(line, session, lambda _: None)
    loaded = everything.show("loaded")
    assert loaded["system"] == "You are Captain Ada."
    assert {"PARAMETER top_k 9", "PARAMETER stop ahoy", "PARAMETER num_predict 2"} <= {*loaded["modelfile"].split("\n")}
    for line in ("/set system Be brief.", "/save brief"):
        slash.handle(line, session, lambda _: None)
    brief = everything.show("brief")
    assert (brief["system"], brief["template"]) == ("Be brief.", loaded["template"])
    assert _lines(brief, "ADAPTER") == _lines(loaded, "ADAPTER") != []


def _lines(shown: dict[str, Any], *instructions: str) -> list[str]:
    return [line for line in shown["modelfile"].splitlines() if line.startswith(instructions)]
