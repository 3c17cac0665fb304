"""Requests of the native API: JSON bodies of ``/api/*`` → the requests of :mod:`ollama_nb.api.requests`.

These functions raise BadRequest for values of the wrong type or form. Whether the model exists and has the needed
capabilities is checked by the service. The caller adds the request's id and what the HTTP headers ask for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.requests import (
    ChatRequest,
    CreateRequest,
    EmbedRequest,
    GenerateRequest,
    PullRequest,
    PushRequest,
    RerankRequest,
    ShowRequest,
    TokenizeRequest,
    Truncate,
)
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.tool_choice import read_parallel_tool_calls, read_tool_choice
from ollama_nb.server.dialects.values import read_keep_alive, read_think, read_tools, warn_if_empty

_READ_LATER = frozenset({"stream"})  # fields that other functions read, not to be reported as ignored
_OF_REPLIES = frozenset({"created_at", "tool_error", "logprobs"})  # a message of a reply is sent back as it is
_OF_CALLS = frozenset({"type"})  # clients of OpenAI's API send it


def read_chat(body: Fields) -> ChatRequest:
    request = ChatRequest(
        **_inference(body),
        truncate=_truncate(body),
        messages=tuple(_message(m) for m in body.structs("messages", "api.Message")),
        tools=read_tools(body),
        tool_choice=read_tool_choice(body),
        parallel_tool_calls=read_parallel_tool_calls(body),
    )
    return replace(request, ignored=body.ignored(_READ_LATER))


def read_generate(body: Fields) -> GenerateRequest:
    request = GenerateRequest(
        **_inference(body),
        truncate=body.flag("truncate") is not False,
        prompt=body.text("prompt"),
        tokens=body.wholes("tokens") or (),
        suffix=body.text("suffix"),
        system=body.text("system"),
        template=body.text("template"),
        context=body.wholes("context"),
        raw=body.flag("raw") or False,
        images=body.blobs("images"),
    )
    return replace(request, ignored=body.ignored(_READ_LATER))


def read_embed(body: Fields) -> EmbedRequest:
    request = EmbedRequest(
        model=body.text("model"),
        inputs=_inputs(body.raw("input")),
        truncate=body.flag("truncate"),
        dimensions=body.whole("dimensions"),
        options=body.object("options"),
        keep_alive=read_keep_alive(body),
    )
    return replace(request, ignored=body.ignored())


def read_embeddings(body: Fields) -> EmbedRequest:
    """The body of ``/api/embeddings``, the older route: one prompt, which is never truncated."""
    prompt = body.text("prompt")
    return EmbedRequest(
        model=body.text("model"),
        inputs=(prompt,) if prompt else None,
        truncate=False,
        options=body.object("options"),
        keep_alive=read_keep_alive(body),
    )


def read_rerank(body: Fields) -> RerankRequest:
    request = RerankRequest(
        model=body.text("model"),
        query=body.text("query"),
        documents=body.texts("documents"),
        truncate=body.flag("truncate"),
        top_n=body.whole("top_n") if "top_n" in body else None,
        return_documents=body.flag("return_documents") or False,
        options=body.object("options"),
        keep_alive=read_keep_alive(body),
    )
    return replace(request, ignored=body.ignored())


def read_tokenize(body: Fields) -> TokenizeRequest:
    return TokenizeRequest(
        model=body.text("model"),
        prompt=body.text("prompt") if "prompt" in body else None,
        messages=tuple(_message(m) for m in body.structs("messages", "api.Message")),
        tools=read_tools(body),
        think=read_think(body.raw("think")),
        add_special=body.flag("add_special") is not False,
        parse_special=body.flag("parse_special") or False,
    )


def read_detokenize(body: Fields) -> tuple[str, tuple[int, ...]]:
    """The model and the tokens."""
    return body.text("model"), body.wholes("tokens") or ()


def read_show(body: Fields) -> ShowRequest:
    return ShowRequest(
        model=body.text("model", "name"),
        verbose=body.flag("verbose") or False,
        system=body.text("system"),
        options=body.object("options"),
    )


def read_create(body: Fields) -> CreateRequest:
    if body.raw("remote_host"):
        raise BadRequest("remote_host: stubs of remote models are not supported")
    if body.text("draft_quantize") and not body.raw("draft_files"):
        raise BadRequest("--draft-quantize requires a DRAFT model")
    request = CreateRequest(
        model=body.text("model", "name"),
        from_=body.text("from"),
        files=body.text_map("files"),
        adapters=body.text_map("adapters"),
        draft_files=body.text_map("draft_files"),
        template=body.text("template"),
        system=body.text("system"),
        licenses=_licenses(body),
        parameters=body.object("parameters"),
        messages=tuple(_message(m) for m in body.structs("messages", "api.Message")),
        quantize=body.text("quantize", "quantization"),
        draft_quantize=body.text("draft_quantize"),
        renderer=body.text("renderer"),
        parser=body.text("parser"),
        requires=body.text("requires"),
        info=body.object("info"),
    )
    return replace(request, ignored=body.ignored(_READ_LATER))


def read_pull(body: Fields) -> PullRequest:
    return PullRequest(
        model=body.text("model", "name"),
        as_=body.text("as"),
        insecure=body.flag("insecure") or False,
        streams=body.whole("streams"),
        max_rate=body.whole("max_rate"),
    )


def read_push(body: Fields) -> PushRequest:
    return PushRequest(
        model=body.text("model", "name"),
        insecure=body.flag("insecure") or False,
        max_rate=body.whole("max_rate"),
    )


def wants_stream(body: Fields) -> bool:
    """Whether the reply is streamed; that is the default."""
    return body.flag("stream") is not False


def model_and_unload(body: Fields) -> tuple[str, bool]:
    """The model of an inference request, and whether the request does nothing but unload it."""
    has_input = any(body.raw(name) for name in ("messages", "prompt", "tokens", "input", "query", "text_1"))
    return body.text("model"), not has_input and read_keep_alive(body) == 0


def _inference(body: Fields) -> dict[str, Any]:
    """The fields that chat and generate have in common."""
    return {
        "model": body.text("model"),
        "options": body.object("options"),
        "keep_alive": read_keep_alive(body),
        "format": body.schema("format"),
        "grammar": body.text("grammar"),
        "regex": body.text("regex"),
        "choices": body.texts("choices") if "choices" in body else None,
        "think": read_think(body.raw("think")),
        "logprobs": body.flag("logprobs") or False,
        "top_logprobs": body.whole("top_logprobs"),
        "shift": body.flag("shift"),
        "n": 1 if body.raw("n") is None else body.whole("n"),
        "think_budget": None if body.raw("think_budget") is None else body.whole("think_budget"),
        "user": body.text("user"),
        "render_only": body.flag("_debug_render_only") or False,
    }


def _truncate(body: Fields) -> Truncate:
    """A boolean, or in a chat also ``"messages"``; the default is True."""
    return "messages" if body.raw("truncate") == "messages" else body.flag("truncate") is not False


def _inputs(value: Any) -> tuple[str, ...] | None:
    """The texts to embed; None (load only) for an empty text, an empty list and a missing field."""
    if value is None or value in ("", []):
        return None
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise BadRequest("invalid input type")


def _licenses(body: Fields) -> tuple[str, ...]:
    value = body.raw("license")
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(text for text in body.texts("license") if text)


def _message(message: Fields) -> Message:
    message.accept(_OF_REPLIES)
    found = Message(
        role=message.text("role").lower(),
        content=message.text("content"),
        thinking=message.text("thinking"),
        images=message.blobs("images"),
        tool_calls=tuple(_tool_call(call) for call in message.structs("tool_calls", "api.ToolCall")),
        tool_name=message.text("tool_name"),
        tool_call_id=message.text("tool_call_id"),
    )
    warn_if_empty(message, has_content=bool(found.content or found.thinking or found.images or found.tool_calls))
    return found


def _tool_call(call: Fields) -> ToolCall:
    call.accept(_OF_CALLS)
    function = call.struct("function", "api.ToolCallFunction")
    return ToolCall(
        name=function.text("name"),
        arguments=function.object("arguments", "api.ToolCallFunctionArguments"),
        id=call.text("id"),
        index=function.whole("index"),
    )
