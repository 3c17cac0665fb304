"""Requests of OpenAI's API: JSON bodies of ``/v1/*`` → the requests of :mod:`ollama_nb.api.requests`.

The functions named ``read_…`` raise BadRequest for values of the wrong type or form. The caller adds the request's id
and what the HTTP headers ask for. Beside OpenAI's fields, they read those of Ollama's native API, and the names that
vLLM and llama-server have for the same things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from ollama_nb.api.messages import Message, Think, ToolCall
from ollama_nb.api.options import KINDS
from ollama_nb.api.requests import ChatRequest, EmbedRequest, GenerateRequest, RerankRequest
from ollama_nb.errors import BadRequest, Unsupported
from ollama_nb.server.dialects import gojson
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.images import EncodedImage
from ollama_nb.server.dialects.tool_choice import read_parallel_tool_calls, read_tool_choice
from ollama_nb.server.dialects.values import (
    read_effort,
    read_image,
    read_keep_alive,
    read_think,
    read_tools,
    warn_if_empty,
)
from ollama_nb.service.generation import MAX_CHOICES, MAX_TOP_LOGPROBS

MAX_PROMPTS = 1024  # prompts in one request
MAX_LOGIT_BIAS = 100
ReasoningFormat = Literal["auto", "deepseek", "deepseek-legacy", "none"]
"""Where thinking is written, as in llama-server: in fields of its own, there and in the content, or in the content."""

_ROLES = {"developer": "system", "function": "tool"}
_WITHOUT_EFFECT = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store"}
)
"""Fields that are accepted without a warning: they cannot change a reply."""
_OF_MESSAGES = frozenset({"name", "refusal", "annotations", "audio", "function_call", "reasoning_details"})
_OF_PARTS = frozenset({"cache_control", "annotations"})
_OF_CALLS = frozenset({"type", "index"})
_OF_SCHEMAS = frozenset({"name", "description", "strict"})
"""Fields of nested objects that clients send and that have no effect: above all parts of replies that are sent back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyForm:
    """How the reply to a request is to be written."""

    stream: bool = False
    include_usage: bool = False
    reasoning: ReasoningFormat = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion:
    """The body of ``/v1/chat/completions``."""

    request: ChatRequest
    form: ReplyForm

    def asking(self, **changes: Any) -> ChatCompletion:
        """A copy whose request has the given fields."""
        return replace(self, request=replace(self.request, **changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The body of ``/v1/completions``: one request for each prompt.

    Of the choices that each request asks for, the ``n`` best are sent. With ``echo``, each begins with its prompt.
    """

    requests: tuple[GenerateRequest, ...]
    form: ReplyForm
    n: int = 1
    logprobs: bool = False
    echo: bool = False

    def asking(self, **changes: Any) -> Completion:
        """A copy whose requests have the given fields."""
        return replace(self, requests=tuple(replace(request, **changes) for request in self.requests))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsBody:
    """The body of ``/v1/embeddings``. With ``base64``, vectors are sent as little-endian float32 numbers in base64."""

    request: EmbedRequest
    base64: bool = False

    def asking(self, **changes: Any) -> EmbeddingsBody:
        """A copy whose request has the given fields."""
        return replace(self, request=replace(self.request, **changes))


def read_chat(body: Fields) -> ChatCompletion:
    form = _form(body)
    request = ChatRequest(
        **_inference(body, {"temperature": 1.0, "top_p": 1.0}),
        **_constraint(body),
        messages=_messages(body),
        tools=read_tools(body),
        tool_choice=read_tool_choice(body),
        parallel_tool_calls=read_parallel_tool_calls(body),
        truncate="messages" if body.raw("truncate") == "messages" else body.flag("truncate") is not False,
        logprobs=body.flag("logprobs") or False,
        top_logprobs=body.whole("top_logprobs"),
        n=_within(body, "n", 1, MAX_CHOICES),
        detailed=form.stream,
    )
    return ChatCompletion(request=replace(request, ignored=_ignored(body)), form=form)


def read_completion(body: Fields) -> Completion:
    form = _form(body)
    n = _within(body, "n", 1, MAX_CHOICES)
    best_of = _within(body, "best_of", 1, MAX_CHOICES) if "best_of" in body else n
    if best_of < n:
        raise BadRequest(f"best_of must be at least n, which is {n}", field="best_of")
    if best_of > n and form.stream:
        raise BadRequest(
            "best_of: the best replies are known at the end only, they cannot be streamed", field="best_of"
        )
    defaults = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    request = GenerateRequest(
        **_inference(body, defaults),
        **_constraint(body),
        suffix=body.text("suffix"),
        raw=body.flag("raw") or False,
        truncate=body.flag("truncate") is not False,
        logprobs="logprobs" in body or best_of > n,
        top_logprobs=_within(body, "logprobs", 0, MAX_TOP_LOGPROBS),
        n=best_of,
    )
    prompts = _prompts(body.raw("prompt"))
    echo, logprobs = body.flag("echo") or False, "logprobs" in body
    ignored = _ignored(body)
    if echo and logprobs:
        ignored += ("logprobs: the tokens of an echoed prompt have none",)
    requests = tuple(replace(request, **prompt, ignored=ignored) for prompt in prompts)
    return Completion(requests=requests, form=form, n=n, logprobs=logprobs, echo=echo)


def read_embeddings(body: Fields) -> EmbeddingsBody:
    encoding = body.text("encoding_format").lower() or "float"
    if encoding not in ("float", "base64"):
        supported = "Supported values: ['float', 'base64']."
        raise BadRequest(f"Invalid value for 'encoding_format' = {encoding}. {supported}", field="encoding_format")
    dimensions = body.whole("dimensions")
    if dimensions < 0:
        raise BadRequest("dimensions must be positive", field="dimensions")
    request = EmbedRequest(
        model=body.text("model"),
        inputs=_inputs(body.raw("input")),
        truncate=body.flag("truncate") is not False,
        dimensions=dimensions,
        options=_loading_options(body),
        keep_alive=read_keep_alive(body),
    )
    ignored = body.ignored(_WITHOUT_EFFECT | {"user"})
    return EmbeddingsBody(request=replace(request, ignored=ignored), base64=encoding == "base64")


def read_score(body: Fields) -> tuple[RerankRequest, ...]:
    """The body of ``/v1/score``: requests whose documents, one after the other, are the pairs to be scored."""
    request = RerankRequest(model=body.text("model"), options=_loading_options(body), keep_alive=read_keep_alive(body))
    first, second = _texts(body, "text_1"), _texts(body, "text_2")
    if not all(first):
        raise BadRequest("text_1 must not be empty", field="text_1")
    if len(first) not in (1, len(second)):
        raise BadRequest(
            f"text_1 has {len(first)} texts and text_2 has {len(second)}: give one text_1, or one for each text_2",
            field="text_1",
        )
    request = replace(request, ignored=body.ignored(_WITHOUT_EFFECT | {"user"}))
    if len(first) == 1:
        return (replace(request, query=first[0], documents=second),)
    pairs = zip(first, second, strict=True)
    return tuple(replace(request, query=query, documents=(document,)) for query, document in pairs)


def _form(body: Fields) -> ReplyForm:
    reasoning = body.text("reasoning_format") or "auto"
    if reasoning not in get_args(ReasoningFormat):
        known = ", ".join(get_args(ReasoningFormat))
        raise BadRequest(f"invalid reasoning_format: use one of {known}", field="reasoning_format")
    return ReplyForm(
        stream=body.flag("stream") or False,
        include_usage=body.struct("stream_options", "openai.StreamOptions").flag("include_usage") or False,
        reasoning=cast(ReasoningFormat, reasoning),
    )


def _inference(body: Fields, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that chat and text completions have in common. ``defaults`` replace the model's own options."""
    return {
        "model": body.text("model"),
        "options": {**defaults, **body.object("options"), **_options(body)},
        "keep_alive": read_keep_alive(body),
        "think": _think(body),
        "think_budget": _think_budget(body),
        "shift": body.flag("shift"),
        "render_only": body.flag("_debug_render_only") or False,
        "user": body.text("user"),
    }


def _options(body: Fields) -> dict[str, Any]:
    """The options that are fields of the body; any of Ollama's options can be one."""
    read = {"int": body.whole, "float": body.number, "bool": body.flag}
    found: dict[str, Any] = {name: read[kind](name) for name, kind in KINDS.items() if kind in read and name in body}
    for name in ("max_tokens", "max_completion_tokens"):  # the second one wins
        if name in body:
            found["num_predict"] = body.whole(name)
    if "stop" in body:
        found["stop"] = _stop(body.raw("stop"))
    if "logit_bias" in body:
        found["logit_bias"] = _logit_bias(body)
    return found


def _loading_options(body: Fields) -> dict[str, Any]:
    """The options of a request that generates no text."""
    return {**body.object("options"), **({"num_ctx": body.whole("num_ctx")} if "num_ctx" in body else {})}


def _stop(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        wrong = next((item for item in value if not isinstance(item, str)), None) if isinstance(value, list) else value
        raise BadRequest(f"invalid type for 'stop' field: {_go_type(wrong)}", field="stop")
    return value


def _logit_bias(body: Fields) -> dict[str, float]:
    found = body.object("logit_bias", "map[string]float64")
    for token, value in found.items():
        if type(value) not in (int, float) or not -MAX_LOGIT_BIAS <= value <= MAX_LOGIT_BIAS:
            raise BadRequest(
                f"logit_bias: the value for token {token[:20]} must be a number from -{MAX_LOGIT_BIAS} to "
                f"{MAX_LOGIT_BIAS}",
                field="logit_bias",
            )
    return found


def _think(body: Fields) -> Think:
    """What the request asks for, in order of precedence: ``think``, a reasoning effort, the template's argument."""
    think, effort = read_think(body.raw("think")), body.text("reasoning_effort")
    reasoning = body.struct("reasoning", "openai.Reasoning").text("effort")
    enabled = body.struct("chat_template_kwargs", "map[string]interface {}").flag("enable_thinking")
    if think is not None:
        return think
    if "reasoning" in body:  # as in Ollama, even if it is empty
        return read_effort(reasoning, "reasoning.effort")
    if effort:
        return read_effort(effort, "reasoning_effort")
    return False if enabled is False else None  # models that can think do so by default


def _think_budget(body: Fields) -> int | None:
    """Tokens of thinking; None for no limit, which is -1 in llama-server."""
    for name in ("think_budget", "reasoning_budget"):
        if name in body and (budget := body.whole(name)) != -1:
            return budget
    return None


def _constraint(body: Fields) -> dict[str, Any]:
    """The field of the request that constrains the reply. All names for the same thing are read."""
    vllm = body.struct("structured_outputs", "openai.StructuredOutputs")
    found: list[tuple[str, str, Any]] = [
        ("response_format", "format", _response_format(body)),
        ("format", "format", body.schema("format")),
        ("guided_json", "format", _schema(body, "guided_json")),
        ("structured_outputs.json", "format", _schema(vllm, "json")),
        ("structured_outputs.json_object", "format", "json" if vllm.flag("json_object") else None),
        ("grammar", "grammar", body.text("grammar")),
        ("guided_grammar", "grammar", body.text("guided_grammar")),
        ("structured_outputs.grammar", "grammar", vllm.text("grammar")),
        ("regex", "regex", body.text("regex")),
        ("guided_regex", "regex", body.text("guided_regex")),
        ("structured_outputs.regex", "regex", vllm.text("regex")),
        ("choices", "choices", _choices(body, "choices")),
        ("guided_choice", "choices", _choices(body, "guided_choice")),
        ("structured_outputs.choice", "choices", _choices(vllm, "choice")),
    ]
    given = [entry for entry in found if entry[2] is not None and entry[2] != ""]
    if len(given) > 1:
        names = " and ".join(name for name, _, _ in given)
        raise BadRequest(f"constrain the reply in one way only: this request has {names}", field=given[1][0])
    return {field: value for _, field, value in given}


def _response_format(body: Fields) -> Any:
    """A schema, ``"json"``, or None for text. llama-server allows a schema beside ``json_object`` too."""
    form = body.struct("response_format", "openai.ResponseFormat")
    match form.text("type"):
        case "json_object":
            return form.schema("schema") or "json"
        case "json_schema":
            named = form.struct("json_schema", "openai.JsonSchema")
            named.accept(_OF_SCHEMAS)
            schema = named.schema("schema")
            return "json" if schema is None else schema
        case "" | "text":
            return None
        case other:
            raise BadRequest(
                f'response_format: the type "{other[:40]}" is not one of text, json_object and json_schema',
                field="response_format.type",
            )


def _schema(body: Fields, name: str) -> Any:
    """A JSON Schema as an object or as JSON text."""
    value = body.schema(name)
    if not isinstance(value, str) or not value:
        return value
    try:
        return gojson.decode(value.encode())
    except BadRequest as error:
        raise BadRequest(f"{name} is not valid JSON: {error.message}", field=name) from None


def _choices(body: Fields, name: str) -> tuple[str, ...] | None:
    return body.texts(name) if name in body else None


def _ignored(body: Fields) -> tuple[str, ...]:
    """A warning for each field without effect, also in nested objects. Call it last."""
    body.struct("stream_options", "openai.StreamOptions").accept({"include_obfuscation"})
    return body.ignored(_WITHOUT_EFFECT)


def _within(body: Fields, name: str, least: int, most: int) -> int:
    """A number from ``least``, which is the default, to ``most``."""
    number = body.whole(name) if name in body else least
    if not least <= number <= most:
        raise BadRequest(f"{name} must be between {least} and {most}", field=name)
    return number


def _messages(body: Fields) -> tuple[Message, ...]:
    """The conversation. A tool's result gets the name of the tool from the call that it answers."""
    messages = body.structs("messages", "openai.Message")
    if not messages:
        raise BadRequest("[] is too short - 'messages'", field="messages")
    found: list[Message] = []
    names: dict[str, str] = {}
    for message in messages:
        role = message.text("role").lower()
        content, images = _content(message)
        calls = tuple(_tool_call(at, call) for at, call in enumerate(message.structs("tool_calls", "openai.ToolCall")))
        names |= {call.id: call.name for call in calls}
        call_id = message.text("tool_call_id")
        role = _ROLES.get(role, role)
        read = Message(
            role=role,
            content=content,
            thinking=message.text("reasoning_content", "reasoning"),
            images=images,
            tool_calls=calls,
            tool_name=(message.text("name") or names.get(call_id, "")) if role == "tool" else "",
            tool_call_id=call_id,
        )
        warn_if_empty(message, has_content=bool(content or read.thinking or images or calls))
        message.accept(_OF_MESSAGES)
        found.append(read)
    return tuple(found)


def _content(message: Fields) -> tuple[str, tuple[bytes, ...]]:
    """The text and the images of a message; the texts of several parts are joined by line breaks."""
    value = message.raw("content")
    if isinstance(value, str):
        return value, ()
    if isinstance(value, list):
        texts: list[str] = []
        images: list[bytes] = []
        for at, part in enumerate(value):
            _add_part(part, texts, images)
            shown = message.below("content", part, "openai.ContentPart", f"content[{at}]")
            shown.accept(_OF_PARTS | _PARTS[shown.text("type")])
        return "\n".join(texts), tuple(images)
    if value is None and any(message.raw(name) for name in ("tool_calls", "reasoning", "reasoning_content")):
        return "", ()
    raise BadRequest(f"invalid message content type: {_go_type(value)}", field="messages.content")


_PARTS = {
    "text": frozenset({"text"}),
    "refusal": frozenset({"refusal"}),
    "image_url": frozenset({"image_url", "detail"}),
}
"""Type of a part → its fields."""


def _add_part(part: Any, texts: list[str], images: list[bytes]) -> None:
    match part:
        case {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            texts.append(text)
        case {"type": "image_url", "image_url": {"url": str(url) | (EncodedImage() as url)}} | {
            "type": "image_url",
            "image_url": str(url) | (EncodedImage() as url),
        }:
            images.append(read_image(url, "messages.content.image_url"))
        case {"type": "input_audio"}:
            text = "audio input is not supported: send the message without input_audio"
            raise Unsupported(text, field="messages.content.input_audio")
        case {"type": "file"}:
            raise Unsupported("file inputs are not currently supported", field="messages.content.file")
        case _:
            raise BadRequest("invalid message format", field="messages.content")


def _tool_call(index: int, call: Fields) -> ToolCall:
    """A call of an earlier reply; some clients send empty arguments for a tool without parameters."""
    call.accept(_OF_CALLS)
    function = call.struct("function", "openai.ToolCallFunction")
    text = function.text("arguments")
    try:
        arguments = gojson.decode(text.encode()) if text else {}
    except BadRequest:
        arguments = None
    if not isinstance(arguments, dict):
        raise BadRequest("invalid tool call arguments", field="messages.tool_calls.function.arguments")
    return ToolCall(function.text("name"), arguments, call.text("id"), index)


def _prompts(value: Any) -> list[dict[str, Any]]:
    """The fields of a GenerateRequest for each prompt. A missing prompt is empty: the model is only loaded."""
    if value is None or isinstance(value, str):
        return [{"prompt": value or ""}]
    if isinstance(value, list) and value:
        if len(value) > MAX_PROMPTS and not _are_tokens(value):
            raise BadRequest(f"prompt may have {MAX_PROMPTS} prompts at most", field="prompt")
        if _are_tokens(value):
            return [{"tokens": tuple(value)}]
        if all(isinstance(item, str) for item in value):
            return [{"prompt": item} for item in value]
        if all(map(_are_tokens, value)):
            return [{"tokens": tuple(item)} for item in value]
    kinds = "a text, a list of texts, a list of token ids, or a list of such lists"
    raise BadRequest(f"prompt must be {kinds}, and not empty", field="prompt")


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """The texts or token ids to embed. An empty text is embedded like any other one."""
    if value is None or value == []:
        raise BadRequest("invalid input", field="input")
    if isinstance(value, str):
        return (value,)
    if _are_tokens(value):
        return (tuple(value),)
    if isinstance(value, list) and all(isinstance(item, str) or _are_tokens(item) for item in value):
        return tuple(item if isinstance(item, str) else tuple(item) for item in value)
    raise BadRequest("invalid input type", field="input")


def _texts(body: Fields, name: str) -> tuple[str, ...]:
    """A text or a list of texts, of which there must be one at least."""
    value = body.raw(name)
    found = (value,) if isinstance(value, str) else body.texts(name)
    if not found:
        raise BadRequest(f"{name} must be a text or a list of texts", field=name)
    return found


def _go_type(value: Any) -> str:
    """The Go type of a decoded JSON value, as error messages name it."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int() | float():
            return "float64"
        case str():
            return "string"
        case list():
            return "[]interface {}"
    return "map[string]interface {}"
