"""Fair shares in simulated time: a server serves one token a tick, and requests wait by the queue's decisions."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.fairness import MAX_ACCOUNTS, WEIGHTS, FairQueue, Kind


@dataclass(eq=False)
class Work:
    client: str
    kind: Kind = Kind.INTERACTIVE
    tokens: int = 10
    arrived: int = 0
    served: int = 0
    waits: list[int] = field(default_factory=list)


class Server:
    """Serves one piece of at most ``piece`` tokens after the other."""

    def __init__(self, piece: int = 10) -> None:
        self.queue, self.piece, self.now = FairQueue(), piece, 0
        self.waiting: list[Work] = []
        self.done: list[Work] = []
        self.service: dict[object, int] = defaultdict(int)

    def add(self, work: Work) -> Work:
        work.arrived = self.now
        self.waiting.append(work)
        return work

    def step(self) -> Work | None:
        if not self.waiting:
            self.now += 1
            return None
        work = self.queue.choose(self.waiting)
        tokens = min(self.piece, work.tokens - work.served)
        self.queue.charge(work, tokens)
        self.now += tokens
        work.served += tokens
        self.service[work.client] += tokens
        self.service[work.kind] += tokens
        if work.served == work.tokens:
            self.waiting.remove(work)
            self.done.append(work)
        return work


def test_a_light_client_waits_at_most_twice_its_fair_share() -> None:
    """G7: ten requests of a heavy client for one of a light one; the fair share is every other turn."""
    server, waits = Server(), []
    for _ in range(200):
        for _ in range(10):
            server.add(Work("heavy"))
        light, turns = server.add(Work("light")), 0
        while light in server.waiting:
            server.step()
            turns += 1
        waits.append(turns)
        server.step()
    fair_share = 2  # turns: one of each client
    assert sorted(waits)[int(0.95 * len(waits))] <= 2 * fair_share
    assert len(server.waiting) > 1000, "the heavy client waits for what it asked beyond its share"


def test_requests_of_one_client_are_served_in_order() -> None:
    server = Server()
    works = [server.add(Work("a", tokens=tokens)) for tokens in (30, 5, 10, 20)]
    while server.waiting:
        server.step()
    assert server.done == works


def test_clients_get_equal_service_whatever_the_size_of_their_requests() -> None:
    server = Server()
    for _ in range(200):
        server.add(Work("large", tokens=100))
        server.add(Work("small", tokens=4))
    for _ in range(120):
        server.step()
    assert abs(server.service["large"] - server.service["small"]) <= 20


def test_a_client_saves_up_nothing_while_it_is_away() -> None:
    server = Server()
    for _ in range(100):
        server.add(Work("steady"))
    for _ in range(50):
        server.step()
    for _ in range(50):
        server.add(Work("returning"))
    before = server.service["steady"]
    for _ in range(20):
        server.step()
    assert abs(server.service["returning"] - (server.service["steady"] - before)) <= 20


def test_interactive_work_comes_before_bulk_work_which_does_not_starve() -> None:
    server = Server()
    for at in range(40):
        server.add(Work(f"bulk {at}", Kind.BULK, tokens=10_000))
    for at in range(900):
        server.add(Work(f"user {at % 3}"))
    for _ in range(900):
        server.step()
    share = server.service[Kind.BULK] / (server.service[Kind.BULK] + server.service[Kind.INTERACTIVE])
    assert share == pytest.approx(1 / (1 + WEIGHTS[Kind.INTERACTIVE]), abs=0.01)


def test_one_interactive_request_waits_for_no_queue_of_bulk_work() -> None:
    server = Server()
    for at in range(40):
        server.add(Work(f"bulk {at}", Kind.BULK, tokens=10_000))
    for _ in range(100):
        server.step()
    server.add(one := Work("user"))
    assert server.step() is one


def test_background_work_waits_for_all_other_work() -> None:
    server = Server()
    background = server.add(Work("a", Kind.BACKGROUND))
    others = [server.add(Work("b", kind)) for kind in (Kind.BULK, Kind.INTERACTIVE)]
    while background in server.waiting:
        server.step()
    assert set(server.done[:2]) == set(others)


def test_accounts_of_clients_that_left_are_forgotten() -> None:
    queue = FairQueue()
    for at in range(10 * MAX_ACCOUNTS):
        work = Work(f"client {at}")
        queue.choose([work])
        queue.charge(work, 1)
    assert len(queue._clients[Kind.INTERACTIVE]._tags) <= MAX_ACCOUNTS + 1


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 30), clients=st.integers(1, 6))
def test_nothing_starves_and_everything_ends_once(seed: int, clients: int) -> None:
    """T15: random arrivals; every request ends exactly once, and no waiting client falls behind another one by more
    than the largest piece and one request."""
    dice = random.Random(seed)
    server, added = Server(), []
    for _ in range(300):
        if dice.random() < 0.3:
            kind = dice.choice((Kind.INTERACTIVE, Kind.BULK))
            added.append(server.add(Work(f"client {dice.randrange(clients)}", kind, dice.randrange(1, 60))))
        server.step()
    for kind in (Kind.INTERACTIVE, Kind.BULK):
        tags = [server.queue._clients[kind].tag(work.client) for work in server.waiting if work.kind is kind]
        assert not tags or max(tags) - min(tags) <= 60 + server.piece
    while server.waiting:
        server.step()
    assert sorted(map(id, server.done)) == sorted(map(id, added))
