"""Ollama's API as methods: keyword arguments in, dicts or a Stream of dicts out, as the server words them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, overload
from urllib.parse import quote

from ollama_nb.client.http import Again, Http, Readable, Stream
from ollama_nb.errors import ConnectError, NotFound, OllamaError

Reply = dict[str, Any]


class Client:
    """One server. ``headers`` go with every request (``X-Ollama-Strict``, ``X-Ollama-Run-Record``, …); ``again`` finds
    url and key of another one when that one has ended.

    Every method raises OllamaError with the server's own text; the class follows the HTTP status.
    """

    def __init__(
        self, url: str, key: str = "", *, headers: Mapping[str, str] | None = None, again: Again | None = None
    ) -> None:
        self._http = Http(url, key, headers=headers, again=again)
        self.headers = dict(headers or {})

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def twin(self, headers: Mapping[str, str] | None = None) -> Client:
        """Another client of the same server, with more headers; hanging up on one leaves the other alone."""
        return Client(self.url, self.key, headers={**self.headers, **(headers or {})}, again=self._http.again)

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def key(self) -> str:
        return self._http.key

    def hang_up(self) -> None:
        """Cancel all that this client asks just now, from any thread. It cannot be used afterwards."""
        self._http.hang_up()

    @overload
    def generate(self, model: str, prompt: str = ..., *, stream: Literal[True] = ..., **fields: Any) -> Stream: ...
    @overload
    def generate(self, model: str, prompt: str = ..., *, stream: Literal[False], **fields: Any) -> Reply: ...
    def generate(self, model: str, prompt: str = "", *, stream: bool = True, **fields: Any) -> Stream | Reply:
        """``fields``: suffix, images, system, template, options, format, keep_alive, think, raw, context, …"""
        return self._answer("/api/generate", {"model": model, "prompt": prompt, "stream": stream, **fields})

    @overload
    def chat(
        self, model: str, messages: Iterable[Mapping[str, Any]] = ..., *, stream: Literal[True] = ..., **fields: Any
    ) -> Stream: ...
    @overload
    def chat(
        self, model: str, messages: Iterable[Mapping[str, Any]] = ..., *, stream: Literal[False], **fields: Any
    ) -> Reply: ...
    def chat(
        self, model: str, messages: Iterable[Mapping[str, Any]] = (), *, stream: bool = True, **fields: Any
    ) -> Stream | Reply:
        """``fields``: tools, options, format, keep_alive, think, …"""
        return self._answer("/api/chat", {"model": model, "messages": [*messages], "stream": stream, **fields})

    def embed(self, model: str, input: str | Iterable[str], **fields: Any) -> Reply:
        """``embeddings`` of the reply: one unit vector per input, in their order."""
        texts = input if isinstance(input, str) else [*input]
        return self._reply("POST", "/api/embed", {"model": model, "input": texts, **fields})

    def show(self, model: str, **fields: Any) -> Reply:
        """``fields``: verbose, system, options."""
        return self._reply("POST", "/api/show", {"model": model, **fields})

    def ps(self) -> Reply:
        """``models`` of the reply: those in memory, longest remaining first."""
        return self._reply("GET", "/api/ps")

    def pull(self, model: str, **fields: Any) -> Stream:
        """Progress objects, the last one ``{"status": "success"}``. ``fields``: insecure, ``as`` (the local name)."""
        return self._progress("/api/pull", {"model": model, **fields})

    def push(self, model: str, **fields: Any) -> Stream:
        """Progress objects. ``fields``: insecure."""
        return self._progress("/api/push", {"model": model, **fields})

    def create(self, model: str, **fields: Any) -> Stream:
        """Progress objects. ``fields``: those of ``POST /api/create``, such as ``from``, ``files``, ``system``."""
        return self._progress("/api/create", {"model": model, **fields})

    def copy(self, source: str, destination: str) -> None:
        self._http.request("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        self._http.request("DELETE", "/api/delete", {"model": model})

    def tokenize(self, model: str, prompt: str | None = None, **fields: Any) -> Reply:
        """``tokens`` of the reply. ``fields``: ``messages`` in place of a prompt, add_special, parse_special, …"""
        body = {"model": model, **fields}
        return self._reply("POST", "/api/tokenize", body if prompt is None else {**body, "prompt": prompt})

    def detokenize(self, model: str, tokens: Iterable[int]) -> Reply:
        """``content`` of the reply."""
        return self._reply("POST", "/api/detokenize", {"model": model, "tokens": [*tokens]})

    def rerank(self, model: str, query: str, documents: Iterable[str], **fields: Any) -> Reply:
        """``results`` of the reply, best first. ``fields``: top_n, return_documents, options, keep_alive."""
        body = {"model": model, "query": query, "documents": [*documents], **fields}
        return self._reply("POST", "/api/rerank", body)

    def queue(self) -> Reply:
        """``requests`` of the reply: what the server works on and what waits; never a prompt's text."""
        return self._reply("GET", "/api/queue")

    def cancel(self, request_id: str) -> bool:
        """Cancel a request by its id (``Stream.request_id``); False when the server does not know it (any more)."""
        try:
            self._http.request("DELETE", f"/api/requests/{quote(request_id, safe='')}")
        except NotFound:
            return False
        return True

    def version(self) -> str:
        return str(self._reply("GET", "/api/version").get("version", ""))

    def answers(self, *, timeout: float = 2.0) -> bool:
        """Whether a server answers there and lets us in."""
        try:
            return self._http.status("HEAD", "/", timeout=timeout) == 200
        except ConnectError:
            return False

    def require(self) -> None:
        """Raise ConnectError when nobody answers there."""
        self._http.status("HEAD", "/")

    def greeting(self, *, timeout: float = 2.0) -> str:
        """What ``GET /`` says; every Ollama says ``Ollama is running``."""
        return str(self._http.request("GET", "/", timeout=timeout))

    def has_blob(self, digest: str) -> bool:
        return self._http.status("HEAD", f"/api/blobs/{digest}") == 200

    def upload_blob(self, digest: str, file: Readable, size: int) -> None:
        """Send a file of ``size`` bytes; the server refuses it unless ``digest`` is its digest."""
        self._http.upload(f"/api/blobs/{digest}", file, size)

    def list(self) -> Reply:
        """``models`` of the reply: those installed, newest first."""
        return self._reply("GET", "/api/tags")

    def _answer(self, path: str, body: Reply) -> Stream | Reply:
        if body["stream"]:
            return self._http.stream(path, body, lambda found: bool(found.get("done")))
        return self._reply("POST", path, body)

    def _progress(self, path: str, body: Reply) -> Stream:
        return self._http.stream(path, {**body, "stream": True}, lambda found: found.get("status") == "success")

    def _reply(self, method: str, path: str, body: Any = None) -> Reply:
        reply = self._http.request(method, path, body)
        if not isinstance(reply, dict):
            raise OllamaError(f"{self.url} does not answer as an Ollama server does")
        return reply
