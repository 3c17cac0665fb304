"""Where images stand in a prompt: ``[img-N]``, N counting over the whole prompt."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.api.messages import Message
from ollama_nb.template.renderers.spelling import SPACE

_APART = (*SPACE, "\ufffd")
"""What a text may begin with right behind a marker."""


class Images:
    """Numbers the images of one prompt, in the order in which their messages are written."""

    def __init__(self) -> None:
        self._count = 0

    def skip(self, message: Message) -> None:
        """Count the images of a message that shows none."""
        self._count += len(message.images)

    def tagged(self, message: Message, content: str | None = None) -> str:
        """The content (the message's own if None) with a marker per image: in the place of an ``[img]``, else in front.

        Content that has numbered markers already is left alone.
        """
        content = message.content if content is None else content
        first = self._count
        self.skip(message)
        if "[img-" in content:
            return content
        front = ""
        for number in range(first, self._count):
            if "[img]" in content:
                content = content.replace("[img]", f"[img-{number}]", 1)
            else:
                front += f"[img-{number}]"
        gap = " " if front and content and not content.startswith(_APART) else ""
        return front + gap + content


def tagged(messages: Sequence[Message]) -> list[str]:
    """The contents of all messages, their images marked."""
    images = Images()
    return [images.tagged(message) for message in messages]
