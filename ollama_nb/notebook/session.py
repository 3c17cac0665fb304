"""What a kernel remembers between cells: where it runs, its defaults, and the conversations it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell

from ollama_nb.api.names import ModelName
from ollama_nb.client.conversation import Conversation
from ollama_nb.errors import InvalidName
from ollama_nb.notebook.display import Screen, screen_for

if TYPE_CHECKING:
    from ollama_nb.client.client import Client


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a command does not say it; ``%config OllamaMagics`` sets it. Empty: the server's own way."""

    model: str = ""
    system: str = ""
    think: str = ""
    keep_alive: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = True


class Session:
    """What the magics know. ``connect`` finds a server, anew for each command, because servers come and go."""

    def __init__(self, shell: InteractiveShell, connect: Callable[[], Client]) -> None:
        self.shell, self.connect = shell, connect
        self.defaults = Defaults()
        self.last_model = ""
        self._chats: dict[tuple[str, str], Conversation] = {}

    @property
    def model(self) -> str:
        """The model of a command that names none: the default one, else the one that was asked last."""
        return self.defaults.model or self.last_model

    @property
    def variables(self) -> Mapping[str, Any]:
        names: dict[str, Any] = self.shell.user_ns
        return names

    def keep(self, names: Iterable[str | None], value: Any) -> None:
        """Make ``value`` a variable of the notebook, under each of the names that there are."""
        self.shell.user_ns.update({name: value for name in names if name})

    def screen(self) -> Screen:
        """A new output of the cell that runs."""
        return screen_for(self.shell, live=self.defaults.stream)

    def chat(self, model: str, name: str) -> Conversation:
        """The conversation with that model under that name; a new one at first."""
        try:
            key = ModelName.parse(model).key
        except InvalidName:
            key = model
        return self._chats.setdefault((key, name), Conversation())
