"""A real kernel, server and model: the outputs of cells, and interrupts."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from support.aio import in_loop
from support.servers import clean_env
from support.service_harness import MODELS

from ollama_nb.server.access import Keys
from ollama_nb.server.standalone import bind, listen
from ollama_nb.server.state import ServerState
from ollama_nb.service.service import Service
from ollama_nb.settings import Host, Settings

pytestmark = pytest.mark.model

ENDLESS = (
    """--num-predict -1 --temperature 2 --format '{"type": "array", "items": {"enum": [0, 1]}, "minItems": 3000}'"""
)
"""Options for an answer of thousands of tokens."""


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Service, str]]:
    """A service that this test can inspect, and its address."""
    service = Service(Settings(models=folder / "models", home=folder / "nb"))
    await service.start()
    sockets = bind(Host.parse("127.0.0.1:0"))
    state = ServerState(service)
    server = listen(state, sockets, keys=Keys())
    try:
        yield service, f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()
        await state.drain(5)
        await service.close()


@dataclass
class Cell:
    """What came of running a cell: outputs in order (updated ones in place), and how it ended."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)

    def take(self, kind: str, content: dict[str, Any]) -> None:
        shown = content.get("transient", {}).get("display_id")
        if kind == "update_display_data":
            at = [output.get("transient", {}).get("display_id") for output in self.outputs].index(shown)
            self.outputs[at] = content
        elif kind in ("display_data", "execute_result", "stream", "error"):
            self.outputs.append(content)

    def plain(self) -> str:
        return "".join(str(o.get("text") or o.get("data", {}).get("text/plain", "")) for o in self.outputs)


class Kernel:
    def __init__(self, manager: AsyncKernelManager, client: AsyncKernelClient) -> None:
        self.manager, self._client = manager, client

    async def run(self, code: str, watch: Callable[[Cell], Any] = lambda cell: None) -> Cell:
        """Run a cell; ``watch`` is called after each of its outputs and may return an awaitable."""
        cell = Cell()
        request = self._client.execute(code)
        while True:
            message = await self._client.get_iopub_msg(timeout=240)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
            cell.take(message["msg_type"], message["content"])
            if (waited := watch(cell)) is not None:
                await waited
        while not cell.reply:
            message = await self._client.get_shell_msg(timeout=240)
            if message["parent_header"].get("msg_id") == request:
                cell.reply = message["content"]
        return cell


@asynccontextmanager
async def kernel(folder: Path, url: str) -> AsyncIterator[Kernel]:
    manager = AsyncKernelManager(kernel_name="python3")
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    await manager.start_kernel(env=clean_env(folder, OLLAMA_HOST=url), cwd=str(folder))
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=240)
        started = Kernel(manager, client)
        assert (await started.run("%load_ext ollama_nb")).reply["status"] == "ok"
        yield started
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


@in_loop
async def test_interrupting_a_chat_frees_its_slot(tmp_path: Path) -> None:
    """F19: the request is cancelled, and the text so far stays in the cell."""
    async with served(tmp_path) as (service, url), kernel(tmp_path, url) as notebook:
        made = await notebook.run(f"%%ollama create tiny\nFROM {MODELS / 'stories260K-q8_0.gguf'}\n")
        assert made.plain().startswith("created `tiny`"), made
        stopped = False

        def stop_soon(cell: Cell) -> Any:
            nonlocal stopped
            if len(cell.plain()) < 50 or stopped:
                return None
            stopped = True
            assert [entry.model for entry in service.requests.queue()] == ["tiny"]
            return notebook.manager.interrupt_kernel()

        cell = await notebook.run(f"%%ollama chat tiny {ENDLESS}\nOnce there was a dog and a cat", stop_soon)
        assert (cell.reply["status"], cell.reply["ename"]) == ("error", "Interrupted")
        answer, error = cell.outputs
        assert answer["data"]["text/plain"].endswith("[interrupted]")
        assert error["traceback"] == ["Interrupted. The answer so far is in `_ollama`."]
        while True:  # The cancel is on its way: the runner sees it between two steps.
            ((_, counters),) = await service.runner_stats()
            if not (service.requests.queue() or counters["busy_slots"] or counters["waiting"]):
                break
        kept = await notebook.run("print(_ollama.reason, len(_ollama) > 20)")
        assert kept.plain() == "interrupted True\n"
        again = await notebook.run("%ollama run tiny --num-predict 5 Once")
        assert again.reply["status"] == "ok"


@in_loop
async def test_the_bundled_model_in_a_cell(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, url), kernel(tmp_path, url) as notebook:
        cell = await notebook.run("%ollama run sprout --think=false 你好！")
        assert cell.plain() == "你好！有什么可以帮你的吗？"
        assert "tok/s" in cell.outputs[0]["data"]["text/html"]
        cell = await notebook.run("%ollama run nosuch hi")
        assert cell.reply["status"] == "error"
        assert "UsageError: model 'nosuch' not found" in cell.plain()
        assert "Traceback" not in cell.plain()
        loaded = await notebook.run(
            "import json, sys\nheavy = 'llama_cpp', 'pandas', 'ipywidgets', 'anywidget', 'numpy', 'msgspec', 'httpx'\n"
            "print(json.dumps([m for m in heavy if m in sys.modules]))"
        )
        assert json.loads(loaded.plain()) == []


@in_loop
async def test_errors_code_and_lists_in_a_kernel(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, url), kernel(tmp_path, url) as notebook:
        await notebook.run("def half(x):\n    return x / 0\nhalf(3)")
        explained = await notebook.run("%ollama explain sprout --think=false --num-predict 30")
        assert explained.reply["status"] == "ok" and explained.plain().strip()
        asked = await notebook.run(
            "import sys\nfrom ollama_nb.notebook.assist import describe_error\nprint(describe_error(sys.last_value))"
        )
        assert "```python\ndef half(x):\n    return x / 0\nhalf(3)\n```" in asked.plain()
        assert "ZeroDivisionError: division by zero" in asked.plain() and "site-packages" not in asked.plain()
        coded = await notebook.run("_ollama = '```python\\nprint(1)\\n```'\n%ollama code")
        (payload,) = coded.reply["payload"]
        assert (payload["source"], payload["text"], payload["replace"]) == ("set_next_input", "print(1)", False)
        listed = await notebook.run("%ollama list")
        assert listed.outputs[0]["data"]["text/html"].startswith("<table><thead><tr><th")
        assert listed.plain().startswith("NAME             ID              SIZE")
        sizes = await notebook.run("models = %ollama list\nprint(models.sort_values('size')['name'].tolist())")
        assert sizes.plain() == "['sprout:latest']\n"
