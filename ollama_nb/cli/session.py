"""The session of ``ollama run``: the model, the conversation and the settings that ``/set`` changes."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ollama_nb import disk
from ollama_nb.api.names import ModelName
from ollama_nb.cli.output import ReplyPrinter, print_end, print_reply, waiting
from ollama_nb.cli.progress import with_status
from ollama_nb.client.client import Client
from ollama_nb.client.conversation import Conversation, Message, user_message
from ollama_nb.errors import BadRequest, InvalidName, InvalidThink, OllamaError, ThinkingUnsupported


def _conversation() -> Conversation:
    """As in Ollama, system messages are part of the messages and the server's default decides what is cut."""
    return Conversation(truncate=None)


@dataclass
class ReplSession:
    """The state of an interactive session.

    ``think`` None leaves thinking to the model; ``think_chosen``: the user set it, so that another model does not
    change it. ``stored`` are the messages of the model itself, which the server puts first.
    """

    client: Client
    model: str
    conversation: Conversation = field(default_factory=_conversation)
    stored: list[Message] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    format: Any = None
    think: bool | str | None = None
    think_chosen: bool = False
    think_budget: int | None = None
    keep_alive: str = ""
    verbose: bool = False
    wordwrap: bool = True
    hide_thinking: bool = False
    takes_files: bool = False

    def adopt(self, model: str, info: Mapping[str, Any]) -> None:
        """Use another model from now on; ``info`` is its reply of ``/api/show``."""
        self.model = model
        self.stored = [*(info.get("messages") or ())]
        self.takes_files = takes_files(info)
        if not self.think_chosen:
            self.think = True if "thinking" in (info.get("capabilities") or ()) else None

    def preload(self) -> None:
        """Load the model. A setting that it does not support fails here, before the first question."""
        with waiting():
            self.client.generate(self.model, stream=False, **self._common_fields())

    def replay(self) -> None:
        """Print the messages of the model itself."""
        for message in self.stored:
            if message.get("role") == "user":
                print(f">>> {message.get('content', '')}")
            elif message.get("role") == "assistant":
                ReplyPrinter(wordwrap=self.wordwrap).write_text(str(message.get("content", "")))
                sys.stdout.write("\n\n")

    def ask(self, text: str, images: list[str]) -> None:
        """Send a message and print the reply. As in Ollama, a failed or interrupted question stays in the history."""
        question = user_message(text, images)
        fields = self._common_fields()
        if self.options:
            fields["options"] = self.options
        if self.format is not None:
            fields["format"] = self.format
        printer = ReplyPrinter(wordwrap=self.wordwrap, hide_thinking=self.hide_thinking)
        try:
            with waiting() as spinner:
                turn = with_status(lambda: self.conversation.start(self.client, self.model, question, fields=fields))
                with closing(turn):
                    done = print_reply(turn, printer, spinner)
        except BaseException:
            self.conversation.messages.append(question)
            raise
        turn.commit()
        sys.stdout.write("\n\n")
        sys.stdout.flush()
        print_end(done, verbose=self.verbose)

    def set_system(self, text: str) -> None:
        """Append a system message; directly after another one it replaces that one."""
        self.system = text
        message = {"role": "system", "content": text}
        messages = self.conversation.messages
        if messages and messages[-1]["role"] == "system":
            messages[-1] = message
        else:
            messages.append(message)

    def clear(self) -> None:
        """Remove all messages but the current system message."""
        self.conversation.messages = [{"role": "system", "content": self.system}] if self.system else []

    def show(self) -> dict[str, Any]:
        """The model's details, with the system message and options of this session."""
        return self.client.show(self.model, system=self.system, options=self.options)

    def save(self, name: str) -> None:
        """Create a model: the model of this session with its settings and the conversation.

        Ollama starts from that model's parent instead, which loses the model's own prompt, template and parameters. The
        conversation belongs to the model afterwards if ``name`` is the model of this session.
        """
        fields = {
            "from": self.model,
            "system": self.system,
            "parameters": self.options,
            "messages": [*self.stored, *self.conversation.messages],
        }
        with self.client.create(name, **{key: value for key, value in fields.items() if value}) as lines:
            for _ in lines:
                pass
        if _is_same_model(name, self.model):
            self.adopt(self.model, self.client.show(self.model))
            self.conversation.messages = []

    def load(self, model: str) -> None:
        """Use another model with a new conversation, and load it. The system message of the old one does not apply."""
        self.conversation = replace(self.conversation, messages=[])
        self.system = ""
        self.adopt(model, self.client.show(model))
        self.preload()

    def is_about_thinking(self, error: OllamaError) -> bool:
        """Whether the server refused a request for its ``think``. A real Ollama sends only the status 400."""
        if isinstance(error, ThinkingUnsupported | InvalidThink):
            return True
        return type(error) is BadRequest and self.think is not None

    def _common_fields(self) -> dict[str, Any]:
        fields = {"think": self.think, "think_budget": self.think_budget, "keep_alive": self.keep_alive or None}
        return {name: value for name, value in fields.items() if value is not None}


def _is_same_model(name: str, other: str) -> bool:
    try:
        return ModelName.parse(name).key == ModelName.parse(other).key
    except InvalidName:
        return False


# Images and sounds in a message

MAX_FILE_BYTES = 100 * 1024 * 1024
_TYPE_BYTES = 512  # from the start of a file; enough to detect its type
_PATH = re.compile(r"(?:[a-zA-Z]:)?(?:\./|/|\\)[\S\\ ]+?\.(?:jpg|jpeg|png|webp|wav)\b", re.IGNORECASE)
_ESCAPED = re.compile(r"\\([ ()\[\]{}$&;'\\*?~])")  # as terminals write a dropped file's name


def takes_files(info: Mapping[str, Any]) -> bool:
    """Whether the model that ``/api/show`` describes accepts images or sounds."""
    known = {"vision", "audio"} & {*(info.get("capabilities") or ())}
    return bool(known or info.get("projector_info") or any(".vision." in key for key in info.get("model_info") or ()))


def begins_with_path(text: str) -> bool:
    """Whether a line that begins like a slash command is a path."""
    return _PATH.match(text) is not None


def extract_files(text: str) -> tuple[str, list[str]]:
    """The text without paths of existing files, and those files in base64. Raises BadRequest for other file types."""
    files = []
    for written in dict.fromkeys(_PATH.findall(text)):
        path = Path(_ESCAPED.sub(r"\1", written))
        if not path.is_file():
            continue
        kind, data = _load_file(path)
        print(f"Added {kind} '{path}'", file=sys.stderr)
        text = text.replace(f"'{path}'", "").replace(f"'{written}'", "").replace(written, "")
        files.append(base64.b64encode(data).decode("ascii"))
    return (text.strip() if files else text), files


def _load_file(path: Path) -> tuple[str, bytes]:
    try:
        with disk.open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadRequest("file size exceeds maximum limit (100MB)")
    except OSError as error:
        raise BadRequest(f'Couldn\'t process file: "{path}: {error.strerror}"') from None
    return _detect_type(data[:_TYPE_BYTES]), data


def _detect_type(start: bytes) -> str:
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (start[:4] == b"RIFF" and start[8:14] == b"WEBPVP"):
        return "image"
    if start[:4] == b"RIFF" and start[8:12] == b"WAVE":
        return "audio"
    detected = "text/plain; charset=utf-8" if b"\0" not in start else "application/octet-stream"
    raise BadRequest(f"invalid file type: {detected}")
