"""Tables with a real server and model: correct and constrained answers, and an interrupt that frees the slots."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path

import pandas as pd
import pytest
from support.processes import until
from support.servers import RunningServer

import ollama_nb
from ollama_nb.client.client import Client
from ollama_nb.notebook.display import Interrupted

pytestmark = pytest.mark.model

MODEL = "sprout"
THINK_OFF = {"think": False, "temperature": 0, "num_thread": 1}


@pytest.fixture
def client(real_server: RunningServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("OLLAMA_HOST", real_server.url)
    return Client(real_server.url)


def test_every_row_gets_its_own_answer(client: Client) -> None:
    words = pd.DataFrame({"word": ["water", "book", "cat", None, "water"] * 4})
    found = words.ollama.generate(MODEL, "Translate to Chinese: {{word}}", **THINK_OFF)
    assert found.fillna("-").tolist() == ["水", "书", "猫", "-", "水"] * 4
    (loaded,) = client.ps()["models"]
    assert loaded["slots"] > 1


def test_answers_are_restricted_to_labels_and_fields(client: Client) -> None:
    texts = pd.Series(["Name three animals.", "天空为什么是蓝色的？"])
    labels = texts.ollama.classify(MODEL, ["苹果", "梨"], num_thread=1)
    assert labels.isin(["苹果", "梨"]).all()
    records = texts.ollama.extract(MODEL, {"colour": ["red", "blue"], "sure": bool}, num_thread=1)
    assert records["colour"].isin(["red", "blue"]).all()
    assert records["sure"].dtype == "boolean"


def test_an_interrupt_frees_the_server(client: Client) -> None:
    texts = pd.Series([f"Tell story number {number}." for number in range(64)])

    def stop() -> None:
        while not any(found["output_tokens"] for found in client.queue()["requests"]):
            threading.Event().wait(0.01)
        _thread.interrupt_main()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Interrupted):
        texts.ollama.generate(MODEL, "{{value}}", num_predict=2000, repeat_penalty=1.5, num_thread=1)
    stopper.join()
    until(lambda: not client.queue()["requests"])


def test_the_python_client(client: Client) -> None:
    found = ollama_nb.connect()
    assert found.ask(MODEL, "Translate to Chinese: cat", **THINK_OFF) == "猫"
    assert [*found.stream(MODEL, "Translate to Chinese: cat", **THINK_OFF)]
    chat = found.chat_session(MODEL, **THINK_OFF)
    chat.ask("你好，我叫小明。")
    assert "小明" in chat.ask("我叫什么名字？")
    tokens = found.tokens(MODEL, "天空", special=False)
    assert found.detokenize(MODEL, tokens) == "天空"
