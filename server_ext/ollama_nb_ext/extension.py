"""The extension's lifecycle in a Jupyter server: routes first, service and exports once the port is known.

This process parses nothing with native code and renders no template; models run in child processes.
"""

from __future__ import annotations

import atexit
import os
import secrets
from pathlib import Path
from typing import Any, ClassVar

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from tornado.httpserver import HTTPServer
from traitlets import Bool, Int

from ollama_nb import runtime
from ollama_nb.errors import OllamaError
from ollama_nb.server.access import Keys
from ollama_nb.server.dialects.openai.batches import OpenAIBatches
from ollama_nb.server.handler import SETTING
from ollama_nb.server.neighbours import Neighbours
from ollama_nb.server.routes import url_specs
from ollama_nb.server.standalone import addresses, bind, listen
from ollama_nb.server.state import ServerState
from ollama_nb.service.service import Service
from ollama_nb.settings import Host, Settings
from ollama_nb_ext.activity import ActivityReporter
from ollama_nb_ext.auth import KEYS, ORIGINS, JupyterOllamaHandler, own_origins
from ollama_nb_ext.exports import Exports, own_address

PREFIX = "/ollama"
DRAIN_SECONDS = 1.0


class OllamaExtension(ExtensionApp):
    """Serves Ollama's API and exports its address to this server's kernels and terminals."""

    name = "ollama_nb_ext"
    load_other_extensions = True
    open_port = Int(
        0,
        help="""A loopback port on which the API is also served without a key, for tools that do not support keys;
        11434 is their default. Every user of this machine can use it. 0: no such port.""",
    ).tag(config=True)

    export_openai = Bool(
        False,
        help="""Whether kernels and terminals get OPENAI_BASE_URL and OPENAI_API_KEY for this server. Off by default:
        people who set their own key in a notebook expect that it reaches OpenAI. Values that are set already stay.""",
    ).tag(config=True)

    make_service: ClassVar[Any] = Service

    def initialize_settings(self) -> None:
        self._config = config = Settings.from_env()
        self.key = secrets.token_urlsafe(32)
        self.state = ServerState(type(self).make_service(config))
        self._origins = config.origins
        self._exports = Exports(os.environ)
        self._exports.apply_folders()
        self._activity = ActivityReporter(self.state, self.settings["last_activity_times"])
        self._listeners: list[HTTPServer] = []
        self._file: Path | None = None
        self.settings.update({SETTING: self.state, KEYS: Keys(self.key), ORIGINS: own_origins(config.origins)})

    def initialize_handlers(self) -> None:
        self.handlers.extend(url_specs(PREFIX, JupyterOllamaHandler))

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Start the service. Port, address and certificate of the Jupyter server are final now."""
        self._activity.start()
        await self.state.service.start()
        self.state.service.batches.start(OpenAIBatches(self.state.service))
        if self._config.neighbours:
            self.state.neighbours = Neighbours(self._config.home, Path(serverapp.runtime_dir))
        url = own_address(serverapp, PREFIX) or self._listen(Host(host="127.0.0.1", port=0), Keys(self.key))
        if self.open_port:
            try:
                self._listen(Host(host="127.0.0.1", port=self.open_port), Keys())
            except OllamaError as error:
                self.log.warning("ollama-nb: open_port: %s", error.message)
        self._write_runtime_file(Path(serverapp.runtime_dir), url)
        if not self._exports.apply(url, self.key):
            self.log.info(
                "ollama-nb: OLLAMA_HOST=%s is set already, kernels use that server", os.environ["OLLAMA_HOST"]
            )
        if self.export_openai and not self._exports.apply_openai(url, self.key):
            self.log.warning("ollama-nb: export_openai: OPENAI_BASE_URL or OPENAI_API_KEY is set already and stays")

    async def stop_extension(self) -> None:
        """End all child processes; remove the runtime file and the exports."""
        self._exports.undo()
        self._activity.stop()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            atexit.unregister(self._file.unlink)
        for server in self._listeners:
            server.stop()
        await self.state.drain(DRAIN_SECONDS)
        for server in self._listeners:
            await server.close_all_connections()
        await self.state.service.close()

    def current_activity(self) -> dict[str, int] | None:
        """Called by Jupyter before it ends an idle server: the number of requests that do work."""
        return {"requests": self.state.working} if self.state.working else None

    def _listen(self, host: Host, keys: Keys) -> str:
        sockets = bind(host)
        self._listeners.append(listen(self.state, sockets, keys=keys, origins=self._origins))
        return f"http://{addresses(sockets)[0]}"

    def _write_runtime_file(self, folder: Path, url: str) -> None:
        file = runtime.jupyter_file(folder, os.getpid())
        try:
            runtime.write(file, url, self.key)
        except OllamaError as error:
            self.log.warning("ollama-nb: terminals and editors cannot find this server: %s", error.message)
        else:
            self._file = file
            # An interrupted Jupyter server without a terminal ends without stopping its extensions.
            atexit.register(file.unlink, missing_ok=True)
