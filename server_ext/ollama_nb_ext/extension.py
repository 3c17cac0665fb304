"""The extension's life inside a Jupyter server: routes first, service and exports once the port is known, all undone
at the end.

Rule: this process parses nothing with native code and renders no template; models live in child processes.
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
from traitlets import Int

from ollama_nb import runtime
from ollama_nb.errors import OllamaError
from ollama_nb.server.access import Keys
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
    """Serves Ollama's API and tells this server's kernels and terminals where it is."""

    name = "ollama_nb_ext"
    load_other_extensions = True
    open_port = Int(
        0,
        help="""A loopback port on which the API is served without a key as well, so that tools that know nothing of
        keys work: 11434 is where they look. Every user of this machine can use it. 0: none.""",
    ).tag(config=True)

    make_service: ClassVar[Any] = Service

    def initialize_settings(self) -> None:
        self._config = config = Settings.from_env()
        self.key = secrets.token_urlsafe(32)
        self.state = ServerState(type(self).make_service(config))
        self._origins = config.origins
        self._exports = Exports(os.environ)
        self._activity = ActivityReporter(self.state, self.settings["last_activity_times"])
        self._listeners: list[HTTPServer] = []
        self._file: Path | None = None
        self.settings.update({SETTING: self.state, KEYS: Keys(self.key), ORIGINS: own_origins(config.origins)})

    def initialize_handlers(self) -> None:
        self.handlers.extend(url_specs(PREFIX, JupyterOllamaHandler))

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Port, address and certificate of the Jupyter server are final now."""
        self._activity.start()
        await self.state.service.start()
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
            self.log.info("ollama-nb: kernels use OLLAMA_HOST=%s, which is set already", os.environ["OLLAMA_HOST"])

    async def stop_extension(self) -> None:
        """End every child process; nothing that was written or exported stays."""
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
        """Keeps a server that ends when nothing happens alive while models answer."""
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
            self.log.warning("ollama-nb: terminals and editors will not find this server: %s", error.message)
        else:
            self._file = file
            # A Jupyter server without a terminal that is interrupted ends without stopping its extensions.
            atexit.register(file.unlink, missing_ok=True)
