"""``run`` without a session: questions, pipes, embeddings, automatic pulls, errors."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command_line import RunCommand
from support.fake_servers import Answer, ScriptedServer, error, ndjson, ok, until_hung_up

PLAIN = ok({"capabilities": ["completion"], "model_info": {}})
THINKER = ok({"capabilities": ["completion", "thinking"]})
ANSWER = ndjson(
    {"response": "", "thinking": "嗯", "done": False},
    {"response": "天是", "done": False},
    {"response": "蓝的。", "done": False},
    {"response": "", "done": True, "eval_count": 2, "eval_duration": 1_000_000_000, "warnings": ["unknown option"]},
)


@pytest.fixture
def talker(server: ScriptedServer) -> ScriptedServer:
    server.routes |= {"POST /api/show": PLAIN, "POST /api/generate": ANSWER}
    return server


def test_a_question(talker: ScriptedServer, ollama: RunCommand) -> None:
    result = ollama("run", "m", "Why", "is the sky blue?")
    assert result.out == "Thinking...\n嗯\n...done thinking.\n\n天是蓝的。\n\n"
    assert (result.code, result.err) == (0, "warning: unknown option\n")
    assert talker.asked("POST /api/generate") == [{"model": "m", "prompt": "Why is the sky blue?", "stream": True}]


def test_piped_text_precedes_the_prompt(talker: ScriptedServer, ollama: RunCommand) -> None:
    ollama("run", "m", stdin="你好！\n".encode())
    ollama("run", "m", "translate", stdin="你好！\n".encode())
    ollama("run", "m", stdin=b"\xff")
    prompts = [body["prompt"] for body in talker.asked("POST /api/generate")]
    assert prompts == ["你好！\n", "你好！\n translate", "\ufffd"]


@pytest.mark.parametrize("words", [(), ("",)])
def test_an_empty_prompt_only_loads(talker: ScriptedServer, ollama: RunCommand, words: tuple[str, ...]) -> None:
    talker.routes["POST /api/generate"] = ok({"response": "", "done": True, "done_reason": "load"})
    result = ollama("run", "m", *words)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert talker.asked("POST /api/generate") == [{"model": "m", "prompt": "", "stream": False}]


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (["--format", "json"], {"format": "json"}),
        (["--format", '{"type": "object"}'], {"format": {"type": "object"}}),
        (["--keepalive", "1h30m"], {"keep_alive": "1h30m"}),
        (["--think"], {"think": True}),
        (["--think=false"], {"think": False}),
        (["--think=max"], {"think": "max"}),
        (["--think-budget", "200"], {"think_budget": 200}),
    ],
)
def test_flags_become_fields(
    talker: ScriptedServer, ollama: RunCommand, flags: list[str], fields: dict[str, Any]
) -> None:
    ollama("run", "m", *flags, "hi")
    assert talker.asked("POST /api/generate") == [{"model": "m", "prompt": "hi", "stream": True, **fields}]


def test_models_that_can_think_are_asked_to(talker: ScriptedServer, ollama: RunCommand) -> None:
    talker.routes["POST /api/show"] = THINKER
    assert ollama("run", "m", "--hidethinking", "hi").out == "天是蓝的。\n\n"
    ollama("run", "m", "--think=false", "hi")
    assert [body["think"] for body in talker.asked("POST /api/generate")] == [True, False]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--keepalive", "5"], 'time: missing unit in duration "5"'),
        (["--keepalive", "soon"], 'time: invalid duration "soon"'),
        (["--think=x"], 'invalid value for --think: "x" (must be true, false, high, medium, low, or max)'),
        (["--format", "yaml"], "invalid value for --format: neither json nor a JSON Schema"),
    ],
)
def test_invalid_flags_send_no_request(talker: ScriptedServer, ollama: RunCommand, flags: list[str], text: str) -> None:
    result = ollama("run", "m", *flags, "hi")
    assert (result.code, result.err.startswith(f"Error: {text}")) == (1, True)
    assert talker.seen == []


def test_verbose_figures_are_on_stderr(talker: ScriptedServer, ollama: RunCommand) -> None:
    assert "eval rate:            2.00 tokens/s\n" in ollama("run", "m", "--verbose", "hi").err


@pytest.mark.parametrize(
    ("truncated", "told"),
    [
        ({"messages_dropped": 3, "prompt_tokens_dropped": 90}, "the 3 oldest messages"),
        ({"prompt_tokens_dropped": 90}, "90 tokens of the prompt"),
    ],
)
def test_an_omission_is_a_warning(
    talker: ScriptedServer, ollama: RunCommand, truncated: dict[str, int], told: str
) -> None:
    talker.routes["POST /api/generate"] = ndjson(
        {"response": "Yes.", "done": False},
        {"response": "", "done": True, "truncated": truncated, "context_length": 64},
    )
    result = ollama("run", "m", "hi")
    warning = f"warning: {told} did not fit into the context of 64 tokens and were left out; `num_ctx` widens it\n"
    assert (result.out, result.err) == ("Yes.\n\n", warning)


def test_a_missing_model_is_pulled(talker: ScriptedServer, ollama: RunCommand) -> None:
    talker.routes["POST /api/show"] = [error(404, "model 'pip://x' not found"), PLAIN]
    talker.routes["POST /api/pull"] = ndjson({"status": "pulling manifest"}, {"status": "success"})
    result = ollama("run", "pip://x", "hi")
    assert result.code == 0
    assert result.err.startswith("pulling manifest\nsuccess\n")
    assert talker.asked("POST /api/pull") == [{"model": "pip://x", "stream": True}]


def test_other_errors_of_show_are_fatal(talker: ScriptedServer, ollama: RunCommand) -> None:
    talker.routes["POST /api/show"] = error(400, "invalid model name")
    assert ollama("run", "a b", "hi").err == "Error: invalid model name\n"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (error(400, '"m" does not support thinking'), '400 Bad Request: "m" does not support thinking'),
        (ndjson({"response": "a"}, {"error": "the runner has stopped"}), "the runner has stopped"),
        (Answer(200, [b'{"response": "a"}\n'], cut=True), "the connection to the server was lost"),
    ],
)
def test_failing_replies(talker: ScriptedServer, ollama: RunCommand, answer: Answer, text: str) -> None:
    talker.routes["POST /api/generate"] = answer
    result = ollama("run", "m", "hi")
    assert result.code == 1
    assert result.err.startswith(f"Error: {text}")


def test_embedding(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/show"] = ok({"capabilities": ["embedding"]})
    server.routes["POST /api/embed"] = [ok({"embeddings": [[0.1, -0.25]]}), ok({"embeddings": []})]
    assert ollama("run", "m", "--truncate=false", "--dimensions", "2", "a", "b").out == "[0.1,-0.25]\n"
    assert server.asked("POST /api/embed") == [{"model": "m", "input": "a b", "truncate": False, "dimensions": 2}]
    assert ollama("run", "m", "a").err == "Error: no embeddings returned\n"
    assert ollama("run", "m").err == (
        'Error: embedding models require input text. Usage: ollama run m "your text here"\n'
    )


def test_image_models_are_refused(server: ScriptedServer, ollama: RunCommand) -> None:
    server.routes["POST /api/show"] = ok({"capabilities": ["image"]})
    assert ollama("run", "m", "hi").err == "Error: image generation models are not currently supported\n"


def test_images_in_the_prompt(talker: ScriptedServer, ollama: RunCommand, tmp_path: Path) -> None:
    picture = tmp_path / "一 张.PNG"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n....")
    written = str(picture).replace(" ", "\\ ")
    prompt = f"what is in {written} and in /no/such.jpg"
    ollama("run", "m", prompt)
    talker.routes["POST /api/show"] = ok({"capabilities": ["completion", "vision"]})
    result = ollama("run", "m", prompt)
    blind, seeing = talker.asked("POST /api/generate")
    assert blind == {"model": "m", "prompt": prompt, "stream": True}
    assert seeing["prompt"] == "what is in  and in /no/such.jpg"
    assert base64.b64decode(seeing["images"][0]) == picture.read_bytes()
    assert f"Added image '{picture}'" in result.err


def test_a_file_that_is_not_an_image(talker: ScriptedServer, ollama: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    talker.routes["POST /api/show"] = ok({"capabilities": ["vision"]})
    result = ollama("run", "m", f"see {tmp_path}/a.png")
    assert result.err == "Error: invalid file type: text/plain; charset=utf-8\n"


def start(server: ScriptedServer, home: Path, *args: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OLLAMA_HOST": server.url, "HOME": str(home)}
    command = [sys.executable, "-m", "ollama_nb.cli.main", *args]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_interrupting_a_reply_cancels_it_with_exit_0(talker: ScriptedServer, home: Path) -> None:
    talker.routes["POST /api/generate"] = lambda _: Answer(200, until_hung_up([], lambda: {"response": "word "}))
    with start(talker, home, "run", "m", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"word "
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert talker.hung_up.wait(60)


def test_interrupting_a_pull_ends_as_the_signal_does(server: ScriptedServer, home: Path) -> None:
    line = {"status": "pulling x", "digest": "x", "total": 100, "completed": 1}
    server.routes["POST /api/pull"] = lambda _: Answer(200, until_hung_up([{"status": "a"}], lambda: line))
    with start(server, home, "pull", "m") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"a\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert server.hung_up.wait(60)
