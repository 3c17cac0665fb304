"""The state that the magics of one kernel share: server, defaults, and conversations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell

from ollama_nb.api.names import ModelName
from ollama_nb.client.conversation import Conversation
from ollama_nb.errors import InvalidName
from ollama_nb.notebook.display import Screen, screen_for
from ollama_nb.settings import EnvironmentChanges

if TYPE_CHECKING:
    from ollama_nb.client.client import Client


@dataclass(frozen=True, slots=True)
class Defaults:
    """The values of ``%config OllamaMagics``. An empty one leaves the choice to the server."""

    model: str = ""
    system: str = ""
    think: str = ""
    keep_alive: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = True


class MagicsSession:
    """The state of the magics. ``connect`` is called by each command, because servers start and stop.

    ``find`` is for what no command asked for, such as completions: it never starts a server.
    """

    def __init__(
        self, shell: InteractiveShell, connect: Callable[[], Client], find: Callable[[], Client] | None = None
    ) -> None:
        self.shell, self.connect, self.find = shell, connect, find or connect
        self.defaults = Defaults()
        self.last_model = ""
        self.environment = EnvironmentChanges(os.environ)
        self.asked: tuple[str, ...] = ()
        """The models that the running command names; a similar name is suggested for one that does not exist."""
        self._chats: dict[tuple[str, str], Conversation] = {}

    @property
    def model(self) -> str:
        """The model of a command that names none: the default model, otherwise the last one used."""
        return self.defaults.model or self.last_model

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables of the notebook."""
        names: dict[str, Any] = self.shell.user_ns
        return names

    def keep(self, names: Iterable[str | None], value: Any) -> None:
        """Assign ``value`` to notebook variables; None among ``names`` is skipped."""
        self.shell.user_ns.update({name: value for name in names if name})

    def screen(self) -> Screen:
        """A new output of the running cell."""
        return screen_for(self.shell, live=self.defaults.stream)

    def chat(self, model: str, name: str) -> Conversation:
        """The conversation with that model under that name; a new one at first."""
        try:
            key = ModelName.parse(model).key
        except InvalidName:
            key = model
        return self._chats.setdefault((key, name), Conversation())
