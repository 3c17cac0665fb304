"""Questions whose answers are known: how each route is asked, and what its reply must say.

References are computed once, before the load. The last digits of a model's numbers depend on what else is in its batch,
so a greedy answer is only compared up to the first token that is not clearly the most likely one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CLEAR = 0.05  # nats between the two most likely tokens, from which no batch changes their order
PROMPTS = (
    "Once upon a time", "One day, a girl named", "There was a", "Tom and Lily", "The little dog", "Sam had a red",
    "Lily saw a big", "In the park, there was", "Ben was happy because", "A cat and a dog", "The sun was",
    "Mom said to", "She wanted to", "They went to the", "He found a", "Once there was a bird",
)  # fmt: skip
WORDS = ("water", "book", "cat", "dog", "red", "sun", "tree", "fish")
TEXTS = ("a cat sits on the mat", "the dog runs in the park", "red cars are fast", "雨在下", "", "one two three " * 20)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Lily", "Tom", "Ben"]}, "happy": {"type": "boolean"}},
    "required": ["name", "happy"],
}
GREEDY = {"temperature": 0}
Objects = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """A request and the answer that ``read`` must find in the objects of its reply. ``long``: worth reading slowly."""

    kind: str
    path: str
    body: dict[str, Any]
    read: Callable[[Objects], Any]
    expected: Any
    long: bool = False

    def check(self, status: int, objects: Objects) -> str:
        """What is wrong with a reply; empty if nothing is."""
        if status != 200 or any("error" in found for found in objects):
            return f"status {status}: {objects[-1:]}"
        try:
            answer = self.read(objects)
        except (LookupError, TypeError, ValueError, AssertionError) as error:
            return f"{type(error).__name__} {error} in {objects[-3:]}"
        return "" if same(answer, self.expected) else f"{answer!r} instead of {self.expected!r}"


def same(answer: Any, expected: Any) -> bool:
    """Equal; lists of numbers (vectors, scores) up to rounding."""
    if isinstance(expected, float):
        return isinstance(answer, int | float) and math.isclose(answer, expected, abs_tol=2e-3)
    if isinstance(expected, list):
        return isinstance(answer, list) and len(answer) == len(expected) and all(map(same, answer, expected))
    return bool(answer == expected)


def only(objects: Objects) -> dict[str, Any]:
    (one,) = objects
    return one


# Readers: the answer in a reply. Each fails if the end of the reply is missing or comes twice.


def _native(key: Callable[[dict[str, Any]], str]) -> Callable[[Objects], str]:
    def read(objects: Objects) -> str:
        assert [found["done"] for found in objects] == [False] * (len(objects) - 1) + [True], "not one last line"
        return "".join(map(key, objects))

    return read


generated = _native(lambda found: found["response"])
chatted = _native(lambda found: found["message"]["content"])


def openai(objects: Objects) -> str:
    return str(only(objects)["choices"][0]["message"]["content"])


def openai_stream(objects: Objects) -> str:
    assert [found for found in objects if found.get("end")] == objects[-1:], "not one [DONE]"
    choices = [choice for found in objects[:-1] for choice in found["choices"]]
    assert sum(choice["finish_reason"] is not None for choice in choices) == 1, "not one finish reason"
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def anthropic(objects: Objects) -> str:
    return "".join(part["text"] for part in only(objects)["content"])


def anthropic_stream(objects: Objects) -> str:
    types = [found["type"] for found in objects if found["type"] != "ping"]
    assert (types[0], types[-1]) == ("message_start", "message_stop") and types.count("message_stop") == 1
    deltas = [found["delta"] for found in objects if found["type"] == "content_block_delta"]
    return "".join(delta["text"] for delta in deltas)


def structure(objects: Objects) -> Any:
    return json.loads(generated(objects))


def scores(objects: Objects) -> list[list[float]]:
    found = sorted((result["index"], result["relevance_score"]) for result in only(objects)["results"])
    return [[float(index), score] for index, score in found]


# Making them


def make(ask: Callable[[str, dict[str, Any]], Objects]) -> list[Question]:
    """All questions, with the answers that the server gives to one client at a time."""
    found: list[Question] = []
    for prompt in PROMPTS:
        found += _through_every_dialect("stories", prompt, ask)
    for model in ("quick", "stories"):
        body = {"model": model, "prompt": PROMPTS[0], "raw": True, "options": GREEDY | {"num_predict": 150}}
        found += _generations("generate", body, ask, long=True)
    for prompt in PROMPTS[:6]:
        body = {"model": "quick", "prompt": prompt, "raw": True, "options": GREEDY | {"num_predict": 12}}
        found += _generations("generate (killed and unloaded)", body, ask)
        body = {"model": "stories", "prompt": prompt, "raw": True, "stream": False, "format": SCHEMA}
        body["options"] = GREEDY | {"num_predict": 60}
        found.append(_settled("structured", "/api/generate", body, structure, ask))
        body = body | {"format": None, "choices": ["happy", "sad", "very tired"]}
        found.append(_settled("choices", "/api/generate", body, generated, ask))
    for word in WORDS:
        body = {"model": "sprout", "messages": [{"role": "user", "content": f"Translate to Chinese: {word}"}]}
        body |= {"think": False, "options": GREEDY | {"num_predict": 8}}
        found.append(_settled("chat", "/api/chat", body, chatted, ask))
    for count in (1, 3, 6):
        embed = {"model": "minilm", "input": list(TEXTS[:count])}
        found.append(_settled("embed", "/api/embed", embed, lambda objects: only(objects)["embeddings"], ask))
    rerank = {"model": "minilm", "query": "animals", "documents": list(TEXTS[:4])}
    found.append(_settled("rerank", "/api/rerank", rerank, scores, ask))
    for prompt in PROMPTS[:4]:
        body = {"model": "stories", "prompt": prompt}
        found.append(_settled("tokenize", "/api/tokenize", body, lambda objects: only(objects)["tokens"], ask))
    return found


def _settled(
    kind: str, path: str, body: dict[str, Any], read: Callable[[Objects], Any],
    ask: Callable[[str, dict[str, Any]], Objects],
) -> Question:  # fmt: skip
    return Question(kind, path, body, read, read(ask(path, body)))


def _generations(
    kind: str, body: dict[str, Any], ask: Callable[[str, dict[str, Any]], Objects], *, long: bool = False
) -> list[Question]:
    """A raw prompt as one reply and as a stream, shortened to what is clear."""
    asked = body | {"stream": False, "logprobs": True, "top_logprobs": 2}
    body = body | {"options": body["options"] | {"num_predict": _clear(only(ask("/api/generate", asked)))}}
    text = generated(ask("/api/generate", body | {"stream": False}))
    return [
        Question(f"{kind}, {name}", "/api/generate", body | {"stream": stream}, generated, text, long and stream)
        for name, stream in (("whole", False), ("streamed", True))
    ]


def _through_every_dialect(model: str, prompt: str, ask: Callable[[str, dict[str, Any]], Objects]) -> list[Question]:
    """A prompt through every dialect. All must give the text that the native route gave."""
    messages = [{"role": "user", "content": prompt}]
    asked = {"model": model, "messages": messages, "stream": False, "logprobs": True, "top_logprobs": 2}
    length = _clear(only(ask("/api/chat", asked | {"options": GREEDY | {"num_predict": 24}})))
    chat = {"model": model, "messages": messages, "options": GREEDY | {"num_predict": length}}
    text = chatted(ask("/api/chat", chat))
    other = {"model": model, "messages": messages, "temperature": 0, "max_tokens": length}
    return [
        Question("chat, whole", "/api/chat", chat | {"stream": False}, chatted, text),
        Question("chat, streamed", "/api/chat", chat, chatted, text),
        Question("OpenAI, whole", "/v1/chat/completions", other, openai, text),
        Question("OpenAI, streamed", "/v1/chat/completions", other | {"stream": True}, openai_stream, text),
        Question("Anthropic, whole", "/v1/messages", other, anthropic, text),
        Question("Anthropic, streamed", "/v1/messages", other | {"stream": True}, anthropic_stream, text),
    ]


def _clear(reply: dict[str, Any]) -> int:
    """The number of tokens before the first one that is not clearly the most likely; at least 1."""
    for number, token in enumerate(reply["logprobs"]):
        first, second = (top["logprob"] for top in token["top_logprobs"])
        if first - second < CLEAR:
            return max(1, number)
    return len(reply["logprobs"])
