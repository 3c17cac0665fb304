"""An interrupted run: its requests end on the server, finished rows are kept, and the next run resumes."""

from __future__ import annotations

import _thread
import json
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.fake_servers import MODEL, Answer, EchoServer, error, until_hung_up

import ollama_nb  # noqa: F401  (registers the accessor)
from ollama_nb.errors import ConnectError, OllamaError
from ollama_nb.notebook.display import Interrupted

WORDS = pd.Series([f"w{number}" for number in range(40)])
ANSWERS = [word.upper() for word in WORDS]


def stop_after(server: EchoServer, count: int) -> threading.Event:
    """Interrupt the run at its ``count``-th request. That request and later ones wait until the event is set."""
    lock, asked, go_on = threading.Lock(), 0, threading.Event()

    def wait(text: str) -> None:
        nonlocal asked
        with lock:
            asked += 1
            number = asked
        if number == count:
            _thread.interrupt_main()
        if number >= count:
            go_on.wait(60)

    server.before = wait
    return go_on


@pytest.mark.parametrize("keywords", [{"temperature": 0}, {}], ids=["determined", "drawn"])
def test_finished_rows_are_kept_and_the_next_run_resumes(echo_server: EchoServer, keywords: dict[str, Any]) -> None:
    go_on = stop_after(echo_server, 20)
    with pytest.raises(Interrupted, match=r"Interrupted: \d+ of 40 rows are done. Run it again to resume."):
        WORDS.ollama.generate(MODEL, **keywords)
    go_on.set()
    before = echo_server.asked_times
    assert 20 <= before < 40
    echo_server.before = lambda text: None
    assert WORDS.ollama.generate(MODEL, **keywords).tolist() == ANSWERS
    in_flight = echo_server.slots + 2
    assert 40 <= echo_server.asked_times <= 40 + in_flight
    assert all(times <= 2 for times in echo_server.questions.values())


def test_finished_rows_are_in_a_variable(echo_server: EchoServer, shell: InteractiveShell, displays: list[Any]) -> None:
    go_on = stop_after(echo_server, 20)
    with pytest.raises(Interrupted, match="They are in `_ollama`"):
        WORDS.ollama.generate(MODEL)
    go_on.set()
    partial = shell.user_ns["_ollama"]
    assert partial.index.equals(WORDS.index)
    done = partial.dropna()
    assert 0 < len(done) < 40
    assert all(answer == ANSWERS[row] for row, answer in done.items())
    assert displays[-1]["data"]["text/plain"].endswith("(interrupted)")


def test_running_requests_end_on_the_server(echo_server: EchoServer) -> None:
    started = threading.Barrier(7)  # six at once, and this test's own thread

    def endless(text: str) -> Answer:
        started.wait(60)
        return Answer(200, until_hung_up([], lambda: {"response": "x", "done": False}))

    echo_server.say = endless

    def stop() -> None:
        started.wait(60)
        _thread.interrupt_main()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Interrupted):
        WORDS.ollama.generate(MODEL)
    stopper.join()
    assert echo_server.hung_up.wait(60)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ollama-nb-row")]


def test_an_error_stops_the_others(echo_server: EchoServer) -> None:
    def answer(text: str) -> str | Answer:
        if text == "w3":
            return error(400, "no")
        return text.upper() if text < "w3" else Answer(200, until_hung_up([], lambda: {"response": "", "done": False}))

    echo_server.say = answer
    with pytest.raises(OllamaError, match="row 3: no"):
        WORDS.head(9).ollama.generate(MODEL)
    assert echo_server.hung_up.wait(60)


def test_a_server_that_goes_away_ends_the_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, shell: InteractiveShell
) -> None:
    monkeypatch.setattr("ollama_nb.notebook.frame.run.PAUSES", (0.01, 0.01, 0.01, 0.01))
    with EchoServer() as echo_server:
        monkeypatch.setenv("OLLAMA_HOST", echo_server.url)
        cut = Answer(200, [b'{"resp'], cut=True)
        echo_server.say = lambda text: cut if text == "w9" else text.upper()
        with pytest.raises(ConnectError, match="connection to the server was lost"):
            WORDS.ollama.generate(MODEL, errors="keep", temperature=0)
        echo_server.say = str.upper
        assert WORDS.ollama.generate(MODEL, temperature=0).tolist() == ANSWERS
        assert echo_server.questions["w0"] == 1


def test_a_run_shows_its_progress(echo_server: EchoServer, shell: InteractiveShell, displays: list[Any]) -> None:
    WORDS.ollama.generate(MODEL, temperature=0)
    first, last = displays[0], displays[-1]
    assert "<progress" in first["data"]["text/html"]
    assert last["data"]["text/plain"] == "generated 40 rows"
    assert "40 rows in" in last["data"]["text/html"]
    del displays[:]
    WORDS.ollama.generate(MODEL, temperature=0)
    assert "40 of them were answered by an earlier run" in displays[-1]["data"]["text/html"]
    del displays[:]
    WORDS.ollama.generate(MODEL, progress=False)
    assert displays == []


def test_scripts_show_nothing_unless_asked(echo_server: EchoServer, capsys: pytest.CaptureFixture[str]) -> None:
    WORDS.ollama.generate(MODEL)
    assert capsys.readouterr().out == ""
    WORDS.ollama.generate(MODEL, progress=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("generated 40 rows in ")


def test_prompts_are_not_written_to_disk(echo_server: EchoServer, home: Path) -> None:
    pd.Series(["secret words"]).ollama.generate(MODEL, temperature=0)
    (ledger,) = (home / ".ollama" / "nb" / "ledgers").iterdir()
    (line,) = ledger.read_text("utf-8").splitlines()
    assert json.loads(line)["value"] == "SECRET WORDS"
    assert "secret words" not in line
