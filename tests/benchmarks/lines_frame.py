"""Lines on tables: 1,000 short rows through ``series.ollama``, beside a loop over the official client and one server.

Both ask the same model the same questions; the loop is timed over a sample of its rows, for it only ever grows row by
row. Nothing is known from before: every row is new, and the ledger is empty.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import ollama
import pandas as pd
from line import Line, Pairs, Round, Row
from peers import NAME, Server

from ollama_nb.client.client import Client
from ollama_nb.notebook.frame.accessor import Accessor
from ollama_nb.notebook.frame.asking import classifying, examples_messages

ROWS, LOOPED = 1000, 100
LABELS = ["sport", "cooking", "weather"]
EXAMPLES = [
    ("He plays tennis on Sundays.", "sport"),
    ("Boil the rice for ten minutes.", "cooking"),
    ("It will be windy tomorrow.", "weather"),
]
WHO = ("The striker", "Our coach", "The cook", "My aunt", "A neighbour", "The forecaster", "The keeper", "The baker")
DOES = ("scored", "stirred the soup", "saw rain", "won", "baked bread", "expects snow", "ran", "added salt")
PROMPT = "In five words, what happens here? {{value}}"
WORDS = {"temperature": 0, "num_predict": 12}


def sentences(rng: random.Random, count: int) -> list[str]:
    """Short texts, no two alike."""
    found: dict[str, None] = {}
    while len(found) < count:
        when = f"{rng.randrange(24)}:{rng.randrange(60):02} on day {rng.randrange(999)}"
        found[f"{rng.choice(WHO)} {rng.choice(DOES)} at {when}."] = None
    return [*found]


def _rate(count: int, work: Callable[[], object]) -> float:
    """Rows a second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def _tables(server: Server, turn: Round) -> Pairs:
    rng = turn.rng()
    client, loop = Client(server.running.url), ollama.Client(server.running.url)
    before = [{"role": "system", "content": classifying(dict.fromkeys(LABELS, ""))}, *examples_messages(EXAMPLES)]
    shape = {"enum": LABELS}

    def rows(count: int) -> Accessor:
        return Accessor(pd.Series(sentences(rng, count)))

    def labels_by_loop() -> None:
        for text in sentences(rng, LOOPED):
            said = [*before, {"role": "user", "content": text}]
            loop.chat(NAME, said, format=shape, options={"temperature": 0})

    def texts_by_loop() -> None:
        for text in sentences(rng, LOOPED):
            loop.generate(NAME, PROMPT.replace("{{value}}", text), options=WORDS)

    how = {"client": client, "ledger": False}
    labels = _rate(ROWS, lambda: rows(ROWS).classify(NAME, LABELS, examples=EXAMPLES, **how))
    texts = _rate(ROWS, lambda: rows(ROWS).generate(NAME, PROMPT, **WORDS, **how))
    return {"labels": (labels, _rate(LOOPED, labels_by_loop)), "texts": (texts, _rate(LOOPED, texts_by_loop))}


LINES = (
    Line(
        "frame",
        "smol",
        (
            Row("labels", "1,000 rows classified", "rows/s", "more", 2.0),
            Row("texts", "1,000 rows answered in 12 tokens", "rows/s", "more", 2.0),
        ),
        2,
        slots=8,
        pairs=_tables,
        beside="a loop over the client",
    ),
)
