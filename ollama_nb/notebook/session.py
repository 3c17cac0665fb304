"""What a kernel remembers between cells: where it runs, and the conversations it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell

from ollama_nb.api.names import ModelName
from ollama_nb.errors import InvalidName

if TYPE_CHECKING:
    from ollama_nb.client.client import Client


@dataclass(slots=True)
class Chat:
    """One conversation. ``system`` stands before ``messages`` in every request."""

    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)

    def with_message(self, text: str) -> list[dict[str, Any]]:
        """What to send to go on with ``text``."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages, {"role": "user", "content": text}]

    def add(self, text: str, answer: str, thinking: str) -> None:
        reply = {"role": "assistant", "content": answer}
        if thinking:
            reply["thinking"] = thinking
        self.messages += [{"role": "user", "content": text}, reply]


class Session:
    """What the magics know. ``connect`` finds a server, anew for each command, because servers come and go."""

    def __init__(self, shell: InteractiveShell, connect: Callable[[], Client]) -> None:
        self.shell, self.connect = shell, connect
        self._chats: dict[tuple[str, str], Chat] = {}

    @property
    def variables(self) -> Mapping[str, Any]:
        names: dict[str, Any] = self.shell.user_ns
        return names

    def keep(self, name: str, value: Any) -> None:
        """Make ``value`` a variable of the notebook."""
        self.shell.user_ns[name] = value

    def chat(self, model: str, name: str) -> Chat:
        """The conversation with that model under that name; a new one at first."""
        try:
            key = ModelName.parse(model).key
        except InvalidName:
            key = model
        return self._chats.setdefault((key, name), Chat())
