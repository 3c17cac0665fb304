"""A conversation's state: the model, what was said, how the next answer is asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_nb.api.names import ModelName
from ollama_nb.cli.answer import Printer, show_answer, tell_end, waiting
from ollama_nb.cli.attach import takes_files
from ollama_nb.cli.transfer import with_status
from ollama_nb.client.client import Client
from ollama_nb.errors import BadRequest, InvalidName, InvalidThink, OllamaError, ThinkingUnsupported

Message = dict[str, Any]


@dataclass
class Talk:
    """``think`` None: left to the model; ``think_chosen``: the user said it, so a new model does not change it.

    ``stored`` are the messages that the model itself begins with; the server puts them in front.
    """

    client: Client
    model: str
    messages: list[Message] = field(default_factory=list)
    stored: list[Message] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    format: Any = None
    think: bool | str | None = None
    think_chosen: bool = False
    keep_alive: str = ""
    verbose: bool = False
    wordwrap: bool = True
    hide_thinking: bool = False
    takes_files: bool = False
    parent: str = ""

    def adopt(self, model: str, info: Mapping[str, Any]) -> None:
        """Go on with this model, as ``/api/show`` describes it."""
        self.model = model
        self.stored = [*(info.get("messages") or ())]
        self.takes_files = takes_files(info)
        self.parent = str((info.get("details") or {}).get("parent_model") or "")
        if not self.think_chosen:
            self.think = True if "thinking" in (info.get("capabilities") or ()) else None

    def preload(self) -> None:
        """Load the model now; what it cannot do fails here, before the first question."""
        with waiting():
            self.client.generate(self.model, stream=False, **self._manner())

    def replay(self) -> None:
        """Show the messages that the model begins with."""
        for message in self.stored:
            if message.get("role") == "user":
                print(f">>> {message.get('content', '')}")
            elif message.get("role") == "assistant":
                printer = Printer(wordwrap=self.wordwrap)
                printer.say(str(message.get("content", "")))
                sys.stdout.write("\n\n")

    def ask(self, text: str, images: list[str]) -> None:
        """Say something and print the answer. When that is interrupted, only the question is remembered."""
        self.messages.append({"role": "user", "content": text, **({"images": images} if images else {})})
        fields = {**self._manner(), **({"options": self.options} if self.options else {})}
        if self.format is not None:
            fields["format"] = self.format
        printer = Printer(wordwrap=self.wordwrap, hide_thinking=self.hide_thinking)
        with waiting() as spinner, with_status(lambda: self.client.chat(self.model, self.messages, **fields)) as lines:
            reply = show_answer(lines, printer, spinner)
        sys.stdout.write("\n\n")
        sys.stdout.flush()
        tell_end(reply.final, verbose=self.verbose)
        answer = {"role": "assistant", "content": reply.content}
        self.messages.append({**answer, "thinking": reply.thinking} if reply.thinking else answer)

    def set_system(self, text: str) -> None:
        """A new system message; it replaces one that stands last."""
        self.system = text
        message = {"role": "system", "content": text}
        if self.messages and self.messages[-1]["role"] == "system":
            self.messages[-1] = message
        else:
            self.messages.append(message)

    def clear(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def show(self) -> dict[str, Any]:
        """The model as this conversation has changed it."""
        return self.client.show(self.model, system=self.system, options=self.options)

    def save(self, name: str) -> None:
        """Make a model of this conversation."""
        fields = {
            "from": self.parent if _is_name(self.parent) else self.model,
            "system": self.system,
            "parameters": self.options,
            "messages": [*self.stored, *self.messages],
        }
        with self.client.create(name, **{key: value for key, value in fields.items() if value}) as lines:
            for _ in lines:
                pass

    def is_about_thinking(self, error: OllamaError) -> bool:
        """Whether the server refused a request for its ``think``. A real Ollama sends only the status 400."""
        if isinstance(error, ThinkingUnsupported | InvalidThink):
            return True
        return type(error) is BadRequest and self.think is not None

    def _manner(self) -> dict[str, Any]:
        manner: dict[str, Any] = {} if self.think is None else {"think": self.think}
        return {**manner, **({"keep_alive": self.keep_alive} if self.keep_alive else {})}


def _is_name(text: str) -> bool:
    try:
        ModelName.parse(text)
    except InvalidName:
        return False
    return True
