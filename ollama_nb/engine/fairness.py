"""Which of the waiting requests is served next: fair shares between kinds of work and between clients. Pure.

Theory of operation
===================

Service is counted in tokens that the model reads or writes. Every client has an account, and the client that has been
served least is next (start-time fair queuing):

- The *tag* of an account is the service that it has received, divided by its weight. ``charge`` raises it.
- ``choose`` takes the account with the lowest tag, and the request that arrived first among equal tags and within one
  client. The clock of the queue (``now``) follows the tag of the account that was chosen.
- A client that was away starts at the clock. So it saves up nothing while it is away, and it is served before a client
  that has received more than its share since then.

The same rule applies on two levels. First between kinds: ``INTERACTIVE`` requests get ``WEIGHTS`` times the service of
``BULK`` ones while both wait, and all of it otherwise. Then between the clients of the kind. As tags only grow by
service, a request that waits has the lowest tag at some time: nothing starves. Except ``BACKGROUND`` requests: they are
served only while no other request waits or runs, as their clients asked for.

A client that sends ten times as many requests as another one waits ten times as long for each of them; the other one
waits for the requests that are being served now, and then for one of each other client.

Service is charged when it is granted: for a sequence, its prompt when it gets a slot, and each token of its reply when
it is written; for embeddings, the tokens of each piece. A queue remembers a limited number of accounts, those that
have received most.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar


class Kind(enum.IntEnum):
    """Kinds of work. Bulk work is an embedding or ranking of many inputs, which is done in pieces."""

    INTERACTIVE = 0
    BULK = 1
    BACKGROUND = 2


WEIGHTS = {Kind.INTERACTIVE: 8.0, Kind.BULK: 1.0, Kind.BACKGROUND: 1.0}


class FairJob(Protocol):
    """What waits: a sequence, or embeddings."""

    @property
    def kind(self) -> Kind: ...
    @property
    def client(self) -> str: ...


J = TypeVar("J", bound=FairJob)
K = TypeVar("K", bound=Hashable)


MAX_ACCOUNTS = 256  # accounts of a level; above it, the half with the least service is forgotten


class Accounts(Generic[K]):
    """Service received by each of several accounts; see the theory of operation."""

    def __init__(self) -> None:
        self._tags: dict[K, float] = {}
        self._now = 0.0

    def tag(self, account: K) -> float:
        return max(self._tags.get(account, 0.0), self._now)

    def choose(self, accounts: Iterable[K]) -> K:
        """Return the account that is served next, the first one among equals."""
        chosen = min(accounts, key=self.tag)
        self._now = self.tag(chosen)
        return chosen

    def charge(self, account: K, service: float) -> None:
        self._tags[account] = self.tag(account) + service
        if len(self._tags) > MAX_ACCOUNTS:
            most = sorted(self._tags, key=self.tag)[MAX_ACCOUNTS // 2 :]
            self._tags = {other: self._tags[other] for other in most}


class FairQueue:
    """The accounts of one model: of each kind of work, and of each client within a kind."""

    def __init__(self) -> None:
        self._kinds: Accounts[Kind] = Accounts()
        self._clients: dict[Kind, Accounts[str]] = {kind: Accounts() for kind in Kind}

    def choose(self, waiting: Sequence[J]) -> J:
        """Return the job to serve next. ``waiting``: at least one job, in the order of arrival."""
        kinds = {job.kind for job in waiting}
        urgent = kinds - {Kind.BACKGROUND} or kinds
        kind = self._kinds.choose(sorted(urgent))
        of_kind = [job for job in waiting if job.kind is kind]
        client = self._clients[kind].choose(dict.fromkeys(job.client for job in of_kind))
        return next(job for job in of_kind if job.client == client)

    def charge(self, job: FairJob, tokens: int) -> None:
        """Record that a job has received the service of ``tokens`` tokens."""
        self._kinds.charge(job.kind, tokens / WEIGHTS[job.kind])
        self._clients[job.kind].charge(job.client, tokens)
