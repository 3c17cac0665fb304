"""Real replies of every operation, in both hosts: they follow the description, and both hosts answer identically.

Small real models run in real runners. Each case is one request, sent to a standalone server and to a Jupyter server
with the extension, both in the same state. The cases are in the order in which they depend on each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.models import TinyRanker
from support.openapi import BY_ID, BY_ROUTE, JSON, NDJSON, OPERATIONS, SSE, Property, check_reply, parts
from support.servers import jupyter, runtime_info, standalone
from support.wheels import make_wheel

pytestmark = pytest.mark.model

INVENTORY = yaml.safe_load((Path(__file__).parents[1] / "server" / "inventory.yaml").read_text("utf-8"))
STORIES = Path(__file__).parents[1] / "models" / "stories260K-f32.gguf"
MINILM = STORIES.with_name("all-MiniLM-L6-v2-q8_0.gguf")
GREEDY = {"temperature": 0, "num_predict": 8, "num_thread": 1, "draft_num_predict": 0, "seed": 7}
ONCE = {"model": "stories", "prompt": "Once upon a time", "options": GREEDY}
QUESTION = [{"role": "user", "content": "法国的首都是哪里？"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
LONG = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 12}, *QUESTION]
WHOLE = {"stream": False}
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
STOPPED = {
    "model": "sprout", "n": 2, "user": "小明", **WHOLE,
    "options": {**GREEDY, "num_predict": 60, "stop": ["Paris.", "巴黎。"]},
}  # fmt: skip
PROBABLE_CHOICES = {
    "model": "stories", "n": 2, "logprobs": True, "top_logprobs": 1, "options": {**GREEDY, "num_predict": 1}, **WHOLE,
}  # fmt: skip
EMBED = {"model": "minilm", "input": ["The owl hunts at night.", "猫头鹰在夜里捕猎。"]}
RANK = {"model": "ranker", "query": "why is the sky blue", "documents": ["the cat sat on the mat", "the sky is blue"]}


@dataclass(frozen=True)
class Case:
    """A request to an operation.

    ``during``: another request that runs meanwhile. ``until``: the request is repeated until its reply is as wanted.
    """

    name: str
    operation: str
    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    during: Any = None
    until: Callable[[Any], bool] | None = None


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def uploads(name: str, data: bytes, **more: Any) -> list[Case]:
    """An upload and a create."""
    files = {"files": {f"{name}.gguf": digest(data)}}
    return [
        Case(f"upload {name}", "uploadBlob", path={"digest": digest(data)}, content=data, status=201),
        Case(f"create {name}", "createModel", {"model": name, **files, **more}),
    ]


RECORD = {"X-Ollama-Run-Record": "true", "X-Request-Id": "recorded"}
LICENSED = {"license": "许可", "system": "You tell stories.", "parameters": {"top_k": 30}, "requires": "0.9.0"}
WELCOME = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]}
SETUP = [
    *uploads("stories", STORIES.read_bytes()),
    *uploads("minilm", MINILM.read_bytes()),
    Case("upload again", "uploadBlob", path={"digest": digest(STORIES.read_bytes())}, content=STORIES.read_bytes()),
    Case("blob exists", "hasBlob", path={"digest": digest(STORIES.read_bytes())}),
    Case("no blob", "hasBlob", path={"digest": "sha256:" + "0" * 64}, status=404),
    Case("damaged upload", "uploadBlob", path={"digest": "sha256:" + "0" * 64}, content=b"x", status=400),
    Case("pull the bundled model", "pullModel", {"model": "sprout"}),
    Case("pull from a package index", "pullModel", {"model": "pip://tiny-model", "as": "tiny"}),
    Case("pull nothing", "pullModel", {"model": "pip://no-such-package"}),
    Case("push to no registry", "pushModel", {"model": "127.0.0.1:9/me/stories", "insecure": True}),
    Case("create whole", "createModel", {"model": "teller", "from": "stories", **LICENSED, **WELCOME, **WHOLE}),
    Case("create quantized", "createModel", {"model": "small", "from": "stories", "quantize": "q8_0", "bogus": 1}),
    Case("create from nothing", "createModel", {"model": "none", **WHOLE}, status=400),
]
NATIVE = [
    Case("generate", "generate", ONCE),
    Case("generate whole", "generate", {**ONCE, **WHOLE, "logprobs": True, "top_logprobs": 2}),
    Case("generate, recorded", "generate", {**ONCE, **WHOLE, "promt": 1}, headers=RECORD),
    Case("generate, strict", "generate", {**ONCE, "promt": 1}, headers={"X-Ollama-Strict": "true"}, status=400),
    Case(
        "generate thoughts",
        "generate",
        {"model": "sprout", "prompt": "法国的首都是哪里？", "think": True, "options": GREEDY},
    ),
    Case(
        "generate, cut",
        "generate",
        {"model": "stories", "prompt": "a b " * 200, "raw": True, "options": {**GREEDY, "num_ctx": 64}},
    ),
    Case("generate choices", "generate", {**ONCE, "n": 2}),
    Case("generate probable choices", "generate", {**PROBABLE_CHOICES, "prompt": "Once upon a time"}),
    Case(
        "generate choices, whole", "generate", {**STOPPED, "prompt": "What is the capital of France?"}, headers=RECORD
    ),
    Case("generate from tokens", "generate", {"model": "stories", "tokens": [1, 403, 407], "options": GREEDY}),
    Case("generate from wrong tokens", "generate", {"model": "stories", "tokens": [512]}, status=400),
    Case("too many choices", "generate", {**ONCE, "n": 99}, status=400),
    Case("load", "generate", {"model": "stories"}),
    Case("render only", "generate", {**ONCE, "_debug_render_only": True}),
    Case("generate without a model", "generate", {"model": "no"}, status=404),
    Case("chat", "chat", {"model": "sprout", "messages": QUESTION, "options": GREEDY}),
    Case(
        "chat whole",
        "chat",
        {"model": "sprout", "messages": QUESTION, "options": {**GREEDY, "num_predict": 60}, **WHOLE},
    ),
    Case(
        "chat with tools",
        "chat",
        {"model": "sprout", "messages": WEATHER, "tools": [TOOL], "options": {**GREEDY, "num_predict": 60}},
    ),
    Case("chat choices", "chat", {**STOPPED, "messages": FRANCE}, headers=RECORD),
    Case("chat, probable choices", "chat", {**PROBABLE_CHOICES, "messages": QUESTION}),
    Case("chat choices, streamed", "chat", {"model": "sprout", "messages": QUESTION, "options": GREEDY, "n": 2}),
    Case(
        "chat choices with tools",
        "chat",
        {**STOPPED, "messages": WEATHER, "tools": [TOOL], "options": {**GREEDY, "num_predict": 60}},
    ),
    Case(
        "chat with probabilities",
        "chat",
        {"model": "stories", "messages": QUESTION, "options": GREEDY, "logprobs": True, "top_logprobs": 1},
    ),
    Case(
        "chat, cut",
        "chat",
        {"model": "stories", "messages": LONG, "options": {**GREEDY, "num_ctx": 64}, "bogus": 1},
        headers=RECORD,
    ),
    Case(
        "chat, no room",
        "chat",
        {"model": "stories", "messages": LONG, "options": {"num_ctx": 64}, "truncate": False},
        status=400,
    ),
    Case("render a chat", "chat", {"model": "sprout", "messages": QUESTION, "_debug_render_only": True}),
    Case("chat without a name", "chat", {"messages": QUESTION}, status=400),
    Case("malformed", "chat", content=b'{"model": "m"', status=400),
    Case("tokenize", "tokenize", {"model": "sprout", "prompt": "春眠不觉晓"}),
    Case("tokenize a chat", "tokenize", {"model": "sprout", "messages": QUESTION}),
    Case("detokenize", "detokenize", {"model": "stories", "tokens": [403, 407, 261]}),
    Case("embed", "embed", EMBED),
    Case("embed nothing", "embed", {"model": "minilm", "input": ""}),
    Case("embed what is too long", "embed", {"model": "minilm", "input": "cat " * 600}),
    Case("embed wrongly", "embed", {"model": "minilm", "input": 5}, status=400),
    Case("embeddings", "embeddings", {"model": "minilm", "prompt": "The owl hunts at night."}),
    Case("rerank", "rerank", {**RANK, "return_documents": True}),
    Case("rerank by vectors", "rerank", {**RANK, "model": "minilm", "top_n": 1}),
    Case("rerank what is too long", "rerank", {**RANK, "model": "minilm", "documents": ["cat " * 600]}),
    Case("tags", "listModels"),
    Case("head tags", "headModels"),
    Case("show", "showModel", {"model": "teller", "verbose": True}),
    Case("show the bundled one", "showModel", {"model": "sprout"}),
    Case("show nothing", "showModel", {"model": "no"}, status=404),
    Case("ps", "listLoadedModels"),
    Case("queue", "queue", during={**ONCE, "options": {**GREEDY, "num_predict": 4000, "num_ctx": 8192}}),
    Case(
        "cancel", "cancelRequest", path={"id": "running"}, during={**ONCE, "options": {**GREEDY, "num_predict": 4000}}
    ),
    Case("cancel nothing", "cancelRequest", path={"id": "nothing"}, status=404),
    Case("copy", "copyModel", {"source": "tiny", "destination": "copied"}),
    Case("delete", "deleteModel", {"model": "copied"}),
    Case("delete nothing", "deleteModel", {"model": "copied"}, status=404),
]
GREEDILY = {"temperature": 0, "seed": 7, "num_thread": 1, "draft_num_predict": 0}
ASK = {"model": "sprout", "messages": QUESTION, "max_tokens": 60, **GREEDILY}
CONTINUE = {"model": "stories", "prompt": "Once upon a time", "raw": True, "max_tokens": 8, **GREEDILY}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TIMED = {**RECORD, "X-Timings": "true"}
PROBABLE = {"logprobs": True, "top_logprobs": 2}
OPENAI = [
    Case("openai chat", "openaiChat", {**ASK, **PROBABLE, "bogus": 1}, headers=TIMED),
    Case("openai chat streamed", "openaiChat", {**ASK, **PROBABLE, **USAGE, "bogus": 1}, headers=TIMED),
    Case("openai chat with tools", "openaiChat", {**ASK, "messages": WEATHER, "tools": [TOOL]}),
    Case("openai chat with tools, streamed", "openaiChat", {**ASK, "messages": WEATHER, "tools": [TOOL], **USAGE}),
    Case("openai chats", "openaiChat", {**ASK, "n": 2}),
    Case("openai chat rendered", "openaiChat", {**ASK, "_debug_render_only": True}),
    Case("openai chat, no room", "openaiChat", {**ASK, "messages": LONG, "num_ctx": 64, "truncate": False}, status=400),
    Case("openai chat without a model", "openaiChat", {**ASK, "model": "no"}, status=404),
    Case("openai malformed", "openaiChat", content=b'{"model": "m"', status=400),
    Case("openai completion", "openaiCompletion", {**CONTINUE, "logprobs": 2, "bogus": 1}, headers=TIMED),
    Case("openai completion streamed", "openaiCompletion", {**CONTINUE, **USAGE, "logprobs": 2}, headers=TIMED),
    Case("openai completions", "openaiCompletion", {**CONTINUE, "prompt": ["Once upon", "从前"], "n": 2, "echo": True}),
    Case("openai completion of tokens", "openaiCompletion", {**CONTINUE, "prompt": [1, 403, 407, 261]}),
    Case("openai completion of wrong tokens", "openaiCompletion", {**CONTINUE, "prompt": [99999]}, status=400),
    Case("openai completion with thoughts", "openaiCompletion", {**CONTINUE, "model": "sprout", "raw": False}),
    Case("openai completion rendered", "openaiCompletion", {**CONTINUE, "raw": False, "_debug_render_only": True}),
    Case("openai embeddings", "openaiEmbeddings", {**EMBED, "dimensions": 8, "bogus": 1}),
    Case("openai embeddings in base64", "openaiEmbeddings", {**EMBED, "encoding_format": "base64"}),
    Case("openai embeddings of nothing", "openaiEmbeddings", {"model": "minilm", "input": []}, status=400),
    Case("openai models", "openaiModels"),
    Case("openai model", "openaiModel", path={"model": "stories"}),
    Case("openai model with a slash", "openaiModel", path={"model": "no/such%2Fmodel"}, status=404),
    Case("openai scores", "openaiScore", {"model": "minilm", "text_1": "who", "text_2": ["one", "猫"], "bogus": 1}),
    Case("openai scores of a ranker", "openaiScore", {"model": "ranker", "text_1": ["a", "b"], "text_2": ["a", "b"]}),
    Case("openai rerank", "openaiRerank", {**RANK, "return_documents": True}),
    Case("openai rerank, cut", "openaiRerank", {**RANK, "model": "minilm", "documents": ["cat " * 600]}),
    Case("openai rerank without a model", "openaiRerank", {**RANK, "model": "no"}, status=404),
]
RESPOND = {"model": "sprout", "input": "法国的首都是哪里？", "temperature": 0, "max_output_tokens": 80}
FUNCTION = {"type": "function", **TOOL["function"]}
CALLS = [
    *WEATHER,
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "hm"},
    {"type": "function_call", "name": "get_weather", "namespace": "weather", "call_id": "c1", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "3 °C"}]},
    {"type": "custom_tool_call", "name": "shell", "call_id": "c2", "input": "ls"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "文件"},
]
RESPONSES = [
    Case(
        "respond",
        "createResponse",
        {**RESPOND, "metadata": {"purpose": "测试"}, "bogus": 1, "options": {"seed": 7}},
        headers=RECORD,
    ),
    Case("respond, streamed", "createResponse", {**RESPOND, "stream": True}),
    Case("respond, cut", "createResponse", {**RESPOND, "max_output_tokens": 2, "reasoning": {"effort": "none"}}),
    Case("respond with a tool", "createResponse", {**RESPOND, "input": WEATHER, "tools": [FUNCTION]}),
    Case(
        "respond with a tool, streamed",
        "createResponse",
        {**RESPOND, "input": WEATHER, "tools": [FUNCTION], "stream": True},
    ),
    Case(
        "respond with thinking",
        "createResponse",
        {**RESPOND, "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]},
    ),
    Case(
        "respond with thinking, streamed", "createResponse", {**RESPOND, "reasoning": {"effort": "low"}, "stream": True}
    ),
    Case(
        "respond with probabilities",
        "createResponse",
        {**RESPOND, "model": "stories", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ),
    Case(
        "respond with probabilities, streamed",
        "createResponse",
        {**RESPOND, "model": "stories", "include": ["message.output_text.logprobs"], "stream": True},
    ),
    Case("respond wrongly", "createResponse", {**RESPOND, "input": [{"type": "unknown"}]}, status=400),
    Case("respond without a model", "createResponse", {**RESPOND, "model": "no"}, status=404),
    Case("continue", "createResponse", {**RESPOND, "input": "那德国呢？", "previous_response_id": "id of respond"}),
    Case("respond to calls", "createResponse", {**RESPOND, "input": CALLS}),
    Case("input items of calls", "listInputItems", path={"id": "id of respond to calls"}),
    Case("fetch a response", "getResponse", path={"id": "id of continue"}),
    Case("input items", "listInputItems", path={"id": "id of continue"}),
    Case("in the background", "createResponse", {**RESPOND, "background": True}),
    Case("cancel a response", "cancelResponse", path={"id": "id of in the background"}),
    Case("delete a response", "deleteResponse", path={"id": "id of respond"}),
    Case("fetch no response", "getResponse", path={"id": "id of respond"}, status=404),
]
LINE = {
    "method": "POST",
    "url": "/v1/completions",
    "body": {**CONTINUE, "max_tokens": 3000, "regex": "([a-z ]{2000}){2}"},
}
GOOD_AND_BROKEN = json.dumps({"custom_id": "一", **LINE}) + "\n{"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def form(content: str) -> bytes:
    """A form with a file."""
    head = '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = f'--b\r\nContent-Disposition: form-data; name="file"; filename="请求.jsonl"\r\n\r\n{content}\r\n--b--\r\n'
    return (head + file).encode()


COMPLETIONS = {"endpoint": "/v1/completions", "completion_window": "48h", "metadata": {"用途": "测试"}}
BATCHES = [
    Case("upload", "uploadFile", content=form(GOOD_AND_BROKEN), headers=FORM),
    Case("upload wrongly", "uploadFile", {"purpose": "batch"}, status=400),
    Case("batch", "createBatch", {"input_file_id": "id of upload", **COMPLETIONS, "bogus": 1}),
    Case(
        "queue with a batch", "queue", until=lambda reply: [one["state"] for one in reply["requests"]] == ["generating"]
    ),
    Case("delete its input", "deleteFile", path={"id": "id of upload"}, status=400),
    Case("cancel the batch", "cancelBatch", path={"id": "id of batch"}),
    Case("cancelled batch", "getBatch", path={"id": "id of batch"}, until=lambda reply: reply["status"] == "cancelled"),
    Case("cancel it again", "cancelBatch", path={"id": "id of batch"}, status=400),
    Case("upload broken lines", "uploadFile", content=form("{\n[]"), headers=FORM),
    Case("broken batch", "createBatch", {"input_file_id": "id of upload broken lines", **COMPLETIONS}),
    Case(
        "failed batch", "getBatch", path={"id": "id of broken batch"}, until=lambda reply: reply["status"] == "failed"
    ),
    Case("batches", "listBatches"),
    Case("batch of nothing", "createBatch", {"input_file_id": "file-1", **COMPLETIONS}, status=404),
    Case("files", "listFiles"),
    Case("file", "getFile", path={"id": "id of upload"}),
    Case("download", "downloadFile", path={"id": "id of upload"}),
    Case("delete a file", "deleteFile", path={"id": "id of upload"}),
    Case("download nothing", "downloadFile", path={"id": "id of upload"}, status=404),
]
CLAUDE = {"model": "sprout", "messages": QUESTION, "max_tokens": 60, "temperature": 0}
CLAUDE_TOOL = {"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}  # type: ignore[index]
CALLING = {**CLAUDE, "messages": WEATHER, "tools": [CLAUDE_TOOL], "tool_choice": {"type": "auto"}}
BUDGET = {"thinking": {"type": "enabled", "budget_tokens": 9}}
STOPPING = {"stop_sequences": ["。"]}
ANTHROPIC = [
    Case("message", "anthropicMessages", {**CLAUDE, **STOPPING, "bogus": 1}, headers=RECORD),
    Case("message streamed", "anthropicMessages", {**CLAUDE, **STOPPING, "bogus": 1, "stream": True}, headers=RECORD),
    Case("message with thoughts", "anthropicMessages", {**CLAUDE, **BUDGET}),
    Case("message with thoughts, streamed", "anthropicMessages", {**CLAUDE, **BUDGET, "stream": True}),
    Case("message with tools", "anthropicMessages", CALLING),
    Case("message with tools, streamed", "anthropicMessages", {**CALLING, "stream": True}),
    Case("message without a model", "anthropicMessages", {**CLAUDE, "model": "no"}, status=404),
    Case("message without a limit", "anthropicMessages", {**CLAUDE, "max_tokens": 0}, status=400),
    Case("message, strict", "anthropicMessages", {**CLAUDE, "a": 1}, headers={"X-Ollama-Strict": "true"}, status=400),
    Case("message, malformed", "anthropicMessages", content=b'{"model": "m"', status=400),
    Case("count", "anthropicCountTokens", CLAUDE),
    Case("count for no model", "anthropicCountTokens", {**CLAUDE, "model": "no"}, status=404),
    Case("models of Anthropic", "openaiModels", headers={"anthropic-version": "2023-06-01"}),
    Case("model of Anthropic", "openaiModel", path={"model": "stories"}, headers={"anthropic-version": "2023-06-01"}),
]
GAP = {"model": "sprout", "input_prefix": "def add(a, b):\n", "input_suffix": "\n", "prompt": "    ", "seed": 7}
LLAMA = [
    Case("infill", "llamaInfill", {**GAP, "n_probs": 2, "samplers": ["top_k"]}),
    Case("infill streamed", "llamaInfill", {**GAP, "n_predict": 2, "n_probs": 2, "stream": True}),
    Case("infill by the model used last", "llamaInfill", {**GAP, "model": None}),
    Case("infill without a suffix", "llamaInfill", {"model": "sprout", "input_prefix": "a"}, status=400),
    Case("infill without a model", "llamaInfill", {**GAP, "model": "no"}, status=404),
    Case("infill by a model that cannot", "llamaInfill", {**GAP, "model": "stories"}, status=400),
    Case("template", "llamaApplyTemplate", {"model": "sprout", "messages": QUESTION}),
    Case("health", "llamaHealth"),
    Case("properties", "llamaProps"),
]
SERVER = [
    Case("root", "root"),
    Case("head root", "headRoot"),
    Case("version", "version"),
    Case("head version", "headVersion"),
    Case("livez", "livez"),
    Case("readyz", "readyz"),
    Case("metrics", "metrics"),
    Case("description", "description"),
    Case("page", "documentation"),
    Case("cloud status", "cloudStatus"),
    Case("account", "account", status=401),
    Case("sign out", "signOut", status=401),
    Case("delete a key", "deleteAccountKey", path={"key": "x"}, status=401),
    Case("search", "webSearch", {"query": "x"}, status=403),
    Case("fetch", "webFetch", {"url": "x"}, status=403),
    Case("recommendations", "modelRecommendations"),
]
CASES = [*SETUP, *NATIVE, *OPENAI, *RESPONSES, *BATCHES, *ANTHROPIC, *LLAMA, *SERVER]

UNSEEN = {
    "remote_model": "there are no cloud models",
    "remote_host": "there are no cloud models",
    "projector_info": "no test model reads images",
    "image_count": "no test model reads images",
    "tool_error": "depends on a wrong call of a model: tests/service/test_service_chat.py",
    "draft_n": "drafts depend on the machine's speed: tests/server/test_drafts_over_http.py",
    "draft_n_accepted": "drafts depend on the machine's speed: tests/server/test_drafts_over_http.py",
    "drafted_tokens": "drafts depend on the machine's speed: tests/server/test_drafts_over_http.py",
    "accepted_tokens": "drafts depend on the machine's speed: tests/server/test_drafts_over_http.py",
    "priority": "a request in the background: tests/server/test_native_replies.py",
    "openaiCompletion choices[].tool_calls": "needs calls without tools: tests/server/test_openai_replies.py",
    "generate tool_calls": "needs a model that calls tools unasked: tests/server/test_native_replies.py",
    "generate choices[].tool_calls": "needs a model that calls tools unasked: tests/server/test_native_replies.py",
    "generate truncated.messages_dropped": "old messages of a model are not dropped in a generate that fits",
    "image_url": "no test model reads images",
    "detail": "no test model reads images",
    **dict.fromkeys(
        (
            "createResponse error.code",
            "createResponse error.message",
            "createResponse error.reason",
            "createResponse code",
            "createResponse message",
            "createResponse param",
        ),
        "a response fails when its runner does: tests/server/test_responses_replies.py",
    ),
    "createResponse input": "no test model calls custom tools: tests/server/test_responses_replies.py",
    "pushModel digest": "needs a registry: tests/compat/test_push_and_pull.py",
    "pushModel total": "needs a registry: tests/compat/test_push_and_pull.py",
    "pushModel completed": "needs a registry: tests/compat/test_push_and_pull.py",
}
"""Fields that no case can show, as a name or as an operation and a path, and why."""

Answers = dict[str, dict[str, httpx.Response]]


@contextlib.contextmanager
def host(name: str, home: Path) -> Iterator[httpx.Client]:
    """A client of a new server."""
    make_wheel(home / "wheels", {"tiny/stories.gguf": STORIES.with_name("stories260K-q4_0.gguf").read_bytes()})
    env = {"PIP_FIND_LINKS": (home / "wheels").as_uri(), "PIP_NO_INDEX": "1"}
    starting = standalone(home, env=env) if name == "standalone" else jupyter(home, env=env, base_url="/hub/")
    with starting as server:
        if name == "jupyter":
            server.headers = {"Authorization": f"Bearer {runtime_info(server)['key']}"}
        with httpx.Client(base_url=server.url, headers=server.headers, timeout=120, trust_env=False) as client:
            yield client


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Host → case → reply."""
    found: Answers = defaultdict(dict)
    for name in ("standalone", "jupyter"):
        home = tmp_path_factory.mktemp(name)
        ranker = TinyRanker().write(home / "ranker.gguf").read_bytes()
        with host(name, home) as client:
            for case in [*uploads("ranker", ranker), *CASES]:
                found[name][case.name] = send(client, case, found[name])
    return found


def send(client: httpx.Client, case: Case, earlier: Mapping[str, httpx.Response]) -> httpx.Response:
    """Send a case; ``id of NAME`` in it stands for the id in the reply of an earlier case."""
    operation = BY_ID[case.operation]
    path, body = operation.path, with_ids(case.body, earlier)
    for name, value in case.path.items():
        path = path.replace(f"{{{name}}}", with_ids(value, earlier))

    def run() -> httpx.Response:
        return client.request(operation.method, path, json=body, content=case.content, headers=dict(case.headers))

    if case.during is None:
        reply, deadline = run(), time.monotonic() + 60
        while case.until and not case.until(reply.json()):
            assert time.monotonic() < deadline, f"{case.name}: {reply.text}"
            time.sleep(0.02)
            reply = run()
        return reply
    with client.stream("POST", "/api/generate", json=case.during, headers={"X-Request-Id": "running"}) as running:
        lines = running.iter_lines()
        next(lines)
        return run()


def with_ids(value: Any, earlier: Mapping[str, httpx.Response]) -> Any:
    if isinstance(value, Mapping):
        return {key: with_ids(inner, earlier) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith("id of "):
        return earlier[value.removeprefix("id of ")].json()["id"]
    return value


@pytest.mark.parametrize("name", ["standalone", "jupyter"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reply_follows_its_schema(answers: Answers, case: Case, name: str) -> None:
    reply = answers[name][case.name]
    assert reply.status_code == case.status, reply.text
    check_reply(BY_ID[case.operation], reply.status_code, reply.headers.get("content-type", ""), reply.content)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_hosts_answer_identically(answers: Answers, case: Case) -> None:
    one, other = answers["standalone"][case.name], answers["jupyter"][case.name]
    assert one.status_code == other.status_code
    assert one.headers.get("content-type") == other.headers.get("content-type")
    assert comparable(one) == comparable(other)


def test_every_operation_has_a_case() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.operation for case in CASES} == set(BY_ID)


def test_every_field_of_the_contract_is_seen(answers: Answers) -> None:
    seen = fields_seen(answers)
    missing = {
        route: left
        for route, entry in INVENTORY.items()
        if (left := [path for path in entry.get("replies", ()) if not is_seen(BY_ROUTE[route].id, path, seen)])
    }
    assert missing == {}


def test_every_described_field_of_replies_is_seen(answers: Answers) -> None:
    """A property of a schema that no reply of any operation has is a mistake in the description, or lacks a case."""
    seen = fields_seen(answers)
    found: set[Property] = set()
    example: dict[Property, str] = {}
    for operation in OPERATIONS:
        for path, properties in operation.reply_fields().items():
            example |= dict.fromkeys(properties, f"{operation.id}: {path}")
            if is_seen(operation.id, path, seen):
                found |= properties
    assert [path for described, path in example.items() if described not in found] == []


def fields_seen(answers: Answers) -> Mapping[str, set[str]]:
    """Operation → the paths of the fields of its replies."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for case in CASES:
        reply = answers["standalone"][case.name]
        if reply.is_success and reply.content:
            for part in check_reply(
                BY_ID[case.operation], reply.status_code, reply.headers["content-type"], reply.content
            ):
                seen[case.operation] |= set(leaves(part))
    return seen


def is_seen(operation: str, path: str, seen: Mapping[str, set[str]]) -> bool:
    names = set(re.split(r"(?:\[\])*(?:\.|$)", path))
    return path in seen[operation] or f"{operation} {path}" in UNSEEN or not names.isdisjoint(UNSEEN)


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields of a JSON value, as in the inventory."""
    if isinstance(value, list):
        for item in value:
            yield from leaves(item, f"{path}[]")
    elif isinstance(value, dict):
        for name, inner in value.items():
            below = f"{path}.{name}" if path else name
            yield below
            yield from leaves(inner, below)


VOLATILE = re.compile(
    r"(^|[._])(created|\w+_at|failed|\w*duration|id|request_id|tokens_per_second|"
    r"cached_tokens|cache_read_input_tokens|input_tokens|output_tokens|\w+_id|sequence_number|completed|prompt_hash|"
    r"timings|model_path|display_name)$|run\.(options\.)?seed$|_ms$|_second$"
)
"""Fields whose values differ from one run to the next."""


def comparable(reply: httpx.Response) -> Any:
    """What both hosts must agree on: all texts joined over the parts of a stream, and the last of other values."""
    kind, text = reply.headers.get("content-type", ""), unlocated(reply)
    if "# HELP" in text:
        return set(re.findall(r"^# HELP (\w+)", text, re.MULTILINE))
    if not text or not kind.startswith((JSON, NDJSON, SSE)):
        return text
    if '"openapi"' in text[:20]:
        return {**json.loads(text), "servers": None}
    found: dict[str, Any] = {}
    for part in parts(kind, text.encode()):
        choice = part.pop("index", "") if isinstance(part, dict) else ""  # choices come in any order
        for path, value in flat(part):
            if isinstance(value, str):
                found[f"{choice}{path}"] = (found.get(f"{choice}{path}") or "") + value
            else:
                found[path] = value
    return found


def unlocated(reply: httpx.Response) -> str:
    """The text of a reply without the server's address, its folders and random ids."""
    address = str(reply.request.url).removesuffix(reply.request.url.path)
    key = " -H &quot;Authorization: Bearer $OLLAMA_API_KEY&quot;"
    text = reply.text.replace(address, "").replace("/hub/ollama", "").replace(key, "")
    return re.sub(r"(?<=[_-])[0-9a-f]{16,}|(?<=FROM )/\S+?(?=sha256)", "", text)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a JSON value with its path; volatile ones without their values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            below = f"{path}.{name}" if path else name
            yield from [(below, True)] if VOLATILE.search(below) else flat(inner, below)
    elif isinstance(value, list):
        # Models are listed in the order of their creation, in which those of one second have no order.
        named = all(isinstance(item, dict) and "modified_at" in item for item in value)
        for index, inner in enumerate(sorted(value, key=lambda item: item["name"]) if named else value):
            yield from flat(inner, f"{path}[{index}]")
    else:
        yield path, round(value, 3) if isinstance(value, float) else value
