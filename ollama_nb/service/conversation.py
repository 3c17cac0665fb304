"""From a request and what a model stores to the messages that the template sees."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace

from ollama_nb import families
from ollama_nb.api.chat import GenerateRequest
from ollama_nb.api.messages import Message
from ollama_nb.api.models import Model

ROLES = ("system", "user", "assistant", "tool")
_THINK_BLOCK = re.compile(r"<think>.*?</think>\n*", re.DOTALL)


def chat_messages(model: Model, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The model's stored messages, then the request's; the model's system text in front of all.

    Only the first request message decides whether that system text is added, as in Ollama.
    """
    system = (Message("system", model.system),) if model.system and messages[0].role != "system" else ()
    return without_old_thinking(model, (*system, *model.messages, *messages))


def generate_messages(model: Model, request: GenerateRequest) -> tuple[Message, ...]:
    """System text (the request's, else the model's), stored messages unless a context continues them, the prompt."""
    text = request.system or model.system
    system = (Message("system", text),) if text else ()
    stored = model.messages if request.context is None else ()
    return without_old_thinking(model, (*system, *stored, Message("user", request.prompt, images=request.images)))


def without_old_thinking(model: Model, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Remove the think blocks of earlier turns for the families that were trained without them."""
    if not any(family.strip_old_thinking for family in families.of_model(model)):
        return messages
    last_user = max((at for at, message in enumerate(messages) if message.role == "user"), default=0)
    return tuple(
        replace(message, content=_THINK_BLOCK.sub("", message.content))
        if message.role == "assistant" and at < last_user
        else message
        for at, message in enumerate(messages)
    )


def unheard(messages: Sequence[Message], prompt: str) -> tuple[str, ...]:
    """A warning for each message whose role the template has no place for: it is not in the prompt that came of it.

    Templates decide about roles, and some know more than the usual ones, so none is refused.
    """
    return tuple(
        f'messages[{at}] was left out: the template of this model has no place for the role "{message.role[:64]}"'
        + "".join(f', did you mean "{near}"?' for near in difflib.get_close_matches(message.role[:64], ROLES, n=1))
        for at, message in enumerate(messages)
        if message.role not in ROLES and message.content.strip() not in prompt
    )


def cuts(messages: Sequence[Message]) -> list[int]:
    """How many of the oldest messages may be dropped, fewest first.

    The last message always stays, and a tool's answer never outlives the call that it answers.
    """
    return [at for at in range(1, len(messages)) if messages[at].role != "tool"]


def really_dropped(messages: Sequence[Message], cut: int) -> int:
    """Messages that a cut loses: system messages before it are kept."""
    return sum(message.role != "system" for message in messages[:cut])
