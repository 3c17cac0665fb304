"""Go templates of well-known chat formats, and the recognition of these formats in the chat templates of GGUF files.

A format is recognised by the markers of its turns, and only if the Go template here supports everything that the GGUF's
own template does. Templates with tools, thinking or images are rendered as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Builtin:
    """A known chat format. ``text`` is its Go template, ``parameters`` are its options: the stop strings."""

    name: str
    text: str
    parameters: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Format:
    """How a format is recognised: a chat template of ``shortest`` to ``longest`` characters contains all ``marks``.

    ``skills``: the chat template may contain words that indicate other capabilities.
    """

    name: str
    marks: tuple[str, ...]
    longest: int
    shortest: int = 0
    skills: bool = False


_SKILLS = ("tool", "think", "reasoning", "image", "<function", "documents")

_FORMATS = (
    # Llama 3.1 itself. Its Jinja template supports tools, and is preferred for that when a chat is rendered.
    _Format("llama3-instruct", ("<|eot_id|>", "custom_tools", '"26 Jul 2024"'), 4714, 4514, skills=True),
    _Format("llama3-instruct", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), 490),
    _Format("gemma3-instruct", ("<start_of_turn>", "<end_of_turn>", "first_user_prefix"), 1632, 1432, skills=True),
    _Format("gemma-instruct", ("<start_of_turn>", "<end_of_turn>"), 690),
    _Format("command-r", ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"), 1304),
    _Format("openchat", ("GPT4 Correct ", "<|end_of_turn|>"), 322),
    _Format("alfred", ("<start_user>", "<start_assistant>", "<end_message>"), 633),
    _Format("chatml", ("<|im_start|>", "<|im_end|>", "You are DBRX"), 1942, 1742, skills=True),
    _Format("chatml", ("<|im_start|>", "<|im_end|>"), 728),
    _Format("phi-3", ("<|end|>",), 369),
    _Format("zephyr", ("<|user|>", "<|assistant|>", "eos_token"), 510),
    _Format("llama2-chat", ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), 915),
    _Format("mistral-instruct", ("[INST]", "[/INST]"), 577),
    _Format("codellama-70b-instruct", ("Source: ", "Destination: ", "<step>"), 631),
    _Format("magicoder", ("@@ Instruction", "@@ Response"), 671),
    _Format("solar-instruct", ("### System:", "### User:", "### Assistant:"), 509),
    _Format("alpaca", ("### Instruction:", "### Response:"), 1141),
    _Format("starcoder2-instruct", ("### Instruction", "### Response"), 674),
    _Format("granite-instruct", ("Question:", "Answer:"), 476),
    _Format("falcon-instruct", ("User:", "Falcon:"), 456),
    _Format("chatqa", ("User: ", "Assistant:", "System: "), 790),
    _Format("chatqa", ("'User: '", "'Assistant:'"), 559),
)
"""The first format whose marks all occur is tried. The lengths are those of published templates, with a margin."""

_STOPS: Mapping[str, tuple[str, ...]] = {
    "alfred": ("<start_system>", "<end_message>", "<start_user>", "<start_assistant>"),
    "alpaca": ("### Instruction:", "### Response"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "chatqa": ("System:", "User:", "Assistant:", "<|begin_of_text|>"),
    "codellama-70b-instruct": ("Source:", "Destination:", "<step>"),
    "command-r": ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "falcon-instruct": ("User:", "Assistant:"),
    "gemma-instruct": ("<start_of_turn>", "<end_of_turn>"),
    "gemma3-instruct": ("<end_of_turn>",),
    "granite-instruct": ("System:", "Question:", "Answer:"),
    "llama2-chat": ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    "llama3-instruct": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "magicoder": ("@@ Instruction", "@@ Response"),
    "mistral-instruct": ("<|im_start|>", "<|im_end|>"),
    "openchat": ("<|end_of_turn|>",),
    "phi-3": ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
    "solar-instruct": ("### System:", "### User:", "### Assistant"),
    "starcoder2-instruct": ("### Instruction", "### Response", "<|endoftext|>"),
    "zephyr": ("<|system|>", "</s>", "<|user|>", "<|assistant|>"),
}

NAMES = frozenset(_STOPS)


@cache
def builtin(name: str) -> Builtin:
    """Return the format of that name, one of NAMES."""
    text = files(__name__).joinpath(f"{name}.gotmpl").read_text("utf-8")
    return Builtin(name, text, {"stop": _STOPS[name]})


def recognise(chat_template: str) -> Builtin | None:
    """Return the known format of a GGUF's Jinja template, or None if that template should be rendered itself."""
    form = next((form for form in _FORMATS if all(mark in chat_template for mark in form.marks)), None)
    if form is None or not form.shortest <= len(chat_template) <= form.longest:
        return None
    if not form.skills and any(word in chat_template for word in _SKILLS):
        return None
    return builtin(form.name)
