"""Lines on tables: 1,000 short rows through ``series.ollama``, compared with a loop over the official client.

The loop sends the same requests to the same model, on the same server or on a stock Ollama. It is timed on a sample of
its rows, because its time is linear in them. Nothing is cached: every row is new, and the ledger is empty.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ollama
import pandas as pd
from line import Line, Pairs, Round, Row, Values
from peers import NAME, OURS, Server

from ollama_nb.client.client import Client
from ollama_nb.client.shape import shape_of
from ollama_nb.notebook.frame.accessor import Accessor
from ollama_nb.notebook.frame.jobs import example_messages, field_instructions, label_instructions

LOOPED = 60
LABELS = ["sport", "cooking", "weather"]
EXAMPLES = [
    ("He plays tennis on Sundays.", "sport"),
    ("Boil the rice for ten minutes.", "cooking"),
    ("It will be windy tomorrow.", "weather"),
]
SAID = [{"role": "system", "content": label_instructions(dict.fromkeys(LABELS, ""))}, *example_messages(EXAMPLES)]
WHO = ("The striker", "Our coach", "The cook", "My aunt", "A neighbour", "The forecaster", "The keeper", "The baker")
DOES = ("scored", "stirred the soup", "saw rain", "won", "baked bread", "expects snow", "ran", "added salt")
PROMPT = "In five words, what happens here? {{value}}"
SURE: dict[str, Any] = {"temperature": 0}
WORDS: dict[str, Any] = {**SURE, "num_predict": 12}
HOW: dict[str, Any] = {"ledger": False, "progress": False}
FIELDS = {"person": ["striker", "coach", "cook", "aunt", "neighbour", "forecaster"], "day": int, "indoors": bool}
SHAPE = shape_of(FIELDS)
ASKED = {"role": "system", "content": field_instructions(SHAPE.schema)}
COPIES = 4
WARMING = 16

Texts = list[str]


@dataclass(frozen=True, slots=True)
class Work:
    """One operation on texts: as a table, or one by one with the official client."""

    table: Callable[[Accessor, Client], object]
    one: Callable[[ollama.Client, str], object]
    texts: Callable[[Round, int], Texts]
    rows: int = 1000

    def fast(self, server: Server, turn: Round) -> float:
        """Rows per second as a table, after a warm-up."""
        client = Client(server.running.url)
        texts = self.texts(turn, WARMING + self.rows)
        self.table(Accessor(pd.Series(texts[:WARMING])), client)
        return _rate(self.rows, lambda: self.table(Accessor(pd.Series(texts[WARMING:])), client))

    def slow(self, server: Server, turn: Round) -> float:
        """Rows per second in a loop; its first rows are a warm-up."""
        client = ollama.Client(server.running.url)
        texts = self.texts(turn, 2 * (WARMING + self.rows))[
            WARMING + self.rows :
        ]  # different from the rows of the table
        for text in texts[:2]:
            self.one(client, text)
        return _rate(LOOPED, lambda: [self.one(client, text) for text in texts[2 : 2 + LOOPED]])


def sentences(turn: Round, count: int) -> Texts:
    """Short distinct texts."""
    rng, found = turn.rng(), dict[str, None]()
    while len(found) < count:
        when = f"{rng.randrange(24)}:{rng.randrange(60):02} on day {rng.randrange(999)}"
        found[f"{rng.choice(WHO)} {rng.choice(DOES)} at {when}."] = None
    return [*found]


def repeated(turn: Round, count: int) -> Texts:
    """Short texts, each four times, in random order."""
    found = COPIES * sentences(turn, -(-count // COPIES))
    random.Random(turn.seed).shuffle(found)
    return found[:count]


LABELLED = Work(
    lambda rows, client: rows.classify(NAME, LABELS, examples=EXAMPLES, client=client, **HOW),
    lambda client, text: client.chat(
        NAME, [*SAID, {"role": "user", "content": text}], format={"enum": LABELS}, options=SURE
    ),
    sentences,
)
ANSWERED = Work(
    lambda rows, client: rows.generate(NAME, PROMPT, client=client, **WORDS, **HOW),
    lambda client, text: client.generate(NAME, PROMPT.replace("{{value}}", text), options=WORDS),
    sentences,
    rows=300,
)
EXTRACTED = Work(
    lambda rows, client: rows.extract(NAME, FIELDS, client=client, num_predict=80, errors="keep", **HOW),
    lambda client, text: client.chat(
        NAME, [ASKED, {"role": "user", "content": text}], format=SHAPE.schema, options={**SURE, "num_predict": 80}
    ),
    sentences,
    rows=300,
)
EMBEDDED = Work(
    lambda rows, client: rows.embed(NAME, client=client, **HOW),
    lambda client, text: client.embed(NAME, text),
    sentences,
)


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def _line(name: str, model: str, works: dict[str, tuple[str, Work]], *, rounds: int = 2) -> Line:
    def measure(server: Server, turn: Round) -> Values:
        """The usual alternatives: a table on our server, a loop on the other."""
        return {
            key: work.fast(server, turn) if server.name == OURS else work.slow(server, turn)
            for key, (_, work) in works.items()
        }

    def pairs(server: Server, turn: Round) -> Pairs:
        return {key: (work.fast(server, turn), work.slow(server, turn)) for key, (_, work) in works.items()}

    rows = tuple(Row(key, title, "rows/s", "more", 2.0) for key, (title, _) in works.items())
    return Line(
        name,
        model,
        rows,
        rounds,
        slots=8,
        measure=measure,
        pairs=pairs,
        beside="a loop, same server",
        rivals=("ollama",),
        warms=True,
    )


LINES = (
    _line(
        "frame",
        "smol-q4_0",
        {
            "labels": ("1,000 rows classified", LABELLED),
            "copies": ("1,000 rows classified, each text four times", replace(LABELLED, texts=repeated)),
        },
    ),
    _line(
        "frame_texts",
        "smol-q4_0",
        {
            "texts": ("300 rows answered in 12 tokens", ANSWERED),
            "fields": ("300 rows, three fields extracted", EXTRACTED),
        },
    ),
    _line("frame_q4_1", "smol", {"labels": ("1,000 rows classified (Q4_1)", LABELLED)}, rounds=1),
    _line("frame_embed", "minilm", {"embed": ("1,000 rows embedded (MiniLM)", EMBEDDED)}, rounds=3),
)
