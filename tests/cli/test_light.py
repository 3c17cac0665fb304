"""``ollama list`` imports no heavy package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.fake_servers import ScriptedServer, ok

LIGHT = """
import sys
from ollama_nb.cli.main import main
main(["list"])
heavy = {"llama_cpp", "pandas", "ipywidgets", "httpx", "IPython", "tornado", "numpy", "prompt_toolkit", "rich",
         "jinja2", "msgspec", "pydantic", "asyncio"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_list_loads_nothing_heavy(server: ScriptedServer, home: Path) -> None:
    server.routes["GET /api/tags"] = ok({"models": []})
    env = {**os.environ, "OLLAMA_HOST": server.url, "HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", LIGHT], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "NAME    ID    SIZE    MODIFIED \n[]\n"
