"""The Python API: ask, chat, embed, rerank, count tokens, with typed arguments and results.

``Client`` is Ollama's REST API with dicts; ``Ollama`` is the API for users, and ``AsyncOllama`` the same with
coroutines::

    ollama = ollama_nb.connect()
    print(ollama.ask("smollm2", "Why is the sky blue?", temperature=0))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ollama_nb.client import question
from ollama_nb.client.answer import Answer, AnswerStream, parse_answer
from ollama_nb.client.chat import ChatSession
from ollama_nb.client.chunks import ParsedStream
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect as find_server
from ollama_nb.client.question import Image, Overflow, Prompt
from ollama_nb.client.shape import add_field_list, bind_format, parse_value
from ollama_nb.client.tools import Functions, ToolChoiceWord
from ollama_nb.client.warn import warn_caller

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]


class TextsTruncated(UserWarning):
    """Texts to embed or to rank were longer than the model reads; only their beginnings were used."""


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document and how well it answers the query. ``index`` is its position in the given documents.

    ``score`` is between 0 and 1 if ``method`` is ``rank`` (a reranking model), a cosine if it is ``cosine``.
    """

    index: int
    score: float
    document: str
    method: str


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """A batch of requests: its lines in ``total``, those ``completed`` with a reply, and those that ``failed``.

    ``status``: validating, in_progress, finalizing, completed, failed, expired, cancelling or cancelled.
    """

    id: str
    endpoint: str
    model: str
    status: str
    total: int
    completed: int
    failed: int


def connect(host: str | None = None, *, key: str | None = None, start: bool = True) -> Ollama:
    """Connect to a server: ``host``, else ``OLLAMA_HOST``, else Jupyter's, else one of this user, else a new one.

    ``start=False`` starts no server. Raises ConnectError when no server answers.
    """
    return Ollama(find_server(host, key=key, start=start))


class Ollama:
    """The models of a server. Additional keywords are those of ``question.Extras`` and model options.

    Every method raises OllamaError with the server's message, and BadRequest for a misspelt keyword.
    """

    def __init__(self, client: Client) -> None:
        self.client = client.twin(question.STRICT)

    def __repr__(self) -> str:
        return f"Ollama({self.client.url!r})"

    if not TYPE_CHECKING:  # type checkers see the methods

        def __getattr__(self, name: str) -> Any:
            if hasattr(Client, name) and not name.startswith("_"):
                raise AttributeError(f"`{name}` is a method of Ollama's own API: `.client.{name}(…)`")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def twin(self) -> Ollama:
        """The same server on a connection of its own."""
        return Ollama(self.client)

    def hang_up(self) -> None:
        """Cancel the running requests, from any thread; later requests raise Cancelled."""
        self.client.hang_up()

    @overload
    def ask(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        returns: None = None,
        system: str | None = None,
        images: Iterable[Image] = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        returns: type[T],
        system: str | None = None,
        images: Iterable[Image] = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> T: ...
    @overload
    def ask(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        returns: Any,
        system: str | None = None,
        images: Iterable[Image] = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> Any: ...
    def ask(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        returns: Any = None,
        system: str | None = None,
        images: Iterable[Image] = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> Any:
        """Ask one question and return the answer.

        ``returns`` is a Pydantic model, dataclass, TypedDict, Enum, ``Literal``, ``list[int]``, … or a dict of fields;
        the answer is then a value of that type, and the system message lists its fields. A prompt that does not fit
        into the context raises ContextOverflow, unless ``on_overflow="truncate"``. A prompt of token ids is read as it
        is. With ``n`` answers, the first one is returned and has all ``choices``.
        """
        shape, extras = bind_format(returns, extras)
        body = self._body(prompt, add_field_list(system, shape), images, on_overflow, extras)
        answer = parse_answer(model, self.client.generate(model, stream=False, **body))
        return answer if shape is None else parse_value(shape, answer)

    def stream(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        system: str | None = None,
        images: Iterable[Image] = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> AnswerStream:
        """Like ``ask``, but yield the answer piece by piece; ``answer`` of the stream is the whole answer."""
        body = self._body(prompt, system, images, on_overflow, extras)
        return AnswerStream(model, ParsedStream(self.client.generate(model, stream=True, **body)))

    def chat_session(
        self,
        model: str,
        *,
        system: str = "",
        tools: Functions = (),
        tool_choice: ToolChoiceWord = "auto",
        parallel_tool_calls: bool = True,
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> ChatSession:
        """Start a conversation. The keywords apply to all of its questions; the model may call ``tools``.

        ``tool_choice`` and ``parallel_tool_calls``: see ``ChatSession``.
        """
        return ChatSession(
            self.client,
            model,
            system=system,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            on_overflow=on_overflow,
            **extras,
        )

    def tokens(self, /, model: str, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; ``special`` includes the ones that the tokenizer adds. No weights are loaded."""
        return list(self.client.tokenize(model, text, add_special=special)["tokens"])

    def detokenize(self, /, model: str, tokens: Iterable[int]) -> str:
        """The text of tokens."""
        return str(self.client.detokenize(model, tokens)["content"])

    def embed(
        self,
        /,
        model: str,
        texts: str | Iterable[str],
        *,
        dimensions: int = 0,
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> Vectors:
        """Unit vectors of float32, shape (texts, dimensions); (dimensions,) for a single text.

        ``dimensions`` keeps only the first components, scaled to length 1 again; 0 keeps all. A text that is longer
        than the model reads raises ContextOverflow; with ``on_overflow="truncate"`` it is cut, with a TextsTruncated
        warning that names the indices of such texts.
        """
        inputs = [texts] if isinstance(texts, str) else [*texts]
        fields = question.request_fields(extras) | ({"dimensions": dimensions} if dimensions else {})
        cut = question.may_truncate(on_overflow)
        reply = self.client.embed(model, inputs, truncate=cut, **fields) if inputs else {}
        if found := reply.get("truncated"):
            _warn_truncated(len(found["inputs"]), len(inputs), reply["warnings"])
        vectors = np.asarray(reply.get("embeddings") or np.empty((0, 0)), np.float32)
        single: Vectors = vectors[0] if isinstance(texts, str) else vectors
        return single

    def rerank(
        self,
        /,
        model: str,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> list[RankedDocument]:
        """Sort documents by how well they answer the query, best first, and return the best ``top_n``.

        ``on_overflow`` as for ``embed``.
        """
        texts = [*documents]
        cut = question.may_truncate(on_overflow)
        fields = question.request_fields(extras) | ({} if top_n is None else {"top_n": top_n})
        if not texts:
            return []
        reply = self.client.rerank(model, query, texts, truncate=cut, **fields)
        if warnings := reply.get("warnings"):
            _warn_truncated(len(reply.get("truncated", {}).get("documents", ())), len(texts), warnings)
        return [
            RankedDocument(found["index"], found["relevance_score"], texts[found["index"]], reply["method"])
            for found in reply["results"]
        ]

    def batches(self) -> list[BatchProgress]:
        """The latest 100 batches of requests of OpenAI's API, latest first."""
        return [
            BatchProgress(
                batch["id"], batch["endpoint"], batch["model"] or "", batch["status"], **batch["request_counts"]
            )
            for batch in self.client.batches()["data"]
        ]

    def cancel_batch(self, batch_id: str) -> None:
        """Cancel a batch. The results that it has are kept. Raises BadRequest if it has ended."""
        self.client.cancel_batch(batch_id)

    def _body(
        self, prompt: Prompt, system: str | None, images: Iterable[Image], on_overflow: Overflow, extras: dict[str, Any]
    ) -> dict[str, Any]:
        body = question.prompt_fields(prompt)
        body |= {"truncate": question.may_truncate(on_overflow), **question.request_fields(extras)}
        if system is not None:
            body["system"] = system
        if encoded := question.encode_images(images):
            body["images"] = encoded
        return body


def _warn_truncated(count: int, total: int, warnings: Iterable[str]) -> None:
    warn_caller(f"{count} of {total} texts were cut: {'; '.join(warnings)}", TextsTruncated)
