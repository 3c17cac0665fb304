"""Servers to measure: ours, and llama-server and ollama by their paths. All over HTTP, with the same model file.

Each starts on a free loopback port with an empty home, and is stopped at the end of its block.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams import Ask
from support.servers import RunningServer, clean_env, descendants, free_port, standalone, started, until, until_answers

from ollama_nb.client.client import Client
from ollama_nb.client.files import file_digest, upload

NAME, OURS = "bench", "ours"
Schema = Mapping[str, Any]
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 7}


@dataclass(frozen=True, slots=True)
class Stage:
    """The configuration of a server. ``context`` is in tokens per slot."""

    gguf: Path
    slots: int
    context: int
    threads: int


class Server(ABC):
    """A running server, which loads the model on the first request."""

    def __init__(self, name: str, running: RunningServer, stage: Stage) -> None:
        self.name, self.running, self.stage = name, running, stage

    @abstractmethod
    def generate(
        self, prompt: str, tokens: int, *, sampled: bool = False, schema: Schema | None = None, drafts: bool = False
    ) -> Ask:
        """Continue a raw prompt by ``tokens`` tokens, greedily or ``sampled``; ``drafts`` if it supports them."""

    @abstractmethod
    def chat(self, messages: list[dict[str, str]], tokens: int) -> Ask:
        """Reply to a conversation, greedily, with at most ``tokens`` tokens."""

    def memory(self) -> int:
        """Memory of the server and its descendants in bytes; shared pages count once."""
        pids = {self.running.pid, *descendants(self.running.pid)}
        return sum(_proportional_bytes(pid) for pid in pids)


class Native(Server):
    """Ollama's own API: our server, and Ollama's."""

    def generate(
        self, prompt: str, tokens: int, *, sampled: bool = False, schema: Schema | None = None, drafts: bool = False
    ) -> Ask:
        body = {"model": NAME, "prompt": prompt, "raw": True, "keep_alive": -1, "options": self._options(tokens)}
        body["options"].update(SAMPLED if sampled else {"temperature": 0})
        if self.name == OURS and not drafts:
            body["options"]["draft_num_predict"] = 0
        if schema:
            body["format"] = schema
        return Ask(self.running.url, "/api/generate", body, _read_native_text)

    def chat(self, messages: list[dict[str, str]], tokens: int) -> Ask:
        options = {**self._options(tokens), "temperature": 0}
        body = {"model": NAME, "messages": messages, "keep_alive": -1, "options": options}
        return Ask(self.running.url, "/api/chat", body, _read_native_message)

    def _options(self, tokens: int) -> dict[str, Any]:
        return {"num_predict": tokens, "num_thread": self.stage.threads, "num_ctx": self.stage.context}


class LlamaServer(Server):
    """llama.cpp's server: its own API for text, the OpenAI-compatible one for chat."""

    def generate(
        self, prompt: str, tokens: int, *, sampled: bool = False, schema: Schema | None = None, drafts: bool = False
    ) -> Ask:
        body = {"prompt": prompt, "n_predict": tokens, "stream": True, "cache_prompt": True}
        body.update({**SAMPLED, "min_p": 0.0} if sampled else {"temperature": 0})
        if schema:
            body["json_schema"] = schema
        else:
            body["ignore_eos"] = True
        return Ask(self.running.url, "/completion", body, _read_completion)

    def chat(self, messages: list[dict[str, str]], tokens: int) -> Ask:
        body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True, "cache_prompt": True}
        return Ask(self.running.url, "/v1/chat/completions", body, _read_openai)


@contextlib.contextmanager
def ours(stage: Stage, *, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Our standalone server, the file imported into its own store."""
    with tempfile.TemporaryDirectory() as home, our_server(Path(home), stage, env=env) as server:
        import_model(server.running.url, stage.gguf)
        yield server


@contextlib.contextmanager
def our_server(home: Path, stage: Stage, *, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Our standalone server on a home that may contain models."""
    settings = {"OLLAMA_NUM_PARALLEL": str(stage.slots), "OLLAMA_CONTEXT_LENGTH": str(stage.context), **(env or {})}
    with standalone(home, env=settings) as running:
        yield Native(OURS, running, stage)


@contextlib.contextmanager
def llama_server(program: str, stage: Stage) -> Iterator[Server]:
    """llama-server with the given threads, slots and context, otherwise with its defaults."""
    port = free_port()
    command = [program, "-m", str(stage.gguf), "--host", "127.0.0.1", "--port", str(port),
               "-t", str(stage.threads), "-np", str(stage.slots), "-c", str(stage.slots * stage.context)]  # fmt: skip
    with tempfile.TemporaryDirectory() as home, started(command, Path(home), clean_env(Path(home))) as (process, log):
        running = RunningServer(f"http://127.0.0.1:{port}", process, Path(home), log)
        until(running, lambda: _healthy(running.url))
        yield LlamaServer("llama-server", running, stage)


@contextlib.contextmanager
def ollama(program: str, stage: Stage) -> Iterator[Server]:
    """A stock Ollama, the file imported into its own store."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        env = clean_env(home, OLLAMA_HOST=address, OLLAMA_NUM_PARALLEL=str(stage.slots),
                        OLLAMA_CONTEXT_LENGTH=str(stage.context))  # fmt: skip
        with started([program, "serve"], home, env) as (process, log):
            running = RunningServer(f"http://{address}", process, home, log)
            until_answers(running, f"{running.url}/api/version")
            import_model(running.url, stage.gguf)
            yield Native("ollama", running, stage)


def import_model(url: str, gguf: Path) -> None:
    """Import a file into a server's store through its API, under the name that the lines use."""
    client = Client(url)
    digest = file_digest(gguf)
    upload(client, gguf, digest, lambda done, total: None)
    for _ in client.create(NAME, files={gguf.name: digest}):
        pass


def llama_bench(program: str, gguf: Path, threads: int, tokens: int) -> float:
    """Tokens per second of greedy decoding, as llama.cpp's own benchmark measures it."""
    command = [program, "-m", str(gguf), "-t", str(threads), "-p", "0", "-n", str(tokens), "-r", "1", "-o", "json"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(result.stdout)[0]["avg_ts"])


def bare_decode(gguf: Path, threads: int, tokens: int, rows: int = 1) -> float:
    """Tokens per second of decode calls with nothing around them, in a process of its own."""
    script = Path(__file__).with_name("bare_decode.py")
    command = [sys.executable, str(script), str(gguf), str(threads), str(tokens), str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _healthy(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except OSError:  # HTTP errors included: 503 while the model loads
        return False
    return True


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _read_native_text(line: dict[str, Any]) -> tuple[str, int]:
    return line.get("response", ""), line.get("eval_count", 0)


def _read_native_message(line: dict[str, Any]) -> tuple[str, int]:
    return line.get("message", {}).get("content", ""), line.get("eval_count", 0)


def _read_completion(line: dict[str, Any]) -> tuple[str, int]:
    return line.get("content", ""), line.get("tokens_predicted", 0) if line.get("stop") else 0


def _read_openai(line: dict[str, Any]) -> tuple[str, int]:
    choices = line.get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or "", line.get("timings", {}).get("predicted_n", 0)
