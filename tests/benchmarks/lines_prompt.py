"""Lines on prefill: first tokens, shared prefixes, a long prompt during a stream, prefixes on disk, chats, memory."""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from functools import partial
from pathlib import Path

from line import Line, Pairs, Round, Row, Values
from models import words
from peers import NAME, Server, import_model, our_server
from streams import Load, answer, answers, read

from ollama_nb.client.client import Client

SHARED, OWN = 1024, 16
LONG = 2000
IDLE = 2.0
"""Seconds between a reply and the end of its server, in which the prefix is written to disk."""
TURNS = (
    "What is the most important thing to know about {topic}? Explain it in a few sentences.",
    "Give me three examples, and say why each one matters.",
    "Now explain the first example to a child, in your own words.",
)
TOPICS = ("rivers", "bridges", "volcanoes", "bees", "glaciers", "trains", "harbours", "forests")
RULES = (
    "You are the patient teacher of class {number}. Answer in plain English. Give one idea at a time and stay with the "
    "question. Never use a word that a child of twelve would not know without saying what it means. When you are not "
    "sure, say so. Prefer examples from daily life: the harness, the street, the garden, the weather. Do not use "
    "lists unless you are asked for examples. Keep numbers round. Do not speak of yourself. Do not greet, do not close "
    "with a question. The class has been reading about water, stone, wood, iron, animals and plants, and has visited a "
    "bridge, a mill and a small museum. Pupils write their questions one after another, and each of them waits for an "
    "answer; what one pupil asked before belongs to that pupil only."
)


def _first_token(server: Server, turn: Round) -> Values:
    ask = server.generate(words(turn.rng(), 512, turn.vocabulary), 2)
    return {"cold": answer(ask).first, "cached": answer(ask).first}


def _shared(server: Server, turn: Round, *, count: int) -> Values:
    """Wall time of ``count`` concurrent requests with a common prefix: a new one, then one of an earlier request."""
    rng = turn.rng()

    def wall(beginning: str) -> float:
        begun = time.perf_counter()
        own = [words(rng, OWN, turn.vocabulary) for _ in range(count)]
        answers([server.generate(beginning + text, 16) for text in own])
        return time.perf_counter() - begun

    cold = wall(words(rng, SHARED, turn.vocabulary))
    beginning = words(rng, SHARED, turn.vocabulary)
    answer(server.generate(beginning + words(rng, OWN, turn.vocabulary), 2))
    return {"cold": cold, "warm": wall(beginning)}


def _stall(server: Server, turn: Round) -> Values:
    """Longest gap of a running stream during the prefill of a long prompt, and the first token of that prompt."""
    rng = turn.rng()
    with Load() as load:
        stream = load.send(server.generate(words(rng, OWN, turn.vocabulary), 1500))
        load.wait(lambda: len(stream.pieces) >= 12)
        late = load.send(server.generate(words(rng, LONG, turn.vocabulary), 2))
        load.wait(lambda: late.ended)
        load.receive_for(0.5)
        load.hang_up(stream)
    moments = [moment for moment in read(stream).moments if moment > late.sent - 0.2]
    return {"gap": max(b - a for a, b in itertools.pairwise(moments)), "first": read(late).first}


def _memory(server: Server, turn: Round) -> Values:
    """MiB of the server and its runners over the model file, after every slot has been used."""
    rng = turn.rng()
    answers([server.generate(words(rng, 64, turn.vocabulary), 8) for _ in range(server.stage.slots)])
    return {"over": (server.memory() - server.stage.gguf.stat().st_size) / (1 << 20)}


def _chat(server: Server, turn: Round, *, users: int) -> Values:
    """Wall time of ``users`` concurrent conversations: one system prompt, growing histories, no pauses."""
    rules = {"role": "system", "content": RULES.format(number=turn.seed)}
    topics = random.Random(turn.seed).sample(TOPICS, users)
    histories = [[rules, {"role": "user", "content": TURNS[0].format(topic=topic)}] for topic in topics]
    begun = time.perf_counter()
    with Load() as load:
        flights = {user: load.send(server.chat(histories[user], 32)) for user in range(users)}
        for_turn = dict.fromkeys(flights, 1)
        while flights:
            load.wait(lambda: any(flight.ended for flight in flights.values()))
            for user in [user for user, flight in flights.items() if flight.ended]:
                histories[user].append({"role": "assistant", "content": read(flights.pop(user)).text})
                if for_turn[user] < len(TURNS):
                    histories[user].append({"role": "user", "content": TURNS[for_turn[user]]})
                    flights[user] = load.send(server.chat(histories[user], 32))
                    for_turn[user] += 1
    return {"wall": time.perf_counter() - begun}


def _restored(server: Server, turn: Round) -> Pairs:
    """First token of a long prompt after its runner, then the whole server, has ended: from disk, and computed.

    Another request loads the model first, because loading takes the same time in both cases.
    """
    rng = turn.rng()
    prompt = words(rng, LONG, turn.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with our_server(home, server.stage) as first:
            import_model(first.running.url, server.stage.gguf)
            answer(first.generate(words(rng, 8, turn.vocabulary), 2))
            computed = answer(first.generate(prompt, 2)).first
            time.sleep(IDLE)
            _unload(first)
            answer(first.generate(words(rng, 8, turn.vocabulary), 2))
            after_unload = answer(first.generate(prompt, 2)).first
            time.sleep(IDLE)
        with our_server(home, server.stage) as second:
            answer(second.generate(words(rng, 8, turn.vocabulary), 2))
            after_restart = answer(second.generate(prompt, 2)).first
    return {"unload": (after_unload, computed), "restart": (after_restart, computed)}


def _unload(server: Server) -> None:
    """Unload the model and wait for the end of its process."""
    client = Client(server.running.url)
    client.generate(NAME, "", stream=False, keep_alive=0)
    deadline = time.monotonic() + 30
    while client.ps()["models"] and time.monotonic() < deadline:
        time.sleep(0.05)


def _wall(key: str, title: str, aim: float) -> Row:
    return Row(key, title, "s", "less", aim)


LINES = (
    Line(
        "first_token", "q05",
        (_wall("cold", "first token, 512 tokens, cold", 1.01), _wall("cached", "… the same prompt again", 1.18)),
        4, measure=_first_token,
    ),
    Line(
        "stall", "q05",
        (_wall("gap", "longest stall while 2,000 tokens arrive", 10.0), _wall("first", "… their first token", 0.91)),
        2, slots=8, context=4096, measure=_stall,
    ),
    Line(
        "memory", "q05", (Row("over", "memory over the file, 8 slots × 4,096", "MiB", "less", 1.0),),
        1, slots=8, context=4096, measure=_memory,
    ),
    *(
        Line(
            f"shared_{count}", "mid",
            (_wall("cold", f"{count} requests, shared 1,024 tokens, cold (mid)", 3.2), _wall("warm", "… warm", 9.0)),
            1, slots=count, measure=partial(_shared, count=count),
        )
        for count in (8, 32)
    ),
    *(
        Line(
            f"chat_{users}", "smol",
            (_wall("wall", f"{users} user{'s' * (users > 1)} chatting, growing histories", 1.2 if users > 1 else 1.0),),
            2, slots=8, measure=partial(_chat, users=users),
        )
        for users in (1, 4, 8)
    ),
    Line(
        "disk", "q05",
        (_wall("unload", "first token, 2,000 tokens, after unload", 20.0), _wall("restart", "… after a restart", 20.0)),
        2, context=4096, pairs=_restored, beside="computing it",
    ),
)  # fmt: skip
