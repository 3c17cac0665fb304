"""``python -m ollama_nb.server`` runs the standalone server, or with ``--background`` the background server."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys

from ollama_nb.errors import OllamaError
from ollama_nb.server.app import serve, set_up_logging
from ollama_nb.server.background import IDLE_SECONDS, serve_in_background
from ollama_nb.settings import Host, Settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ollama_nb.server", description=__doc__)
    parser.add_argument("--background", action="store_true", help="run a private server that ends when it is idle")
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds without work after which it ends")
    parser.add_argument("--host", help="address to listen on, instead of OLLAMA_HOST")
    given = parser.parse_args()
    settings = Settings.from_env()
    if given.host:
        settings = dataclasses.replace(settings, host=Host.parse(given.host))
    set_up_logging(settings)
    try:
        work = serve_in_background(settings, idle_seconds=given.idle) if given.background else serve(settings)
        asyncio.run(work)
    except OllamaError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
