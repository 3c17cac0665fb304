"""An interactive session on a pseudo-terminal: input, output and requests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shlex
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_servers import Answer, ScriptedServer, Seen, error, ndjson, ok, until_hung_up

from ollama_nb.cli.repl import LineHistory

ENTER, CTRL_C, CTRL_D, CTRL_J, UP = "\r", "\x03", "\x04", "\n", "\x1b[A"
SECONDS = 60


class Terminal:
    """A program on a terminal of 80 × 24. ``expect`` waits for a text after what was seen before."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            command, env=env, stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True
        )
        os.close(slave)
        self.seen, self._at = "", 0

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> str:
        """Everything up to and with ``text``."""
        deadline = time.monotonic() + SECONDS
        while (end := self.seen.find(text, self._at)) < 0:
            assert time.monotonic() < deadline and self._read(), f"no {text!r} in {self.seen[self._at :]!r}"
        found, self._at = self.seen[self._at : end + len(text)], end + len(text)
        return found

    def _read(self) -> bool:
        readable, _, _ = select.select([self._fd], [], [], 1)
        if not readable:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)

    def wait(self) -> int:
        while self._read() and self.process.poll() is None:
            pass
        return self.process.wait(SECONDS)

    def close(self) -> None:
        os.close(self._fd)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def answer_of(seen: Seen) -> Answer:
    said = seen.json["messages"][-1]["content"]
    return ndjson({"message": {"role": "assistant", "content": f"heard <{said}>"}}, {"done": True, "eval_count": 1})


@pytest.fixture
def talker(server: ScriptedServer) -> ScriptedServer:
    server.routes |= {
        "POST /api/show": ok({"capabilities": ["completion"], "messages": [{"role": "user", "content": "stored"}]}),
        "POST /api/generate": ok({"response": "", "done": True, "done_reason": "load"}),
        "POST /api/chat": answer_of,
    }
    return server


@pytest.fixture
def begin(talker: ScriptedServer, home: Path) -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:

        def run(*flags: str, **more: str) -> Terminal:
            env = {**os.environ, "OLLAMA_HOST": talker.url, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
            command = [sys.executable, "-m", "ollama_nb.cli.main", "run", "m", *flags]
            terminal = Terminal(command, {**env, **more})
            stack.callback(terminal.close)
            terminal.expect("Send a message (/? for help)")
            return terminal

        yield run


def sent(server: ScriptedServer) -> list[list[dict[str, Any]]]:
    return [body["messages"] for body in server.asked("POST /api/chat")]


def test_a_conversation(talker: ScriptedServer, begin: Callable[..., Terminal], home: Path) -> None:
    terminal = begin()
    assert ">>> stored" in terminal.seen
    terminal.type("你好" + ENTER)
    terminal.expect("heard <你好>")
    terminal.expect("Send a message")
    terminal.type("/set verbose" + ENTER)
    terminal.expect("Set 'verbose' mode.")
    terminal.expect("Send a message")
    terminal.type("/nonsense" + ENTER)
    terminal.expect("Unknown command '/nonsense'. Type /? for help")
    terminal.expect("Send a message")
    terminal.type("two" + ENTER)
    terminal.expect("heard <two>")
    terminal.expect("eval count:           1 token(s)")
    terminal.expect("Send a message")
    terminal.type(UP + UP + UP + UP + ENTER)
    terminal.expect("heard <你好>")
    terminal.expect("Send a message")
    terminal.type("/bye" + ENTER)
    assert terminal.wait() == 0
    assert [message["content"] for message in sent(talker)[1]] == ["你好", "heard <你好>", "two"]
    history = home / ".ollama" / "history"
    assert history.read_text("utf-8") == "你好\n/set verbose\n/nonsense\ntwo\n你好\n/bye\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_several_lines(talker: ScriptedServer, begin: Callable[..., Terminal]) -> None:
    terminal = begin()
    terminal.type('"""one' + ENTER)
    terminal.expect("Press Enter to send")
    terminal.type("/bye" + ENTER)
    terminal.expect("Press Enter to send")
    terminal.type('three"""' + ENTER)
    terminal.expect("heard <one")
    terminal.expect("Send a message")
    terminal.type(f"a{CTRL_J}b{ENTER}")
    terminal.expect("heard <a")
    terminal.expect("Send a message")
    terminal.type(f"\x1b[200~p\nq\x1b[201~{ENTER}")
    terminal.expect("heard <p")
    terminal.expect("Send a message")
    terminal.type('/set system """be' + ENTER)
    terminal.expect("Press Enter to send")
    terminal.type('kind"""' + ENTER)
    terminal.expect("Set system message.")
    terminal.expect("Send a message")
    terminal.type("x" + ENTER)
    terminal.expect("heard <x>")
    said = [messages[-1]["content"] for messages in sent(talker)]
    assert said == ["one\n/bye\nthree", "a\nb", "p\nq", "x"]
    assert sent(talker)[-1][-2] == {"role": "system", "content": "be\nkind"}
    terminal.expect("Send a message")
    terminal.type(CTRL_D)
    assert terminal.wait() == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_session(talker: ScriptedServer, begin: Callable[..., Terminal]) -> None:
    endless = {"message": {"content": "word "}}
    talker.routes["POST /api/chat"] = [lambda _: Answer(200, until_hung_up([], lambda: endless)), answer_of]
    terminal = begin()
    terminal.type("go" + ENTER)
    terminal.expect("word word")
    terminal.process.send_signal(signal.SIGINT)
    terminal.expect("Send a message")
    assert talker.hung_up.wait(SECONDS)
    terminal.type("draft" + CTRL_C)
    terminal.expect("Use Ctrl + d or /bye to exit.")
    terminal.expect("Send a message")
    terminal.type("again" + ENTER)
    terminal.expect("heard <again>")
    assert [message["content"] for message in sent(talker)[-1]] == ["go", "again"]
    terminal.expect("Send a message")
    terminal.type(CTRL_D)
    assert terminal.wait() == 0


def test_errors_of_a_turn(talker: ScriptedServer, begin: Callable[..., Terminal]) -> None:
    talker.routes["POST /api/chat"] = [
        error(400, '"m" does not support thinking', "thinking_unsupported"),
        error(502, "upstream error"),
        ndjson({"error": "the runner has stopped"}),
    ]
    terminal = begin()
    terminal.type("a" + ENTER)
    terminal.expect('error: 400 Bad Request: "m" does not support thinking')
    terminal.expect("Send a message")
    terminal.type("b" + ENTER)
    terminal.expect("An error occurred while processing your message. Please try again.")
    terminal.expect("Send a message")
    terminal.type("c" + ENTER)
    terminal.expect("Error: the runner has stopped")
    assert terminal.wait() == 1


def test_no_history(begin: Callable[..., Terminal], home: Path) -> None:
    terminal = begin(OLLAMA_NOHISTORY="1")
    terminal.type("secret" + ENTER)
    terminal.expect("heard <secret>")
    terminal.expect("Send a message")
    terminal.type("/bye" + ENTER)
    assert terminal.wait() == 0
    assert not (home / ".ollama" / "history").exists()


def test_a_long_message_in_an_editor(talker: ScriptedServer, begin: Callable[..., Terminal], tmp_path: Path) -> None:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nprintf "%s and more\\n" "$(cat "$1")" > "$1"\n')
    script.chmod(0o755)
    terminal = begin(OLLAMA_EDITOR=shlex.quote(str(script)))
    terminal.type("draft")
    terminal.expect("draft")
    terminal.type("\x07")
    terminal.expect("and more")
    terminal.type(ENTER)
    terminal.expect("heard <draft and more>")


def test_a_question_on_a_terminal_is_wrapped_and_answered(talker: ScriptedServer, home: Path) -> None:
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"
    talker.routes["POST /api/generate"] = ndjson(*({"response": f"{word} "} for word in words.split()), {"done": True})
    env = {**os.environ, "OLLAMA_HOST": talker.url, "TERM": "xterm"}
    terminal = Terminal([sys.executable, "-m", "ollama_nb.cli.main", "run", "m", "greek letters"], env)
    try:
        assert terminal.wait() == 0
        terminal.expect("alpha beta")
        terminal.expect("\x1b[K\r\n")
    finally:
        terminal.close()


def test_history_keeps_the_newest_hundred_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    history = LineHistory(path)
    for number in range(120):
        history.store_string(f"第{number}\nb")
    assert path.read_text("utf-8").splitlines()[-2:] == ["第119", "b"]
    assert len(LineHistory(path)._lines) == 100
    assert next(iter(LineHistory(path).load_history_strings())) == "b"
