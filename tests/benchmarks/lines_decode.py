"""Lines on decoding: one stream, many streams, constraints, a busy process, copied text."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial

from line import Line, Pairs, Round, Row, Values
from models import words
from peers import Server, bare_decode, llama_bench
from streams import Load, answer, answers, read_part

from ollama_nb.engine.threads import default_threads

TOKENS = 64
PROMPT_WORDS = 16
RECORDS = {
    "type": "array",
    "minItems": 50,
    "maxItems": 50,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 12, "maxLength": 24},
            "kind": {"enum": ["river", "village", "bridge"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "open": {"type": "boolean"},
        },
        "required": ["name", "kind", "count", "open"],
        "additionalProperties": False,
    },
}
PLACES = ("river", "village", "bridge", "harbour", "market", "forest", "mountain", "library", "garden", "station")
DEEDS = ("painted", "repaired", "measured", "described", "counted", "remembered", "visited", "drew", "closed", "sold")
NAMES = ("Ana", "Bilal", "Chen", "Dana", "Emil", "Farah", "Goran", "Hana", "Ivan", "Joana")


def _prompt(turn: Round, count: int = PROMPT_WORDS) -> str:
    return words(turn.rng(), count, turn.vocabulary)


def _one_stream(server: Server, turn: Round, *, sampled: bool, tokens: int = TOKENS) -> Values:
    return {"rate": answer(server.generate(_prompt(turn), tokens, sampled=sampled)).rate}


def _limit_of_one(server: Server, turn: Round, *, tokens: int = TOKENS) -> Pairs:
    stage = server.stage
    if turn.llama_bench:
        limit = llama_bench(turn.llama_bench, stage.gguf, stage.threads, tokens)
    else:
        limit = bare_decode(stage.gguf, stage.threads, tokens)
    return {"rate": (_one_stream(server, turn, sampled=False, tokens=tokens)["rate"], limit)}


def _many(server: Server, turn: Round, *, count: int, tokens: int = TOKENS, prompt_words: int = PROMPT_WORDS) -> Values:
    """Total tokens per second while all streams run: from the last one's first text to the first one's end."""
    rng = turn.rng()
    replies = answers([server.generate(words(rng, prompt_words, turn.vocabulary), tokens) for _ in range(count)])
    begin, end = max(reply.moments[0] for reply in replies), min(reply.end for reply in replies)
    arrived = sum(begin < moment <= end for reply in replies for moment in reply.moments)
    return {"rate": arrived / (end - begin)}


def _limit_of_many(server: Server, turn: Round, *, count: int, tokens: int = TOKENS) -> Pairs:
    limit = bare_decode(server.stage.gguf, server.stage.threads, tokens, rows=count)
    return {"rate": (_many(server, turn, count=count, tokens=tokens)["rate"], limit)}


def _schema(server: Server, turn: Round) -> Values:
    """Speed under a schema over speed without one, on the same server; the first request compiles it."""
    constrained = server.generate(_prompt(turn), TOKENS, schema=RECORDS)
    answer(replace(constrained, body={**constrained.body}))
    return {"kept": answer(constrained).rate / answer(server.generate(_prompt(turn), TOKENS)).rate}


def _busy(server: Server, turn: Round) -> Values:
    """Tokens per second next to one process that never sleeps, from the second second to the sixth."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour, Load() as load:
        flight = load.send(server.generate(_prompt(turn), 2000))
        load.receive_for(6.0)
        load.hang_up(flight)
        neighbour.kill()
    written = sum(moment > flight.sent + 1.0 for moment in read_part(flight).moments)
    return {"rate": max(written, 1) / 5.0}  # zero counts as one


def _copied_prompt(rng: random.Random) -> str:
    """A passage twice, and its first words: the likely continuation is the rest of the passage."""
    sentences = [
        f"{rng.choice(NAMES)} {rng.choice(DEEDS)} the {rng.choice(PLACES)} near the {rng.choice(PLACES)} "
        f"{rng.randrange(2, 30)} times, and {rng.choice(NAMES)} {rng.choice(DEEDS)} the {rng.choice(PLACES)}."
        for _ in range(8)
    ]
    passage = " ".join(sentences)
    return f"{passage}\n\n{passage}\n\n{' '.join(passage.split()[:6])}"


def _copied(server: Server, turn: Round) -> Values:
    return {"rate": answer(server.generate(_copied_prompt(turn.rng()), 160, drafts=True)).rate}


def _copied_pairs(server: Server, turn: Round) -> Pairs:
    plain = server.generate(_copied_prompt(turn.rng()), 160)
    return {"rate": (_copied(server, turn)["rate"], answer(plain).rate)}


def _fresh_pairs(server: Server, turn: Round) -> Pairs:
    """Sampled prose without copies: the cost of prompt lookup. Each pair in both orders."""
    prompt = (
        f"It was the year {turn.seed % 900 + 1100}. Here is a long story about a river, a village and a bridge.\n\n"
    )
    asks = [server.generate(prompt, 128, sampled=True, drafts=drafts) for drafts in (True, False, False, True)]
    with_1, without_1, without_2, with_2 = (answer(ask).rate for ask in asks)
    return {"rate": (statistics.fmean((with_1, with_2)), statistics.fmean((without_1, without_2)))}


def _row(title: str, aim: float, key: str = "rate", unit: str = "tok/s") -> tuple[Row, ...]:
    return (Row(key, title, unit, "more", aim),)


def _stream_line(model: str, count: int, aim: float, *, tokens: int = 32, rounds: int = 4) -> Line:
    title = f"{count} streams, total" + (", tiny model" if model == "tiny" else "")
    return Line(
        f"streams_{count}" if model != "tiny" else f"tiny_{count}",
        model,
        _row(title, aim),
        rounds,
        slots=8 if count <= 8 else 16,
        threads=1 if model == "tiny" else 0,
        measure=partial(_many, count=count, tokens=tokens),
        pairs=partial(_limit_of_many, count=count, tokens=tokens),
        beside="bare decode",
        optional=True,
    )


LINES = (
    Line("greedy", "q05", _row("one stream, greedy", 0.99), 7, measure=partial(_one_stream, sampled=False)),
    Line("sampled", "q05", _row("one stream, sampled", 0.99), 7, measure=partial(_one_stream, sampled=True)),
    Line("limit", "q05", _row("one stream, greedy", 0.97), 5, pairs=_limit_of_one, beside="limit"),
    Line("schema", "q05", _row("JSON schema, speed kept", 0.98, "kept", "×"), 4, measure=_schema),
    Line("busy", "q05", _row("one busy process beside", 1.0), 3, threads=default_threads(1 << 30), measure=_busy),
    *(_stream_line("q05", count, aim) for count, aim in ((4, 1.05), (6, 1.3), (7, 1.4), (8, 1.05))),
    *(_stream_line("q05", count, aim, rounds=3) for count, aim in ((13, 1.3), (15, 1.4), (16, 1.05))),
    Line(
        "tiny_1", "tiny", _row("one stream, tiny model", 1.0), 7, slots=8, threads=1,
        measure=partial(_one_stream, sampled=False, tokens=256),
        pairs=partial(_limit_of_one, tokens=256), beside="limit", optional=True,
    ),
    _stream_line("tiny", 8, 1.5, tokens=128, rounds=7),
    Line("long_8", "mid", _row("8 streams, 800 tokens of their own each (mid)", 1.0), 3, slots=8,
         measure=partial(_many, count=8, prompt_words=800)),
    Line(
        "copied", "smol", _row("copied text", 1.5), 4, slots=8,
        measure=_copied, pairs=_copied_pairs, beside="ours without drafts",
    ),
    Line("fresh", "smol", _row("prose without copies", 0.98), 5, slots=8, pairs=_fresh_pairs,
         beside="ours without drafts"),
)  # fmt: skip
