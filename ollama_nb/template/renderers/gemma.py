"""What the Gemma families share: values between quotes of their own, keys bare and sorted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.messages import ToolCall
from ollama_nb.template.renderers.schema import Function
from ollama_nb.template.renderers.spelling import by_name, go_value, whole_number


@dataclass(frozen=True, slots=True)
class Values:
    """How a family writes a value: ``quote`` on both sides of a text, ``none`` for null."""

    quote: str
    none: str

    def text(self, text: str) -> str:
        return self.quote + text + self.quote

    def texts(self, texts: list[str]) -> str:
        return "[" + ",".join(map(self.text, texts)) + "]"

    def value(self, value: Any, *, quoted_keys: bool = False) -> str:
        if value is None:
            return self.none
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool):
            return go_value(value)
        if isinstance(value, Mapping):
            return "{" + self.entries(value, quoted_keys=quoted_keys) + "}"
        if isinstance(value, (list, tuple)):
            return "[" + ",".join(self.value(item, quoted_keys=quoted_keys) for item in value) + "]"
        return whole_number(value)

    def entries(self, values: Mapping[str, Any], *, quoted_keys: bool = False) -> str:
        return ",".join(
            f"{self.text(key) if quoted_keys else key}:{self.value(value, quoted_keys=quoted_keys)}"
            for key, value in by_name(values)
        )

    def call(self, call: ToolCall) -> str:
        return f"call:{call.name}{{{self.entries(call.arguments)}}}"

    def declaration(self, function: Function, properties: str | None) -> str:
        """A function as the models are told of it. ``properties``: as the family writes them; None: it has none."""
        schema = function.parameters
        parts = [] if properties is None else [f"properties:{{{properties}}}"]
        if "required" in schema:
            parts.append(f"required:{self.texts(schema['required'])}")
        if schema["type"]:
            parts.append(f"type:{self.text(schema['type'].upper())}")
        has_any = schema["type"] or schema["properties"] is not None
        parameters = f",parameters:{{{','.join(parts)}}}" if has_any else ""
        return f"declaration:{function.name}{{description:{self.text(function.description)}{parameters}}}"
