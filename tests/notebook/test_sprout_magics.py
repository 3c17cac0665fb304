"""The magics with a real server and small models: thinking, constrained answers, small contexts, comparisons."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from support.docker_registry import docker_registry, needs_registry
from support.servers import RunningServer
from support.service_harness import MODELS

from ollama_nb import Client
from ollama_nb.client.files import file_digest
from ollama_nb.notebook.display import Interrupted
from ollama_nb.notebook.magics import register

pytestmark = pytest.mark.model
ENDLESS = (
    """--num-predict -1 --temperature 2 --format '{"type": "array", "items": {"enum": [0, 1]}, "minItems": 3000}'"""
)
FRANCE = "What is the capital of France?"


@pytest.fixture
def magic(real_server: RunningServer, shell: InteractiveShell) -> Any:
    """Run a line or a cell; returns its answer."""
    register(shell, lambda: Client(real_server.url))

    def run(code: str) -> Any:
        result = shell.run_cell(code, store_history=True)
        if result.error_before_exec or result.error_in_exec:
            raise result.error_before_exec or result.error_in_exec  # type: ignore[misc]
        return shell.user_ns["_ollama"]

    return run


@pytest.mark.parametrize(("flags", "thinks"), [("", True), ("--think", True), ("--think=false", False)])
def test_thinking_on_off_and_absent(magic: Any, flags: str, thinks: bool) -> None:
    answer = magic(f"%ollama run sprout {flags} {FRANCE}")
    assert answer == "The capital of France is Paris."
    assert ("It is Paris." in answer.thinking) is thinks


def test_several_answers_one_below_the_other(magic: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answer = magic(f"%ollama run sprout --n 3 --think=false --temperature 0 {FRANCE}")
    assert answer.choices == ("The capital of France is Paris.",) * 3 and answer == answer.choices[0]
    assert [choice.reason for choice in answer.choices] == ["stop"] * 3
    shown = capsys.readouterr().out
    assert "\n\n".join(f"[{index}] {choice}" for index, choice in enumerate(answer.choices)) in shown
    with pytest.raises(UsageError, match="n must be between 1 and 16"):
        magic(f"%ollama run sprout --n 0 {FRANCE}")
    with pytest.raises(UsageError, match='invalid value for --n: "few" is not an integer'):
        magic(f"%ollama run sprout --n few {FRANCE}")


def test_a_conversation_continues_with_the_first_of_several_answers(magic: Any) -> None:
    answer = magic(f"%%ollama chat sprout --name several --n 2 --think=false --temperature 0\n{FRANCE}")
    assert len(answer.choices) == 2
    magic("%%ollama chat sprout --name several --think=false --num-predict 2\n你好")


def test_a_budget_of_thinking(magic: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answer = magic(f"%ollama run sprout --think-budget 5 --verbose {FRANCE}")
    assert answer.usage["reasoning_tokens"] == 5 and answer.thinking and answer
    assert "thinking tokens:      5 token(s)" in capsys.readouterr().out
    assert not magic(f"%ollama run sprout --think-budget 0 {FRANCE}").thinking


def test_tokens_can_be_forbidden(magic: Any) -> None:
    paris = magic(f"%ollama run sprout --think=false --temperature 0 {FRANCE}")
    options = """--temperature 0 --option 'logit_bias={" Paris": -100, "P": -100, " P": -100}'"""
    answer = magic(f"%ollama run sprout --think=false {options} {FRANCE}")
    assert "Paris" in paris and "Paris" not in answer
    with pytest.raises(UsageError, match="needs a JSON object"):
        magic(f"%ollama run sprout --option logit_bias=Paris {FRANCE}")


def test_an_answer_constrained_to_json(magic: Any) -> None:
    answer = magic(f"%ollama run sprout --format json --think=false {FRANCE} Answer in JSON.")
    assert isinstance(json.loads(answer), dict)


def test_omitted_messages_are_reported(magic: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for at in range(6):
        answer = magic(f"%%ollama chat sprout --think=false --num-predict 4\n{f'I count {at}. ' * 35}")
    assert answer.stats.messages_dropped > 0
    assert "did not fit into the context of 1024 tokens" in "".join(capsys.readouterr())


def test_a_message_that_does_not_fit_raises_an_error_and_is_not_remembered(
    magic: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    magic("%%ollama chat sprout --name long --think=false --num-predict 4\nHello")
    with pytest.raises(UsageError, match=r"the last message and the system prompt have \d+ tokens, but only 1023 fit"):
        magic(f"%%ollama chat sprout --name long --think=false --num-predict 4\n{'word ' * 3000}")
    with pytest.raises(UsageError, match="longer than the context length"):
        magic(f"%%ollama run sprout --num-predict 4\n{'word ' * 3000}")
    answer = magic("%%ollama chat sprout --name long --think=false --num-predict 4\nHello again")
    assert answer.stats.messages_dropped == 0


@pytest.fixture
def pair(real_server: RunningServer) -> tuple[str, str]:
    """Two models, each with a file and so a runner of its own."""
    client = Client(real_server.url)
    for name, file in (("tiny", MODELS / "stories260K-q8_0.gguf"), ("other", MODELS / "stories260K-q4_0.gguf")):
        digest = file_digest(file)
        if not client.has_blob(digest):
            with file.open("rb") as opened:
                client.upload_blob(digest, opened, file.stat().st_size)
            list(client.create(name, files={file.name: digest}))
    return "other", "tiny"


def test_models_side_by_side(magic: Any, pair: tuple[str, str], displays: list[Any]) -> None:
    found = magic(f"r = %ollama compare {' '.join(pair)} --num-predict 5 --temperature 0 Once upon a time")
    assert list(found) == list(pair)
    assert all(answer.stats.output_tokens for answer in found.values())
    html = displays[-1]["data"]["text/html"]
    assert html.count("tok/s") == 2 and "display: grid" in html
    plain = displays[-1]["data"]["text/plain"]
    assert plain.startswith(f"other\n-----\n{found['other']}\n\n") and f"\n\ntiny\n----\n{found['tiny']}" in plain
    shown = len(displays)
    magic(f"%%ollama compare {' '.join(pair)} --num-predict 2\nOnce")
    assert displays[shown]["update"] is False and len({d["transient"]["display_id"] for d in displays[shown:]}) == 1


def test_the_error_of_a_model_is_shown_in_its_column(magic: Any, pair: tuple[str, str]) -> None:
    found = magic("%ollama compare tiny nosuch --num-predict 3 Once")
    assert found["tiny"].stats is not None
    assert (found["nosuch"].reason, found["nosuch"].warnings) == ("broken", ("model 'nosuch' not found",))
    with pytest.raises(UsageError, match="all models failed"):
        magic("%ollama compare nobody nosuch --num-predict 3 Once")


def test_both_models_answer_in_parallel_and_an_interrupt_ends_both(
    magic: Any, real_server: RunningServer, pair: tuple[str, str]
) -> None:
    client = Client(real_server.url)
    seen: list[int] = []

    def stop_when_both_write() -> None:
        while not seen or seen[-1] < 2:
            seen.append(sum(entry["state"] == "generating" for entry in client.queue()["requests"]))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    watcher = threading.Thread(target=stop_when_both_write)
    watcher.start()
    with pytest.raises(Interrupted):
        magic(f"%%ollama compare {' '.join(pair)} {ENDLESS}\nOnce")
    watcher.join()
    _until(lambda: not client.queue()["requests"])

    assert {answer.reason for answer in magic("1").values()} == {"interrupted"}


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        pass


@dataclass
class Capital:
    city: Literal["Paris", "Rome", "Berlin"]
    country: str


def test_a_value_of_a_type(magic: Any, shell: InteractiveShell) -> None:
    shell.user_ns["Capital"] = Capital
    magic(f"r = %ollama run sprout --format Capital --think=false --num-predict 60 {FRANCE}")
    assert isinstance(shell.user_ns["r"], Capital)
    assert set(shell.user_ns["_ollama"].usage) == {
        "prompt_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "tokens_per_second", "seconds",
    }  # fmt: skip


def test_a_text_as_a_vector(magic: Any, shell: InteractiveShell, pair: tuple[str, str]) -> None:
    magic("v = %ollama embed tiny Once upon a time")
    vector = shell.user_ns["v"]
    assert vector.dtype == np.float32 and vector.ndim == 1
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    magic("%%ollama embed tiny --dimensions 8 -o short\nOnce upon a time")
    assert shell.user_ns["short"].shape == (8,)
    with pytest.raises(UsageError, match="exceeds the context length"):
        magic(f"%%ollama embed tiny\n{'word ' * 3000}")


def test_lists_of_a_real_server(magic: Any, shell: InteractiveShell, pair: tuple[str, str]) -> None:
    magic("%ollama run tiny --keepalive -1m --num-predict 1 Once")
    magic("models = %ollama list")
    magic("loaded = %ollama ps")
    models, loaded = shell.user_ns["models"], shell.user_ns["loaded"]
    assert {"sprout:latest", "tiny:latest"} <= set(models["name"])
    assert models.dtypes["size"] == np.int64 and (models["family"] != "").all()
    row = loaded[loaded["name"] == "tiny:latest"].iloc[0]
    assert row["context_length"] > 0 and row["slots"] > 0 and str(row["expires_at"]) == "NaT"
    assert "Forever" in repr(loaded)
    magic("%ollama stop tiny")


@needs_registry
def test_push_and_pull(magic: Any, pair: tuple[str, str], displays: list[Any], tmp_path: Path) -> None:
    with docker_registry(tmp_path) as registry:
        name = f"{registry.host}/mia/tiny"
        magic("_ollama = None")
        magic(f"%ollama cp tiny {name}")
        magic(f"%ollama push {name} --insecure")
        assert displays[-1]["data"]["text/plain"].startswith(f"pushed `{name}:latest` (")
        assert registry.blob_files()
        magic(f"%ollama rm {name}")
        magic(f"%ollama pull {name} --insecure --as back --streams 2 --max-rate 10MB")
        assert displays[-1]["data"]["text/plain"].startswith("pulled `back` (")
        magic("%ollama rm back")
        with pytest.raises(UsageError, match="insecure protocol"):
            magic(f"%ollama push http://{name}")
