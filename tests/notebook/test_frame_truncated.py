"""Texts that are longer than an embedding model reads, in Python, tables, the command and the magic."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import httpx
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.clients import create_model
from support.servers import RunningServer

from ollama_nb.client.aio import AsyncOllama
from ollama_nb.client.client import Client
from ollama_nb.client.ollama import Ollama, TextsTruncated
from ollama_nb.errors import ContextOverflow
from ollama_nb.notebook.magics import register

pytestmark = pytest.mark.model
MODEL = "minilm"
FITS, LONG = "cat " * 510, "cat " * 511  # with [CLS] and [SEP]: 512 tokens, the limit, and 513


@pytest.fixture
def client(real_server: RunningServer, home: Path, models: Path) -> Client:
    with httpx.Client(base_url=real_server.url, timeout=120, trust_env=False) as http:
        create_model(http, MODEL, (models / "all-MiniLM-L6-v2-q8_0.gguf").read_bytes())
    return Client(real_server.url)


def test_python_warns_once_and_names_the_texts(client: Client) -> None:
    ollama = Ollama(client)
    texts = [FITS, LONG, "a", LONG]
    calls: tuple[Callable[[], object], ...] = (
        lambda: ollama.embed(MODEL, texts, on_overflow="truncate"),
        lambda: asyncio.run(awaited()),
        lambda: ollama.rerank(MODEL, "a", texts, on_overflow="truncate"),
    )

    async def awaited() -> None:
        await AsyncOllama(ollama).embed(MODEL, texts, on_overflow="truncate")

    for call in calls:
        with pytest.warns(TextsTruncated) as caught:
            call()
        (warning,) = caught
        assert warning.filename == __file__
        assert str(warning.message).startswith("2 of 4 texts were cut: ")
        assert "only the first 512 tokens were used" in str(warning.message)
    for refused in (lambda: ollama.embed(MODEL, texts), lambda: ollama.rerank(MODEL, "a", texts)):
        with pytest.raises(ContextOverflow):
            refused()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ollama.embed(MODEL, [FITS], on_overflow="truncate").shape == (1, 384)


def test_tables_warn_once_with_the_labels_of_the_rows(client: Client) -> None:
    texts = pd.Series([FITS, LONG, None, LONG, "a"], index=[*"pqrst"])
    calls: tuple[Callable[[], object], ...] = (
        lambda: texts.ollama.embed(MODEL, on_overflow="truncate", client=client),
        lambda: texts.ollama.embed(MODEL, on_overflow="truncate", client=client),  # from the ledger
        lambda: texts.ollama.similar(MODEL, "a", on_overflow="truncate", client=client),
        lambda: texts.ollama.rerank(MODEL, "a", on_overflow="truncate", client=client),
    )
    for call in calls:
        with pytest.warns(TextsTruncated) as caught:
            call()
        (warning,) = caught
        assert warning.filename == __file__
        assert str(warning.message).startswith("2 texts are longer than the model reads and were cut: row 'q', 's';")
    with pytest.raises(ContextOverflow, match="row 'q'"):
        texts.ollama.rerank(MODEL, "a", client=client)


def test_the_command_and_the_magic_warn(
    client: Client, shell: InteractiveShell, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environment = {**os.environ, "OLLAMA_HOST": client.url}
    done = subprocess.run(
        [sys.executable, "-m", "ollama_nb.cli.main", "run", MODEL],
        input=LONG,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stderr.startswith("warning: input 0: only the first 512 tokens were used;")
    register(shell, lambda: client)
    with pytest.warns(TextsTruncated, match="1 of 1 texts were cut"):
        shell.run_line_magic("ollama", f"embed --truncate {MODEL} {LONG}")
