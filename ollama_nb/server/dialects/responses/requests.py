"""Requests of the Responses API: JSON → ``ResponsesRequest``, from which a ``ChatRequest`` is made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollama_nb.api.encode import go_quote
from ollama_nb.api.messages import Tool, ToolChoice
from ollama_nb.api.requests import ChatRequest, Format
from ollama_nb.errors import BadRequest
from ollama_nb.server import limits
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.responses.items import CUSTOM_ARGUMENT, conversation, read_input
from ollama_nb.server.dialects.responses.store import Item, new_id
from ollama_nb.server.dialects.tool_choice import read_parallel_tool_calls, read_tool_choice
from ollama_nb.server.dialects.values import read_effort, read_keep_alive, read_tool

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
_INCLUDABLE = frozenset(
    {
        LOGPROBS,
        ENCRYPTED,
        "message.input_image.image_url",
        # Of tools that this server does not provide: there is never anything to include.
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)
_MAX_METADATA = 16  # pairs
_MAX_METADATA_KEY = 64  # characters
_MAX_METADATA_VALUE = 512  # characters
_OF_TOOLS = frozenset({"strict", "defer_loading", "format"})
_NO_EFFECT = frozenset({"service_tier", "prompt_cache_retention", "prompt_cache_options", "stream_options"})
"""Fields about OpenAI's own operation, which are accepted without a warning."""


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool as the client named it. ``custom`` tools take a text instead of JSON arguments."""

    name: str
    namespace: str = ""
    custom: bool = False

    @property
    def offered_name(self) -> str:
        """The name in the prompt."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest:
    """One request for a response.

    ``chat`` is complete apart from its messages. ``input`` are the request's own items. ``previous`` is the id of the
    response to continue, or empty. ``tools`` are found by their names in the prompt. ``echo`` has the fields of the
    response that only repeat the request. With ``encrypted``, reasoning items have ``encrypted_content``.
    """

    id: str
    chat: ChatRequest
    instructions: str
    input: tuple[Item, ...]
    previous: str
    tools: Mapping[str, OfferedTool]
    echo: Mapping[str, Any]
    stream: bool
    store: bool
    background: bool
    encrypted: bool

    def chat_about(self, items: Iterable[Item]) -> ChatRequest:
        """The request for the next message of a conversation. Raises BadRequest if there is nothing to reply to."""
        messages = conversation(self.instructions, items)
        if not messages:
            raise BadRequest("input is required", field="input")
        return replace(self.chat, messages=messages)


def read_responses(body: Fields) -> ResponsesRequest:
    response_id = new_id()
    stream, background = body.flag("stream") or False, body.flag("background") or False
    store = body.flag("store") is not False
    _refuse_unsupported(body, background=background, store=store)
    offered, tools, ignored = _tools(body)
    include = _include(body)
    request = ResponsesRequest(
        id=response_id,
        chat=_chat(body, tools, offered, logprobs=LOGPROBS in include),
        instructions=body.text("instructions"),
        input=read_input(body, response_id),
        previous=body.text("previous_response_id"),
        tools=offered,
        echo=_echo(body),
        stream=stream,
        store=store,
        background=background,
        encrypted=ENCRYPTED in include,
    )
    return replace(request, chat=replace(request.chat, ignored=(*ignored, *body.ignored(_NO_EFFECT))))


def _refuse_unsupported(body: Fields, *, background: bool, store: bool) -> None:
    """Refuse what would change the meaning of the reply if it were ignored."""
    if body.raw("conversation") is not None:
        text = "conversation objects are not supported: continue a response with previous_response_id"
        raise BadRequest(text, field="conversation")
    if body.raw("prompt") is not None:
        raise BadRequest("prompt templates are not supported: send input and instructions", field="prompt")
    if background and not store:
        raise BadRequest("background requires store: true, because the response is fetched later", field="background")


def _chat(body: Fields, tools: tuple[Tool, ...], offered: Mapping[str, OfferedTool], *, logprobs: bool) -> ChatRequest:
    top_logprobs = body.whole("top_logprobs")
    truncation = body.text("truncation")
    if truncation not in ("", "auto", "disabled"):
        raise BadRequest(f'truncation must be "auto" or "disabled", not {go_quote(truncation)}', field="truncation")
    return ChatRequest(
        model=body.text("model"),
        options=_options(body),
        keep_alive=read_keep_alive(body),
        format=_format(body),
        grammar=body.text("grammar"),
        regex=body.text("regex"),
        choices=body.texts("choices") if "choices" in body else None,
        think=read_effort(_reasoning(body).text("effort"), "reasoning.effort"),
        logprobs=logprobs or top_logprobs > 0,
        top_logprobs=top_logprobs,
        truncate="messages" if truncation == "auto" else False,
        user=body.text("user") or body.text("safety_identifier"),
        detailed=True,
        tools=tools,
        tool_choice=_tool_choice(body, offered),
        parallel_tool_calls=read_parallel_tool_calls(body),
    )


def _options(body: Fields) -> dict[str, Any]:
    """The options of the request. The temperature defaults to 1 whatever the model's own is, as in Ollama."""
    options = {"temperature": 1.0, **body.object("options")}
    for field, option in (("temperature", "temperature"), ("top_p", "top_p"), ("num_ctx", "num_ctx")):
        if body.raw(field) is not None:
            options[option] = body.raw(field)
    if body.raw("max_output_tokens") is not None:
        if (limit := body.whole("max_output_tokens")) < 1:
            raise BadRequest("max_output_tokens must be at least 1", field="max_output_tokens")
        options["num_predict"] = limit
    return options


def _reasoning(body: Fields) -> Fields:
    reasoning = body.struct("reasoning", "Reasoning")
    reasoning.accept({"summary", "generate_summary", "context"})
    return reasoning


def _format(body: Fields) -> Format:
    """The constraint in ``text.format``, or our own field ``format``."""
    text = body.struct("text", "Text")
    text.accept({"verbosity"})
    format = text.struct("format", "Format")
    match format.text("type"):
        case "" | "text":
            return body.schema("format")  # type: ignore[no-any-return]
        case "json_object":
            return "json"
        case "json_schema":
            format.accept({"name", "description", "strict"})
            if format.schema("schema") is None:
                raise BadRequest('text.format of type "json_schema" needs a "schema"', field="text.format.schema")
            return format.object("schema")
        case kind:
            message = f'text.format.type must be "text", "json_object" or "json_schema", not {go_quote(kind[:64])}'
            raise BadRequest(message, field="text.format.type")


def _include(body: Fields) -> frozenset[str]:
    include = body.texts("include")
    for name in include:
        if name not in _INCLUDABLE:
            text = f"include: {go_quote(name[:64])} is not one of {', '.join(sorted(_INCLUDABLE))}"
            raise BadRequest(text, field="include")
    return frozenset(include)


def _tools(body: Fields) -> tuple[dict[str, OfferedTool], tuple[Tool, ...], tuple[str, ...]]:
    """The tools by their offered names, as the service takes them, and a warning for each one that is ignored."""
    offered: dict[str, OfferedTool] = {}
    tools: list[Tool] = []
    ignored: list[str] = []
    for tool, namespace in _with_members(body.structs("tools", "responses.Tool")):
        kind = tool.text("type")
        if kind not in ("function", "custom"):
            ignored.append(f"ignored tool {go_quote(kind[:64])}: this server does not provide it")
            tool.accept_all()
            continue
        tool.accept(_OF_TOOLS)
        known = OfferedTool(tool.text("name"), namespace, custom=kind == "custom")
        if not known.name:
            raise BadRequest(f'a tool of type "{kind}" needs a "name"', field="tools")
        offered[known.offered_name] = known
        function = _custom_function(tool) if known.custom else _function(tool)
        value = {"type": "function", "function": {"name": known.offered_name, **function}}
        tools.append(read_tool(Fields(value, "responses.Tool", "tools")))
    return offered, tuple(tools), tuple(dict.fromkeys(ignored))[: limits.MAX_WARNINGS]


def _with_members(tools: Iterable[Fields]) -> Iterable[tuple[Fields, str]]:
    """Each tool and its namespace; the members of a namespace take its place."""
    for tool in tools:
        if tool.text("type") == "namespace":
            yield from ((member, tool.text("name")) for member in tool.structs("tools", "responses.Tool"))
        else:
            yield tool, ""


def _function(tool: Fields) -> dict[str, Any]:
    fields = {"description": tool.text("description"), "parameters": tool.object("parameters")}
    return {name: value for name, value in fields.items() if value}


def _custom_function(tool: Fields) -> dict[str, Any]:
    """A function with one argument, the text. The grammar of the text is described to the model."""
    description = tool.text("description")
    format = tool.struct("format", "Format")
    if format.text("type") == "grammar":
        syntax, definition = format.text("syntax"), format.text("definition")
        description += f"\n\nThe {CUSTOM_ARGUMENT} must match this {syntax} grammar:\n{definition}"
    argument = {"type": "string", "description": "the whole input of the tool, as free text"}
    parameters = {"type": "object", "properties": {CUSTOM_ARGUMENT: argument}, "required": [CUSTOM_ARGUMENT]}
    return {"description": description.strip(), "parameters": parameters}


def _tool_choice(body: Fields, offered: Mapping[str, OfferedTool]) -> ToolChoice:
    """The tool choice with offered names: a member of a namespace may be named without it."""
    choice = read_tool_choice(body)
    by_name = {tool.name: name for name, tool in offered.items()} | {name: name for name in offered}
    return replace(choice, names=tuple(by_name.get(name, name) for name in choice.names))


def _echo(body: Fields) -> dict[str, Any]:
    """The fields of a response that repeat the request, with OpenAI's defaults."""
    reasoning, text = body.object("reasoning"), body.object("text")
    temperature = body.raw("temperature")
    return {
        "created_at": int(time.time()),
        "instructions": body.text("instructions") or None,
        "max_output_tokens": body.raw("max_output_tokens"),
        "max_tool_calls": _max_tool_calls(body),
        "metadata": _metadata(body),
        "model": body.text("model"),
        "parallel_tool_calls": read_parallel_tool_calls(body),
        "previous_response_id": body.text("previous_response_id") or None,
        "prompt_cache_key": body.text("prompt_cache_key") or None,
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "safety_identifier": body.text("safety_identifier") or None,
        "service_tier": "default",
        "temperature": 1.0 if temperature is None else temperature,
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": "auto" if body.raw("tool_choice") is None else body.raw("tool_choice"),
        "tools": [tool for tool in body.items("tools", "[]responses.Tool") if tool is not None],  # null is not a tool
        "top_logprobs": body.whole("top_logprobs"),
        "top_p": body.raw("top_p"),
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "truncation": body.text("truncation") or "disabled",
        "user": body.text("user") or None,
    }


def _max_tool_calls(body: Fields) -> int | None:
    """As in OpenAI's API the limit concerns built-in tools only, of which this server has none: it is only checked."""
    if body.raw("max_tool_calls") is None:
        return None
    if (limit := body.whole("max_tool_calls")) < 1:
        raise BadRequest("max_tool_calls must be at least 1", field="max_tool_calls")
    return limit


def _metadata(body: Fields) -> dict[str, str]:
    metadata = body.text_map("metadata")
    if len(metadata) > _MAX_METADATA:
        raise BadRequest(f"metadata may have {_MAX_METADATA} pairs at most", field="metadata")
    for key, value in metadata.items():
        if len(key) > _MAX_METADATA_KEY or len(value) > _MAX_METADATA_VALUE:
            text = f"metadata: a key may have {_MAX_METADATA_KEY} characters and a value {_MAX_METADATA_VALUE}"
            raise BadRequest(text, field=f"metadata.{key[:_MAX_METADATA_KEY]}")
    return metadata
