"""Requests of Anthropic's API: JSON bodies of ``/v1/messages`` → the requests of :mod:`ollama_nb.api.requests`.

These functions raise BadRequest for values of the wrong type or form. What is accepted without effect gives a warning:
tools that Anthropic's servers run, and unknown blocks. ``cache_control`` gives none, because prompts are always cached.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ollama_nb.api.encode import go_quote
from ollama_nb.api.messages import ANY_TOOL_OR_NONE, Message, Think, Tool, ToolCall, ToolChoice
from ollama_nb.api.requests import ChatRequest, TokenizeRequest
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.anthropic.tools import EXECUTED_BY_SERVER, client_tool
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.values import check_schema, warn_if_empty

_WITHOUT_WARNING = frozenset({"stream", "cache_control", "service_tier"})  # read by the route, or of no effect at all
_SAMPLING = ("temperature", "top_p", "top_k")
_EFFORTS: dict[str, Think] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "max"}
_OF_BLOCKS = frozenset({"cache_control", "citations", "caller", "context", "title"})
_OF_TOOLS = frozenset(
    {"cache_control", "strict", "defer_loading", "input_examples", "allowed_callers", "eager_input_streaming"}
)
"""Fields of blocks and tools that clients send and that have no effect."""
_MERGED = ("user", "assistant", "system")  # roles whose consecutive messages are one turn


def read_message(body: Fields) -> ChatRequest:
    """The body of ``/v1/messages``."""
    model = _model(body)
    max_tokens = body.whole("max_tokens")
    if max_tokens <= 0:
        raise BadRequest("max_tokens is required and must be positive", field="max_tokens")
    options = {name: body.raw(name) for name in _SAMPLING if name in body}
    if stop := body.texts("stop_sequences"):
        options["stop"] = list(stop)
    user = body.struct("metadata", "anthropic.Metadata").text("user_id")
    request = _read_conversation(body, model)
    return replace(
        request,
        options={**options, "num_predict": max_tokens},
        user=user,
        ignored=body.ignored(_WITHOUT_WARNING),
        detailed=True,
    )


def read_count(body: Fields) -> tuple[TokenizeRequest, tuple[str, ...]]:
    """The body of ``/v1/messages/count_tokens``, and a warning for each part of it without effect."""
    chat = _read_conversation(body, _model(body))
    tools = chat.tools if chat.tool_choice.mode != "none" else ()
    request = TokenizeRequest(model=chat.model, messages=chat.messages, tools=tools, think=chat.think)
    return request, body.ignored(_WITHOUT_WARNING)


def wants_stream(body: Fields) -> bool:
    """Whether the reply is streamed; the default is one JSON object."""
    return body.flag("stream") or False


def _model(body: Fields) -> str:
    model = body.text("model")
    if not model:
        raise BadRequest("model is required", field="model")
    return model


def _read_conversation(body: Fields, model: str) -> ChatRequest:
    """The fields that decide what the prompt is."""
    items = body.structs("messages", "anthropic.MessageParam")
    if not items:
        raise BadRequest("messages is required", field="messages")
    reader = _Reader()
    system = reader.text(body, "system", "system")
    messages = [Message("system", system)] if system else []
    for at, item in enumerate(items):
        messages += reader.message(item, f"messages[{at}]")
    tools = tuple(tool for item in body.structs("tools", "anthropic.Tool") if (tool := _tool(item)))
    think, budget = _thinking(body)
    choice = body.struct("tool_choice", "anthropic.ToolChoice")
    return ChatRequest(
        model=model,
        messages=_merged(messages),
        tools=tools,
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=choice.flag("disable_parallel_tool_use") is not True,
        think=think,
        think_budget=budget,
        format=_format(body),
    )


@dataclass
class _Turn:
    """The blocks of one message, by kind."""

    texts: list[str] = field(default_factory=list)
    thinking: str = ""
    images: list[bytes] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)


class _Reader:
    """Reads the messages of a conversation, in their order."""

    def __init__(self) -> None:
        self._tool_names: dict[str, str] = {}

    def message(self, message: Fields, where: str) -> list[Message]:
        """The messages that one message stands for: tool results come first, then what remains of the turn."""
        role = message.text("role").lower()
        if role not in _MERGED:
            raise BadRequest(f'{where}.role: {go_quote(role)} is not "user" or "assistant"', field=f"{where}.role")
        turn = self._turn(message, "content", f"{where}.content")
        rest = Message(role, "".join(turn.texts), turn.thinking, tuple(turn.images), tuple(turn.calls))
        warn_if_empty(message, has_content=bool(turn.results) or rest != Message(role))
        return turn.results if turn.results and rest == Message(role) else [*turn.results, rest]

    def text(self, owner: Fields, name: str, where: str) -> str:
        """The joined text of a string or a list of blocks."""
        return "".join(self._turn(owner, name, where).texts)

    def _turn(self, owner: Fields, name: str, where: str) -> _Turn:
        """The content in the field ``name``: a text, or a list of blocks."""
        content = owner.raw(name)
        if content is None or isinstance(content, str):
            return _Turn([content or ""])
        turn = _Turn()
        for at, block in enumerate(owner.structs(name, "anthropic.ContentBlock")):
            self._read_block(block, f"{where}[{at}]", turn)
        return turn

    def _read_block(self, block: Fields, where: str, turn: _Turn) -> None:
        block.accept(_OF_BLOCKS)
        match kind := block.text("type"):
            case "text":
                turn.texts.append(block.text("text"))
            case "image":
                turn.images.append(_image(block, where))
            case "document":
                self._read_document(block, where, turn)
            case "search_result":
                found = self._turn(block, "content", f"{where}.content")
                turn.texts.append(_titled(block.text("title"), block.text("source"), "".join(found.texts)))
            case "tool_use":
                self._read_call(block, where, turn)
            case "tool_result":
                turn.results.append(self._result(block, where))
            case "thinking":
                turn.thinking = block.text("thinking")
                block.accept({"signature"})
            case "redacted_thinking":
                block.accept({"data"})  # only Anthropic can read it
            case _:
                block.warn(f"ignored block of type {go_quote(kind[:64])}")
                block.accept_all()

    def _read_document(self, block: Fields, where: str, turn: _Turn) -> None:
        source = block.struct("source", "anthropic.DocumentSource")
        source.accept({"media_type"})
        match kind := source.text("type"):
            case "text":
                inner = _Turn([source.text("data")])
            case "content":
                inner = self._turn(source, "content", f"{where}.source.content")
            case _:
                raise BadRequest(
                    f"{where}.source: documents of source type {go_quote(kind)} are not supported: send the text, with "
                    'a source of type "text"',
                    field=f"{where}.source",
                )
        turn.texts.append(_titled(block.text("title"), block.text("context"), "".join(inner.texts)))
        turn.images += inner.images

    def _read_call(self, block: Fields, where: str, turn: _Turn) -> None:
        call = ToolCall(block.text("name"), block.object("input"), block.text("id"), len(turn.calls))
        for name, value in (("id", call.id), ("name", call.name)):
            if not value:
                raise BadRequest(f"tool_use block missing required '{name}' field", field=f"{where}.{name}")
        self._tool_names[call.id] = call.name
        turn.calls.append(call)

    def _result(self, block: Fields, where: str) -> Message:
        id = block.text("tool_use_id")
        if not id:
            raise BadRequest("tool_result block missing required 'tool_use_id' field", field=f"{where}.tool_use_id")
        inner = self._turn(block, "content", f"{where}.content")
        failed = "Error: " if block.flag("is_error") else ""
        return Message(
            "tool",
            failed + "".join(inner.texts),
            images=tuple(inner.images),
            tool_name=self._tool_names.get(id, ""),
            tool_call_id=id,
        )


def _tool(tool: Fields) -> Tool | None:
    """A tool in the form that templates show to models; None for one that only Anthropic's servers can run."""
    tool.accept(_OF_TOOLS)
    kind, name = tool.text("type"), tool.text("name")
    if kind.startswith(EXECUTED_BY_SERVER):
        tool.warn(f"ignored tool of type {go_quote(kind[:64])}: this server does not run tools")
        tool.accept_all()
        return None
    if kind not in ("", "custom") and "input_schema" not in tool:
        tool.accept_all()
        return client_tool(kind, name)
    if not name:
        raise BadRequest("tools: a tool has no name", field="tools")
    check_schema(tool.struct("input_schema", "api.ToolFunctionParameters"))
    schema = tool.raw("input_schema") or {"type": "object", "properties": {}}
    description = tool.text("description")
    described = {"description": description} if description else {}
    return {"type": "function", "function": {"name": name, **described, "parameters": schema}}


def _thinking(body: Fields) -> tuple[Think, int | None]:
    """Whether and how much the model is to think, and the most tokens that it may take.

    The default is not to think, as in Anthropic's API and unlike Ollama: its clients take the text from the first
    block, and blocks of thinking would come before it.
    """
    thinking = body.struct("thinking", "anthropic.ThinkingConfig")
    thinking.accept({"budget_tokens", "display"})
    config = body.struct("output_config", "anthropic.OutputConfig")
    effort = config.text("effort")
    if effort and effort not in _EFFORTS:
        config.warn(f"ignored effort {go_quote(effort[:64])}: use {', '.join(_EFFORTS)}")
    match kind := thinking.text("type"):
        case "enabled":
            budget = _budget(thinking)
            return budget > 0, budget
        case "disabled":
            return False, None
        case "adaptive":
            return _EFFORTS.get(effort, True), None
    if kind:
        thinking.warn(f"ignored type {go_quote(kind[:64])}: use enabled, adaptive or disabled")
    return _EFFORTS.get(effort, False), None


def _merged(messages: list[Message]) -> tuple[Message, ...]:
    """Consecutive messages of a role as one, their texts with a blank line in between; tool results stay apart."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role and message.role in _MERGED:
            merged[-1] = _joined(merged[-1], message)
        else:
            merged.append(message)
    return tuple(merged)


def _joined(first: Message, second: Message) -> Message:
    calls = (*first.tool_calls, *second.tool_calls)
    return replace(
        first,
        content="\n\n".join(filter(None, (first.content, second.content))),
        thinking=second.thinking or first.thinking,
        images=(*first.images, *second.images),
        tool_calls=tuple(replace(call, index=at) for at, call in enumerate(calls)),
    )


def _titled(*parts: str) -> str:
    """The text of a document below its title, set off from the texts around it."""
    return "\n\n".join(filter(None, parts)) + "\n\n"


def _image(block: Fields, where: str) -> bytes:
    source = block.struct("source", "anthropic.ImageSource")
    source.accept({"media_type"})
    kind = source.text("type")
    if kind != "base64":
        text = f"invalid image source type: {kind}. Only base64 images are supported."
        raise BadRequest(text, field=f"{where}.source")
    return source.blob("data")


def _budget(thinking: Fields) -> int:
    budget = thinking.whole("budget_tokens")
    if "budget_tokens" not in thinking or budget < 0:
        text = 'thinking.budget_tokens: the type "enabled" needs a number of tokens; "adaptive" has no limit'
        raise BadRequest(text, field="thinking.budget_tokens")
    return budget


def _format(body: Fields) -> dict[str, Any] | None:
    """The JSON Schema of ``output_config.format``, or of ``output_format`` as older clients send it."""
    config = body.struct("output_config", "anthropic.OutputConfig")
    owner, name = (config, "format") if "format" in config else (body, "output_format")
    format = owner.struct(name, "anthropic.OutputFormat")
    if name not in owner:
        return None
    format.accept({"name"})
    if format.text("type") != "json_schema" or format.schema("schema") is None:
        where = "output_config.format" if owner is config else name
        text = f'{where}: expected {{"type":"json_schema","schema":{{…}}}}'
        raise BadRequest(text, field=where)
    return format.object("schema")


def _tool_choice(choice: Fields) -> ToolChoice:
    match kind := choice.text("type"):
        case "" | "auto":
            return ANY_TOOL_OR_NONE
        case "any":
            return ToolChoice("required")
        case "none":
            return ToolChoice("none")
        case "tool" if name := choice.text("name"):
            return ToolChoice("required", (name,))
        case "tool":
            raise BadRequest('tool_choice.name: the type "tool" needs the name of a tool', field="tool_choice.name")
    raise BadRequest(
        f"invalid tool_choice type {go_quote(kind)}: use auto, any, tool or none", field="tool_choice.type"
    )
