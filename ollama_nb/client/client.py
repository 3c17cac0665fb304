"""Ollama's REST API as methods: keyword arguments in, the server's JSON out, as dicts or a stream of dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, overload
from urllib.parse import quote

from ollama_nb.client.http import Http, Readable, Reconnect, ServerAddress, Stream, Trust
from ollama_nb.errors import ConnectError, NotFound, OllamaError

Json = dict[str, Any]


class Client:
    """One server. ``headers`` are sent with every request (``X-Ollama-Strict``, ``X-Ollama-Run-Record``, …).

    ``reconnect`` finds another server when this one has ended. ``trust``: what shows that a listener at ``url`` is this
    server (``http.Trust``). Threads may share a client. Every method raises OllamaError with the server's
    message, of the class that the error code or the HTTP status names.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        reconnect: Reconnect | None = None,
        trust: Trust = "address",
    ) -> None:
        self._http = Http(ServerAddress(url, key, trust), headers=headers, reconnect=reconnect)
        self.headers = dict(headers or {})

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def twin(self, headers: Mapping[str, str] | None = None) -> Client:
        """Another client of the same server, with additional headers; ``hang_up`` of one does not affect the other."""
        at = self.address
        merged = {**self.headers, **(headers or {})}
        return Client(at.url, at.key, headers=merged, reconnect=self._http.reconnect, trust=at.trust)

    @property
    def address(self) -> ServerAddress:
        """The address and the key together: another thread may find another server at any time."""
        return self._http.address

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def key(self) -> str:
        return self._http.address.key

    def hang_up(self) -> None:
        """Cancel the running requests, from any thread; later requests raise Cancelled."""
        self._http.hang_up()

    @overload
    def generate(self, model: str, prompt: str = ..., *, stream: Literal[True] = ..., **fields: Any) -> Stream: ...
    @overload
    def generate(self, model: str, prompt: str = ..., *, stream: Literal[False], **fields: Any) -> Json: ...
    def generate(self, model: str, prompt: str = "", *, stream: bool = True, **fields: Any) -> Stream | Json:
        """``fields``: suffix, images, system, template, options, format, keep_alive, think, raw, context, …"""
        return self._answer("/api/generate", {"model": model, "prompt": prompt, "stream": stream, **fields})

    @overload
    def chat(
        self, model: str, messages: Iterable[Mapping[str, Any]] = ..., *, stream: Literal[True] = ..., **fields: Any
    ) -> Stream: ...
    @overload
    def chat(
        self, model: str, messages: Iterable[Mapping[str, Any]] = ..., *, stream: Literal[False], **fields: Any
    ) -> Json: ...
    def chat(
        self, model: str, messages: Iterable[Mapping[str, Any]] = (), *, stream: bool = True, **fields: Any
    ) -> Stream | Json:
        """``fields``: tools, options, format, keep_alive, think, …"""
        return self._answer("/api/chat", {"model": model, "messages": [*messages], "stream": stream, **fields})

    def embed(self, model: str, input: str | Iterable[str], **fields: Any) -> Json:
        """``embeddings`` of the reply: one unit vector per input, in their order."""
        texts = input if isinstance(input, str) else [*input]
        return self._reply("POST", "/api/embed", {"model": model, "input": texts, **fields})

    def show(self, model: str, **fields: Any) -> Json:
        """``fields``: verbose, system, options."""
        return self._reply("POST", "/api/show", {"model": model, **fields})

    def ps(self) -> Json:
        """``models`` of the reply: those in memory, longest remaining first."""
        return self._reply("GET", "/api/ps")

    def pull(self, model: str, **fields: Any) -> Stream:
        """Progress objects, the last one ``{"status": "success"}``. ``fields``: insecure, ``as`` (the local name), …"""
        return self._progress("/api/pull", {"model": model, **fields})

    def push(self, model: str, **fields: Any) -> Stream:
        """Progress objects. ``fields``: insecure."""
        return self._progress("/api/push", {"model": model, **fields})

    def create(self, model: str, **fields: Any) -> Stream:
        """Progress objects. ``fields``: those of ``POST /api/create``, such as ``from``, ``files``, ``system``."""
        return self._progress("/api/create", {"model": model, **fields})

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name."""
        self._http.request("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        """Delete a model."""
        self._http.request("DELETE", "/api/delete", {"model": model})

    def tokenize(self, model: str, prompt: str | None = None, **fields: Any) -> Json:
        """``tokens`` of the reply. ``fields``: ``messages`` in place of a prompt, add_special, parse_special, …"""
        body = {"model": model, **fields}
        return self._reply("POST", "/api/tokenize", body if prompt is None else {**body, "prompt": prompt})

    def detokenize(self, model: str, tokens: Iterable[int]) -> Json:
        """``content`` of the reply."""
        return self._reply("POST", "/api/detokenize", {"model": model, "tokens": [*tokens]})

    def rerank(self, model: str, query: str, documents: Iterable[str], **fields: Any) -> Json:
        """``results`` of the reply, best first. ``fields``: top_n, return_documents, options, keep_alive."""
        body = {"model": model, "query": query, "documents": [*documents], **fields}
        return self._reply("POST", "/api/rerank", body)

    def queue(self) -> Json:
        """``requests`` of the reply: the running and the waiting ones; ``batches``, if some are unfinished."""
        return self._reply("GET", "/api/queue")

    def cancel(self, request_id: str) -> bool:
        """Cancel a request by its id (``Stream.request_id``); False when the server does not know it."""
        try:
            self._http.request("DELETE", f"/api/requests/{quote(request_id, safe='')}")
        except NotFound:
            return False
        return True

    def batches(self) -> Json:
        """``data`` of the reply: the latest 100 batches, as OpenAI's API describes them."""
        return self._reply("GET", "/v1/batches?limit=100")

    def cancel_batch(self, batch_id: str) -> Json:
        """Cancel a batch of requests and return it."""
        return self._reply("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel", {})

    def version(self) -> str:
        """The server's version."""
        return str(self._reply("GET", "/api/version").get("version", ""))

    def answers(self, *, timeout: float = 2.0) -> bool:
        """Whether a server answers and accepts the key, within ``timeout`` seconds."""
        try:
            return self._http.status("HEAD", "/", timeout=timeout) == 200
        except ConnectError:
            return False

    def require(self) -> None:
        """Raise ConnectError when no server answers."""
        self._http.status("HEAD", "/")

    def greeting(self, *, timeout: float = 2.0) -> str:
        """The text of ``GET /``, ``Ollama is running`` for every Ollama."""
        return str(self._http.request("GET", "/", timeout=timeout))

    def has_blob(self, digest: str) -> bool:
        """Whether the server stores the blob."""
        return self._http.status("HEAD", f"/api/blobs/{digest}") == 200

    def upload_blob(self, digest: str, file: Readable, size: int) -> None:
        """Send a file of ``size`` bytes; the server refuses it unless ``digest`` is its digest."""
        self._http.upload(f"/api/blobs/{digest}", file, size)

    def list(self) -> Json:
        """``models`` of the reply: those installed, newest first."""
        return self._reply("GET", "/api/tags")

    def _answer(self, path: str, body: Json) -> Stream | Json:
        if body["stream"]:
            return self._http.stream(path, body, lambda found: bool(found.get("done")))
        return self._reply("POST", path, body)

    def _progress(self, path: str, body: Json) -> Stream:
        return self._http.stream(path, {**body, "stream": True}, lambda found: found.get("status") == "success")

    def _reply(self, method: str, path: str, body: Any = None) -> Json:
        reply = self._http.request(method, path, body)
        if not isinstance(reply, dict):
            raise OllamaError(f"{self.url} does not answer as an Ollama server does")
        return reply
