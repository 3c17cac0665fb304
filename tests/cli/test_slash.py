"""Commands inside a conversation, against a scripted server."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_servers import ScriptedServer, error, ndjson, ok

from ollama_nb.cli import slash
from ollama_nb.cli.session import ReplSession
from ollama_nb.client.client import Client

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


def test_save_uses_the_parent_model(server: ScriptedServer, session: ReplSession, say: Any) -> None:
    server.routes["POST /api/create"] = ndjson({"status": "success"})
    session.adopt("m", {**INFO, "details": {"parent_model": "base:latest"}, "messages": None})
    say("/save mine")
    assert server.asked("POST /api/create")[0]["from"] == "base:latest"
