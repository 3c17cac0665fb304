"""Models from Python: ask, talk, embed, rank, count tokens. Typed values in and out, and nothing is ignored silently.

``Client`` is Ollama's API as the server words it; ``Ollama`` is what people write. ``AsyncOllama`` is its twin.
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
from ollama_nb.client.question import Image, Overflow
from ollama_nb.client.shape import add_field_list, bind_format, parse_value
from ollama_nb.client.tools import Functions

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document and how well it answers the query. ``index``: its place among the documents that were given.

    ``score``: from 0 to 1 where ``method`` is ``rank`` (a reranking model), a cosine where it is ``cosine``.
    """

    index: int
    score: float
    document: str
    method: str


def connect(host: str | None = None, *, key: str | None = None, start: bool = True) -> Ollama:
    """The server that is found, in the order: ``host``, ``OLLAMA_HOST``, Jupyter's, one of yours, one started now.

    ``start=False`` starts none. Raises ConnectError when no server answers.
    """
    return Ollama(find_server(host, key=key, start=start))


class Ollama:
    """A server's models. Keywords beside the named ones are those of ``question.Extras`` and model options.

    Every method raises OllamaError with the server's own text, and BadRequest for a misspelt keyword.
    """

    def __init__(self, client: Client) -> None:
        self.client = client.twin(question.STRICT)

    def __repr__(self) -> str:
        return f"Ollama({self.client.url!r})"

    if not TYPE_CHECKING:  # type checkers know what there is

        def __getattr__(self, name: str) -> Any:
            if hasattr(Client, name) and not name.startswith("_"):
                raise AttributeError(f"`{name}` is a method of Ollama's own API: `.client.{name}(…)`")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def twin(self) -> Ollama:
        """The same server by a connection of its own."""
        return Ollama(self.client)

    def hang_up(self) -> None:
        """Cancel all that is being asked just now, from any thread; nothing can be asked afterwards."""
        self.client.hang_up()

    @overload
    def ask(
        self,
        /,
        model: str,
        prompt: str,
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
        prompt: str,
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
        prompt: str,
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
        prompt: str,
        *,
        returns: Any = None,
        system: str | None = None,
        images: Iterable[Image] = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> Any:
        """One question, one answer, nothing remembered.

        ``returns``: a Pydantic model, dataclass, TypedDict, Enum, ``Literal``, ``list[int]``, … or a dict of fields;
        the answer is then a value of that type, and the system message tells the model its fields. A prompt that does
        not fit the context raises ContextOverflow, unless ``on_overflow="truncate"``.
        """
        shape, extras = bind_format(returns, extras)
        body = self._body(prompt, add_field_list(system, shape), images, on_overflow, extras)
        answer = parse_answer(model, self.client.generate(model, stream=False, **body))
        return answer if shape is None else parse_value(shape, answer)

    def stream(
        self,
        /,
        model: str,
        prompt: str,
        *,
        system: str | None = None,
        images: Iterable[Image] = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> AnswerStream:
        """The same, piece by piece as the model writes; ``.answer`` of what is returned is the whole."""
        body = self._body(prompt, system, images, on_overflow, extras)
        return AnswerStream(model, ParsedStream(self.client.generate(model, stream=True, **body)))

    def chat_session(
        self,
        model: str,
        *,
        system: str = "",
        tools: Functions = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> ChatSession:
        """A conversation that remembers; keywords hold for all of its questions. The model may call ``tools``."""
        return ChatSession(self.client, model, system=system, tools=tools, on_overflow=on_overflow, **extras)

    def tokens(self, /, model: str, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; ``special``: with those that the tokenizer adds itself. No weights are loaded."""
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

        ``dimensions``: only the first so many, scaled to length 1 again; 0 for all.
        """
        inputs = [texts] if isinstance(texts, str) else [*texts]
        fields = question.request_fields(extras) | ({"dimensions": dimensions} if dimensions else {})
        cut = question.may_truncate(on_overflow)
        reply = self.client.embed(model, inputs, truncate=cut, **fields) if inputs else {}
        vectors = np.asarray(reply.get("embeddings") or np.empty((0, 0)), np.float32)
        single: Vectors = vectors[0] if isinstance(texts, str) else vectors
        return single

    def rerank(
        self, /, model: str, query: str, documents: Iterable[str], *, top_n: int | None = None, **extras: Any
    ) -> list[RankedDocument]:
        """Documents by how well they answer the query, best first; the best ``top_n`` of them."""
        texts = [*documents]
        fields = question.request_fields(extras) | ({} if top_n is None else {"top_n": top_n})
        if not texts:
            return []
        reply = self.client.rerank(model, query, texts, **fields)
        return [
            RankedDocument(found["index"], found["relevance_score"], texts[found["index"]], reply["method"])
            for found in reply["results"]
        ]

    def _body(
        self, prompt: str, system: str | None, images: Iterable[Image], on_overflow: Overflow, extras: dict[str, Any]
    ) -> dict[str, Any]:
        question.check_text(prompt, "prompt")
        body = {"prompt": prompt, "truncate": question.may_truncate(on_overflow), **question.request_fields(extras)}
        if system is not None:
            body["system"] = system
        if encoded := question.encode_images(images):
            body["images"] = encoded
        return body
